import fp from 'fastify-plugin'
import { systemScope } from '../../db/gate/gate-query.ts'
import type { Statement } from '../../db/gate/statement.ts'
import {
  declareSigning,
  dropAuditMonths,
  pruneAuditSeals,
  sealAudit,
  signWithNewKey
} from '../../db/queries/audit-signing.ts'
import {
  ensureAuditPartitions,
  purgeTenant,
  sweep,
  sweepFailures,
  sweepIdempotencyKeys,
  sweepInvitations,
  sweepOutbox,
  sweepSessions
} from '../../db/queries/directory.ts'
import { createAuditKeys } from '../../src/auth/audit-keys.ts'

declare module 'fastify' {
  interface FastifyInstance {
    housekeeping: {
      /** One turn of all jobs, which otherwise come once a minute. */
      run(): Promise<void>
    }
  }
}

const intervalMs = 60_000
export const batch = 1000

/** Removes what is dead and prepares the audit log's next months. On several processes one works and the others find nothing. */
export default fp(
  async (app) => {
    let timer: NodeJS.Timeout | undefined
    let running: Promise<void> | undefined
    let closed = false

    const auditKeys = createAuditKeys(app.config.passwordPepper)
    /** Once in the life of a process. */
    let signedWithNewKey = auditKeys.count === 1
    let mayPrune = true

    /** The heads go to the log: whoever puts an older chain back into the database can't take them back there. */
    async function seal(): Promise<void> {
      const { signed_from, first } = await declareSigning(app.gate, auditKeys)
      if (first) app.log.warn({ signed_from }, 'the signing of the audit log begins; this must not be seen again')
      for (;;) {
        const { sealed, refused } = await sealAudit(app.gate, auditKeys, signed_from)
        for (const head of sealed) app.log.info({ audit_seal: head }, 'audit events sealed')
        for (const head of refused)
          app.log.error({ audit_seal: head }, 'the audit log does not continue what was signed')
        if (sealed.length + refused.length === 0 || closed) break
      }
      if (!signedWithNewKey) await signWithNewKey(app.gate, auditKeys)
      signedWithNewKey = true
    }

    /** Whole months only, as the owner's row says, and then the seals of what is gone. */
    async function drop(): Promise<void> {
      const { dropped, busy, to } = await dropAuditMonths(app.gate, auditKeys)
      if (dropped > 0) app.log.info({ months: dropped, to }, 'audit events dropped')
      if (busy) app.log.info('audit events are being read, and are dropped later')
      if (dropped > 0 || mayPrune) await all(pruneAuditSeals, {})()
      mayPrune = false
    }

    async function purge(): Promise<void> {
      for (;;) {
        const [purged] = await app.gate.query(systemScope, purgeTenant, {})
        if (!purged?.id || closed) return
        app.log.info({ tenant_id: purged.id }, 'tenant purged')
      }
    }

    /** A batch at a time until nothing is left, so that what dies faster than once a minute is kept up with. */
    function all<Values extends object>(
      sweeping: Statement<Values & { batch: number }, { removed: number }>,
      values: Values
    ): () => Promise<void> {
      return async () => {
        for (;;) {
          const [swept] = await app.gate.query(systemScope, sweeping, { ...values, batch })
          if (!swept || swept.removed < batch || closed) return
        }
      }
    }

    const jobs = {
      partitions: () => app.gate.query(systemScope, ensureAuditPartitions, {}),
      purge,
      seal,
      drop,
      sweep: all(sweep, {}),
      // an ended session is kept for as long as one that nobody uses
      sessions: all(sweepSessions, { age_seconds: app.config.refreshTokenTtl }),
      outbox: all(sweepOutbox, {}),
      idempotency: all(sweepIdempotencyKeys, {}),
      invitations: all(sweepInvitations, {}),
      failures: all(sweepFailures, {})
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

    app.decorate('housekeeping', { run })
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
