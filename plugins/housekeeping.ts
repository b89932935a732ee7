import fp from 'fastify-plugin'
import { dropAuditPartitions, sealAudit } from '../db/audit-seals.ts'
import {
  ensureAuditPartitions,
  purgeTenant,
  sweep,
  sweepFailures,
  sweepIdempotencyKeys,
  sweepOutbox
} from '../db/directory.ts'

import type { Statement } from '../db/statement.ts'

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
    let closed = false

    /** The heads go to the log: whoever rewrites the chain in the database can't rewrite them there. */
    async function seal(): Promise<void> {
      for (;;) {
        const heads = await app.gate.query(nobody, sealAudit, { age_seconds: sealAfterSeconds })
        for (const head of heads) app.log.info({ audit_seal: head }, 'audit events sealed')
        if (heads.length === 0 || closed) return
      }
    }

    /** Whole months only, and never one of the last four weeks. */
    async function drop(): Promise<void> {
      if (app.config.auditRetention === 0) return
      const keep_days = Math.max(28, app.config.auditRetention)
      const [result] = await app.gate.query(nobody, dropAuditPartitions, { keep_days })
      if (result && result.dropped > 0) app.log.info({ months: result.dropped }, 'audit events dropped')
    }

    async function purge(): Promise<void> {
      for (;;) {
        const [purged] = await app.gate.query(nobody, purgeTenant, {})
        if (!purged?.id || closed) return
        app.log.info({ tenant_id: purged.id }, 'tenant purged')
      }
    }

    /** A batch at a time until nothing is left, so that what dies faster than once a minute is kept up with. */
    const all = (sweeping: Statement<{ batch: number }, { removed: number }>) => async () => {
      for (;;) {
        const [swept] = await app.gate.query(nobody, sweeping, { batch })
        if (!swept || swept.removed < batch || closed) return
      }
    }

    const jobs = {
      partitions: () => app.gate.query(nobody, ensureAuditPartitions, {}),
      purge,
      seal,
      drop,
      sweep: all(sweep),
      outbox: all(sweepOutbox),
      idempotency: all(sweepIdempotencyKeys),
      failures: all(sweepFailures)
    }

    /** One that fails keeps none of the others from its turn. */
    async function run(): Promise<void> {
      for (const [job, work] of Object.entries(jobs)) {
        if (closed) return
        try {
          await work()
        } catch (err) {
          app.log.warn({ err, job }, 'housekeeping failed, and is tried again')
        }
      }
    }

    function schedule(): void {
      if (closed) return
      timer = setTimeout(() => {
        running = run().finally(schedule)
      }, intervalMs)
      timer.unref()
    }

    app.addHook('onReady', async () => {
      // without this month's partition nothing could be recorded, so nothing could be changed
      await jobs.partitions()
      schedule()
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
  { name: 'housekeeping', dependencies: ['database'] }
)
