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

declare module 'fastify' {
  interface FastifyInstance {
    objectSweep: {
      /** Something may have to be removed; the sweep need not wait for its turn. */
      nudge(): void
      /** Does all that there is to do now. */
      run(): Promise<void>
      stats(): { pending: number; deleted: number; orphans: number }
    }
  }
}

const intervalMs = 60_000
const batch = 100
/** Longer than it takes to remove a batch; when this process dies another goes on after it. */
const lease_seconds = 120
const page = 1000

/**
 * Removes from the object store what should not be there: uploads that were given up, files that were deleted, and objects that
 * no row refers to. Any number of processes may run it; each takes what nobody else has.
 *
 * Nothing is removed, and no row changed, unless the store is proven to be this database's (plugins/maintenance/store-fence.ts). With
 * `SWEEP=report` what would be removed is logged, with `SWEEP=off` nothing is done.
 */
export default fp(
  async (app) => {
    const counts = { pending: 0, deleted: 0, orphans: 0 }
    const reportsOnly = app.config.sweep === 'report'
    let timer: NodeJS.Timeout | undefined
    let running: Promise<void> | undefined
    let again = false
    let closed = false

    /** Bytes first and the row last, so that a crash in between leaves a row that says what is to be done. */
    async function removeFiles(): Promise<void> {
      for (;;) {
        if (!(await app.storeFence.check())) return
        if (reportsOnly) return reportFiles()
        const claimed = await app.gate.query(systemScope, claimFiles, { batch, lease_seconds })
        for (const file of claimed) {
          await removeClaimed(file).catch((err) => {
            // the others need not wait for one that can't be removed; where the store is away, all do
            if (err instanceof StoreFailure && err.kind === 'away') throw err
            app.log.warn({ err, file_id: file.id }, 'a file could not be removed, and is tried again')
          })
        }
        if (claimed.length < batch || closed) return
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

    /** One page of the store at a time, so that however much lies there a turn costs the same. */
    async function removeOrphans(): Promise<void> {
      const [turn] = await app.gate.query(systemScope, claimObjectSweep, { pause_seconds: intervalMs / 1000 })
      if (turn?.reached === null || turn === undefined) return
      if (!(await app.storeFence.check())) return
      // also where nothing will be removed: a backup that is older than this turn is recognised by it
      await app.storeFence.advance()
      const objects = await app.objects.list(turn.reached, page)
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

    async function run(): Promise<void> {
      if (app.config.sweep === 'off') return
      const before = { ...counts }
      for (const work of [removeFiles, removeOrphans]) {
        if (closed) return
        await work().catch((err) => app.log.warn({ err }, 'the object store could not be swept, and is tried again'))
      }
      const swept = Object.entries(counts).map(([what, count]) => [what, count - before[what as keyof typeof before]])
      if (swept.some(([, count]) => Number(count) > 0))
        app.log.info({ swept: Object.fromEntries(swept) }, 'object store swept')
    }

    function work(): Promise<void> {
      clearTimeout(timer)
      again = running !== undefined
      running ??= run().finally(() => {
        running = undefined
        if (closed) return
        timer = setTimeout(work, again ? 0 : intervalMs)
        timer.unref()
      })
      return running
    }

    app.decorate('objectSweep', {
      nudge: () => {
        if (!closed) setImmediate(work)
      },
      run: async () => {
        // one that is under way may have looked already
        while (running) await running
        await work()
      },
      stats: () => ({ ...counts })
    })
    app.metrics.counter('aggios_objects_swept_total', 'What the sweep removed from the object store', () =>
      Object.entries(counts).map(([kind, value]) => ({ labels: { kind }, value }))
    )
    app.addHook('onReady', async () => {
      timer = setTimeout(work, intervalMs)
      timer.unref()
    })
    app.addHook('preClose', async () => {
      closed = true
      clearTimeout(timer)
    })
    // once no request is under way any more
    app.addHook('onClose', async () => {
      await running
    })
  },
  { name: 'object-sweep', dependencies: ['database', 'objects', 'metrics', 'store-fence'] }
)
