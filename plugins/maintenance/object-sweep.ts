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
import { fileKey, uploadKey } from '../../src/files/store/keys.ts'
import { StoreFailure } from '../../src/files/store/object-store.ts'
import { createPoller } from '../../src/poller.ts'
import type { JobResult } from './jobs.ts'

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

    /** Removes the object first and its row last, so that after a crash in between the row is found again. */
    async function removeFiles(stopping: AbortSignal): Promise<void> {
      for (;;) {
        if (!(await app.storeFence.check())) return
        if (reportsOnly) return reportFiles()
        const claimed = await app.gate.query(systemScope, claimFiles, { batch, lease_seconds })
        for (const file of claimed) {
          await removeClaimed(file).catch((err) => {
            // go on with the other files, unless the store is away
            if (err instanceof StoreFailure && err.kind === 'away') throw err
            app.log.warn({ err, file_id: file.id }, 'a file could not be removed, and is tried again')
          })
        }
        if (claimed.length < batch || stopping.aborted) return
      }
    }

    async function reportFiles(): Promise<void> {
      const due = await app.gate.query(systemScope, dueFiles, { batch })
      report(due.map(({ tenant_id, id }) => fileKey(tenant_id, id)))
    }

    function report(keys: string[]): void {
      if (keys.length > 0) app.log.info({ keys }, 'objects would be removed from the store')
    }

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

    const warn = (err: unknown) => app.log.warn({ err }, 'the object store could not be swept, and is tried again')

    const steps =
      app.config.sweep === 'off'
        ? []
        : [
            app.metrics.trackJob('remove_files', intervalMs, removeFiles),
            app.metrics.trackJob('remove_orphans', intervalMs, removeOrphans)
          ]

    async function sweep(stopping: AbortSignal): Promise<JobResult | undefined> {
      if (steps.length === 0) return { outcome: 'off', reason: 'SWEEP is off' }
      const before = { ...counts }
      const failures: unknown[] = []
      for (const step of steps) {
        if (stopping.aborted) return
        await step(stopping).catch((err) => {
          failures.push(err)
          warn(err)
        })
      }
      const result = await app.jobs.record('object_sweep', failures[0])
      const swept = Object.entries(counts).map(([what, count]) => [what, count - before[what as keyof typeof before]])
      if (swept.some(([, count]) => Number(count) > 0))
        app.log.info({ swept: Object.fromEntries(swept) }, 'object store swept')
      const reason = app.storeFence.reason()
      return reason !== undefined && result.outcome === 'succeeded' ? { outcome: 'off', reason } : result
    }

    const poller = createPoller({ intervalMs, work: sweep, onError: warn })
    app.decorate('objectSweep', { wake: poller.wake, run: poller.run, stats: () => ({ ...counts }) })
    app.metrics.counter('aggios_objects_swept_total', 'What the sweep removed from the object store', () =>
      Object.entries(counts).map(([kind, value]) => ({ labels: { kind }, value }))
    )
    app.addHook('onReady', async () => poller.start())
    // ends the work early, while the last requests are answered
    app.addHook('preClose', async () => void poller.stop())
    app.addHook('onClose', () => poller.stop())
  },
  { name: 'object-sweep', dependencies: ['database', 'objects', 'metrics', 'store-fence', 'jobs'] }
)
