import fp from 'fastify-plugin'
import { systemScope } from '../../db/gate/gate-query.ts'
import {
  advanceObjectSweep,
  type ClaimedFile,
  claimFiles,
  claimObjectSweep,
  dueFiles,
  removeFile
} from '../../db/queries/files.ts'
import { findOrphans } from '../../db/queries/orphans.ts'
import { processDue } from '../../src/due-work.ts'
import { fileKey, uploadKey } from '../../src/files/store/keys.ts'
import { StoreFailure } from '../../src/files/store/object-store.ts'
import type { JobResult, TaskRun } from './jobs.ts'

declare module 'fastify' {
  interface FastifyInstance {
    objectSweep: {
      /** Starts a sweep now and not only after the interval. Returns at once. */
      wake(): void
      /** Sweeps once, and resolves when the sweep has ended. Resolves to undefined when it was stopped. */
      run(): Promise<JobResult | undefined>
      stats(): { pending: number; deleted: number; orphans: number }
    }
  }
}

const intervalMs = 60_000
const batch = 100
/** Longer than it takes to remove a batch. When this process dies, another process takes the files after the lease. */
const lease_seconds = 120
const page = 1000

/**
 * Removes objects from the store: of abandoned uploads, of deleted files, and objects without a row. Any number of
 * processes may sweep at once: a lease gives each file to one of them.
 *
 * Nothing is removed, and no row is changed, unless the store fence has found that the store belongs to this database
 * (plugins/maintenance/store-fence.ts). With `SWEEP=report` the objects are only logged. With `SWEEP=off` nothing is
 * done.
 */
export default fp(
  async (app) => {
    const counts = { pending: 0, deleted: 0, orphans: 0 }
    const reportsOnly = app.config.sweep === 'report'

    async function claim(batch: number): Promise<ClaimedFile[]> {
      if (!(await app.storeFence.check())) return []
      return app.gate.query(systemScope, claimFiles, { batch, lease_seconds })
    }

    function removeFiles({ stopping, itemFailed }: TaskRun): Promise<void> {
      return processDue({
        batch,
        stopping,
        claim,
        work: (file) =>
          removeClaimed(file).catch((err) => {
            // go on with the other files, unless the store is away
            if (err instanceof StoreFailure && err.kind === 'away') throw err
            itemFailed(err, { file_id: file.id })
          })
      })
    }

    async function reportFiles(): Promise<void> {
      if (!(await app.storeFence.check())) return
      const due = await app.gate.query(systemScope, dueFiles, { batch })
      report(due.map(({ tenant_id, id }) => fileKey(tenant_id, id)))
    }

    function report(keys: string[]): void {
      if (keys.length > 0) app.log.info({ keys }, 'objects would be removed from the store')
    }

    /** Removes the object first and its row last, so that after a crash in between the row is found again. */
    async function removeClaimed({ tenant_id, id, was, store_id }: ClaimedFile): Promise<void> {
      const key = fileKey(tenant_id, id)
      if (store_id !== null) await app.objects.dropParts(key, store_id)
      await app.objects.remove(key)
      await app.objects.remove(uploadKey(tenant_id, id))
      await app.gate.query({ tenant_id, user_id: null, request: '' }, removeFile, { tenant_id, id })
      counts[was === 'pending' ? 'pending' : 'deleted']++
    }

    /**
     * Checks one page of the store's listing in each run, so that a run costs the same however many objects there are.
     */
    async function removeOrphans(): Promise<void> {
      const [claim] = await app.gate.query(systemScope, claimObjectSweep, { pause_seconds: intervalMs / 1000 })
      if (claim?.reached === null || claim === undefined) return
      if (!(await app.storeFence.check())) return
      // also when nothing will be removed, so that a backup from before this run can be recognised
      await app.storeFence.advance()
      const objects = await app.objects.list(claim.reached, page)
      const orphans = await findOrphans(app.gate, objects)
      if (reportsOnly) report(orphans)
      else for (const key of orphans) await removeOrphan(key)
      const reached = objects.length < page ? '' : (objects.at(-1)?.key ?? '')
      await app.gate.query(systemScope, advanceObjectSweep, { reached })
    }

    async function removeOrphan(key: string): Promise<void> {
      await app.objects.remove(key)
      counts.orphans++
    }

    /** Logs what a task has removed, also before it failed. */
    function logged(task: (run: TaskRun) => Promise<void>): (run: TaskRun) => Promise<void> {
      return async (run) => {
        const before = { ...counts }
        await task(run).finally(() => {
          const swept = {
            pending: counts.pending - before.pending,
            deleted: counts.deleted - before.deleted,
            orphans: counts.orphans - before.orphans
          }
          if (Object.values(swept).some((count) => count > 0)) app.log.info({ swept }, 'object store swept')
        })
      }
    }

    const job = app.jobs.define({
      name: 'object_sweep',
      intervalMs,
      off: app.config.sweep === 'off' ? 'SWEEP is off' : undefined,
      tasks: { remove_files: reportsOnly ? reportFiles : logged(removeFiles), remove_orphans: logged(removeOrphans) }
    })

    async function run(): Promise<JobResult | undefined> {
      const result = await job.run()
      const reason = app.storeFence.reason()
      return reason !== undefined && result?.outcome === 'succeeded' ? { outcome: 'off', reason } : result
    }

    app.decorate('objectSweep', { wake: job.wake, run, stats: () => ({ ...counts }) })
    app.metrics.counter('aggios_objects_swept_total', 'What the sweep removed from the object store', () =>
      Object.entries(counts).map(([kind, value]) => ({ labels: { kind }, value }))
    )
  },
  { name: 'object-sweep', dependencies: ['database', 'objects', 'metrics', 'store-fence', 'jobs'] }
)
