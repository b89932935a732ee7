import fp from 'fastify-plugin'
import { dropAuditPartitions, sealAudit } from '../db/audit-seals.ts'
import { ensureAuditPartitions, purgeTenant, sweep } from '../db/directory.ts'

const intervalMs = 60_000
const batch = 1000
/** Longer than any transaction that could still write an event may live. */
const sealAfterSeconds = 60
const nobody = { tenant_id: null, user_id: null, request: '' }

/** Removes what is dead and prepares the audit log's next months. On several processes one works and the others find nothing. */
export default fp(
  async (app) => {
    let timer: NodeJS.Timeout | undefined
    let running: Promise<void> | undefined

    /** The heads go to the log: whoever rewrites the chain in the database can't rewrite them there. */
    async function seal(): Promise<void> {
      const heads = await app.gate.query(nobody, sealAudit, { age_seconds: sealAfterSeconds })
      for (const head of heads) app.log.info({ audit_seal: head }, 'audit events sealed')
      if (app.config.auditRetention === 0) return
      const [result] = await app.gate.query(nobody, dropAuditPartitions, { keep_days: app.config.auditRetention })
      if (result && result.dropped > 0) app.log.info({ months: result.dropped }, 'audit events dropped')
    }

    async function purge(): Promise<void> {
      for (;;) {
        const [purged] = await app.gate.query(nobody, purgeTenant, {})
        if (!purged?.id) return
        app.log.info({ tenant_id: purged.id }, 'tenant purged')
      }
    }

    async function run(): Promise<void> {
      try {
        await app.gate.query(nobody, ensureAuditPartitions, {})
        await purge()
        await seal()
        const [result] = await app.gate.query(nobody, sweep, { batch })
        if (result && result.removed > 0) app.log.debug({ removed: result.removed }, 'swept')
      } catch (err) {
        app.log.warn({ err }, 'housekeeping failed, and is tried again')
      }
    }

    function schedule(): void {
      timer = setTimeout(() => {
        running = run().finally(schedule)
      }, intervalMs)
      timer.unref()
    }

    app.addHook('onReady', async () => {
      // without this month's partition nothing could be recorded, so nothing could be changed
      await app.gate.query(nobody, ensureAuditPartitions, {})
      schedule()
    })
    app.addHook('preClose', async () => {
      clearTimeout(timer)
      await running
      clearTimeout(timer)
    })
  },
  { name: 'housekeeping', dependencies: ['database'] }
)
