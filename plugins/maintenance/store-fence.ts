import fp from 'fastify-plugin'
import { advanceStore, checkStoreOwner, type Verdict } from '../../db/queries/store-fence.ts'

declare module 'fastify' {
  interface FastifyInstance {
    storeFence: {
      /** Checks whether objects may be removed. Rejects when the store or the database does not answer. */
      check(): Promise<boolean>
      /** Like `check`, but uses the last result for up to a minute. */
      mayRemove(): Promise<boolean>
      /** Increments the generation in the store and the database, so that an older backup can be recognised. */
      advance(): Promise<void>
      /**
       * The reason why nothing is removed. Undefined when the store belongs to this database, or was not checked yet.
       */
      reason(): string | undefined
    }
  }
}

const freshForMs = 60_000

const reasons: Record<Exclude<Verdict, 'ours'>, string> = {
  unmarked: 'the store has objects and no mark, and most of them belong to no row here',
  unreadable: 'the mark of the store can not be read',
  'another installation': 'the store belongs to another installation',
  'another database': 'the store was swept by another database; this one is a copy of it, or was restored from a dump',
  'older database': 'the store is ahead of this database, which was restored from a backup, or is a copy'
}

/**
 * Keeps objects from being removed when the store does not belong to this database, for example after the database was
 * restored from a backup. The reason is in the log, in a metric and in the internal health report.
 */
export default fp(
  async (app) => {
    let verdict: Verdict | undefined
    let judgedAt = Number.NEGATIVE_INFINITY

    async function check(): Promise<boolean> {
      const before = verdict
      verdict = await checkStoreOwner(app.gate, app.objects)
      judgedAt = performance.now()
      if (verdict === before) return verdict === 'ours'
      if (verdict !== 'ours') {
        app.log.error(
          { reason: reasons[verdict] },
          'nothing is removed from the object store: npm run files -- compare, then accept-store'
        )
      } else if (before !== undefined) app.log.info('objects are removed from the store again')
      return verdict === 'ours'
    }

    const reason = () => (verdict === undefined || verdict === 'ours' ? undefined : reasons[verdict])
    app.decorate('storeFence', {
      check,
      async mayRemove() {
        if (app.config.sweep !== 'on') return false
        return performance.now() - judgedAt < freshForMs ? verdict === 'ours' : check()
      },
      advance: () => advanceStore(app.gate, app.objects),
      reason
    })
    app.metrics.gauge(
      'aggios_object_sweep_fenced',
      'Whether nothing is removed from the object store, because it is not the store of this database',
      () => (reason() === undefined ? 0 : 1)
    )
  },
  { name: 'store-fence', dependencies: ['config', 'database', 'objects', 'metrics'] }
)
