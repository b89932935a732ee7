import fp from 'fastify-plugin'
import { systemScope } from '../../db/gate/gate-query.ts'
import type { Statement } from '../../db/gate/statement.ts'
import { sweepAccountMails } from '../../db/queries/accounts/mails.ts'
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
  sweepOneTimeMarks,
  sweepOutbox,
  sweepSessions
} from '../../db/queries/directory.ts'
import { sweepEvents } from '../../db/queries/events/events.ts'
import { sweepWebhooks } from '../../db/queries/webhooks/deliveries.ts'
import { createAuditKeys } from '../../src/auth/audit-keys.ts'
import type { JobResult, TaskRun } from './jobs.ts'

declare module 'fastify' {
  interface FastifyInstance {
    housekeeping: {
      /** Runs all jobs once. Otherwise they run once a minute. Resolves to undefined when they were stopped. */
      run(): Promise<JobResult | undefined>
    }
  }
}

const intervalMs = 60_000
export const batch = 1000

/**
 * Removes expired rows, seals and prunes the audit log, and creates the partitions of its next months. Several
 * processes may run the jobs at once: each row is handled by one of them.
 */
export default fp(
  async (app) => {
    const auditKeys = app.secrets.following('passwordPepper', createAuditKeys)
    /** The key with which the seals are signed. After a change they are signed with the new key once, at a start as well. */
    let signedWith = auditKeys.count === 1 ? auditKeys.first : undefined
    let mayPrune = true

    /**
     * Seals new audit events. The heads of the chains are written to the log as well, so that a chain that was replaced
     * by an older one in the database can be recognised.
     */
    async function seal({ stopping }: TaskRun): Promise<void> {
      const { signed_from, first } = await declareSigning(app.gate, auditKeys)
      if (first) app.log.warn({ signed_from }, 'the signing of the audit log begins; this must not be seen again')
      for (;;) {
        const { sealed, refused } = await sealAudit(app.gate, auditKeys, signed_from)
        for (const head of sealed) app.log.info({ audit_seal: head }, 'audit events sealed')
        for (const head of refused)
          app.log.error({ audit_seal: head }, 'the audit log does not continue what was signed')
        if (sealed.length + refused.length === 0 || stopping.aborted) break
      }
      const { first: key } = auditKeys
      if (signedWith !== key) await signWithNewKey(app.gate, auditKeys)
      signedWith = key
    }

    /**
     * Drops whole months of audit events by the retention that the owner has set, and then the seals of these months.
     */
    async function drop(run: TaskRun): Promise<void> {
      const { dropped, busy, to } = await dropAuditMonths(app.gate, auditKeys)
      if (dropped > 0) app.log.info({ months: dropped, to }, 'audit events dropped')
      if (busy) app.log.info('audit events are being read, and are dropped later')
      if (dropped > 0 || mayPrune) await inBatches(pruneAuditSeals, {})(run)
      mayPrune = false
    }

    async function purge({ stopping }: TaskRun): Promise<void> {
      for (;;) {
        const [purged] = await app.gate.query(systemScope, purgeTenant, {})
        if (!purged?.id || stopping.aborted) return
        app.log.info({ tenant_id: purged.id }, 'tenant purged')
      }
    }

    async function partitions(): Promise<void> {
      await app.gate.query(systemScope, ensureAuditPartitions, {})
    }

    /** Makes a task that removes one batch of rows after another until none is left, however many expire in a minute. */
    function inBatches<Values extends object>(
      sweeping: Statement<Values & { batch: number }, { removed: number }>,
      values: Values
    ): (run: TaskRun) => Promise<void> {
      return async ({ stopping }) => {
        for (;;) {
          const [swept] = await app.gate.query(systemScope, sweeping, { ...values, batch })
          if (!swept || swept.removed < batch || stopping.aborted) return
        }
      }
    }

    const tasks = {
      partitions,
      purge,
      seal,
      drop,
      sweep: inBatches(sweep, {}),
      // an ended session is kept for as long as an unused one
      sessions: inBatches(sweepSessions, { age_seconds: app.config.refreshTokenTtl }),
      outbox: inBatches(sweepOutbox, {}),
      events: inBatches(sweepEvents, {}),
      webhook_deliveries: inBatches(sweepWebhooks, {}),
      account_mails: inBatches(sweepAccountMails, {}),
      idempotency: inBatches(sweepIdempotencyKeys, {}),
      invitations: inBatches(sweepInvitations, {}),
      one_time_marks: inBatches(sweepOneTimeMarks, {}),
      failures: inBatches(sweepFailures, {})
    }
    // every change writes an audit event, which needs the partition of the current month
    app.addHook('onReady', partitions)
    app.decorate('housekeeping', { run: app.jobs.define({ name: 'housekeeping', intervalMs, tasks }).run })
  },
  { name: 'housekeeping', dependencies: ['database', 'metrics', 'jobs'] }
)
