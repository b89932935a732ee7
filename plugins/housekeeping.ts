import fp from 'fastify-plugin'
import { ensureAuditPartitions, purgeTenant, sweep } from '../db/directory.ts'

const intervalMs = 60_000
const batch = 1000
const nobody = { tenant_id: null, user_id: null, request: '' }

/** Removes what is dead and prepares the audit log's next months. On several processes one works and the others find nothing. */
export default fp(
  async (app) => {
    let timer: NodeJS.Timeout | undefined
    let running: Promise<void> | undefined

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
