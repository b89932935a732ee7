import fp from 'fastify-plugin'
import type { TenantTransaction } from '../../db/gate/gate.ts'
import { systemScope } from '../../db/gate/gate-query.ts'
import type { MailKind } from '../../db/gate/tables.ts'
import { claimMail } from '../../db/queries/directory.ts'
import {
  findSpentAllowance,
  type InvitationToSend,
  insertMail,
  markDropped,
  markSent,
  postpone,
  readOutboxEntry,
  type SpentAllowance
} from '../../db/queries/outbox.ts'
import { processDue } from '../../src/due-work.ts'
import { rateLimited } from '../../src/http/problems.ts'
import type { Mail } from '../../src/mail/layout.ts'
import { mailboxOf } from '../../src/mail/mailboxes.ts'
import { invitationMail } from '../../src/mail/mails.ts'
import type { TaskRun } from '../maintenance/jobs.ts'

type QueuedMail = { kind: MailKind; subject_id: string; generation: number; to: string }

/** How an attempt to send a mail ended. `dropped`: it is not tried again. */
export type Attempt = { outcome: 'sent' | 'dropped' | 'postponed'; reason: string | null; pause_seconds: number }

declare module 'fastify' {
  interface FastifyInstance {
    mail: {
      /**
       * Puts a mail into the outbox, in the transaction of the change that it is about. Throws `rate_limited` when its
       * sender or its recipient has used up their allowance. The exception must leave the transaction, so that the
       * change is rolled back.
       */
      queue(trx: TenantTransaction, mail: QueuedMail): Promise<void>
      /** Throws `rate_limited` as `queue` does, for a mail to this address that is written in another way. */
      requireAllowance(trx: TenantTransaction, to: string): Promise<void>
      /** Adds a source of mails. It sends the mails that are due, one after the other, until it is stopped. */
      addSource(sendDue: (run: TaskRun) => Promise<void>): void
      /** Tries to send a mail for the `attempts`-th time, and counts and logs how that ended. Never rejects. */
      attempt(compose: () => Mail, mail: { id: string; attempts: number; tenant_id?: string | null }): Promise<Attempt>
      /** Makes this process look into the outbox now and not only after the interval. Returns at once. */
      wake(): void
      stats(): { sent: number; failed: number; undeliverable: number }
    }
  }
}

const intervalMs = 5_000
/**
 * One mail a lease. The lease is longer than the timeouts of SMTP, so that no other process sends the same mail
 * meanwhile.
 */
const batch = 1
const lease_seconds = 90
const smtpTimeoutMs = 20_000
/** Five attempts over about ten hours: 1, 8, 64, 512 minutes apart. */
const maxAttempts = 5
const backoffSeconds = (attempt: number) => 60 * 8 ** (attempt - 1)
/** The SMTP commands whose refusal is about the mail. A refusal of an earlier command is about this installation. */
const commandsOfOneMail = ['RCPT TO', 'DATA']
const spentDetails: Record<SpentAllowance['spent'], string> = {
  sender: 'you have caused as many mails as one person may for now',
  unverified_sender: 'you have caused as many mails as a person may whose own e-mail address is not verified',
  recipient: 'this address has been sent as many mails as it may get for now'
}

/**
 * Sends the mails of the outbox: by SMTP, or into the log in development. Any number of processes may do so at once: a
 * lease gives each mail to one of them. When a process dies, its lease expires and another process sends the mail.
 */
export default fp(
  async (app) => {
    const { appUrl, mailFrom, nodeEnv, smtpUrl } = app.config
    const limits = {
      recipient: app.config.rateLimitMailTo,
      sender: app.config.rateLimitMail,
      unverified: app.config.rateLimitMailUnverified
    }
    const limited = Object.values(limits).some(({ max }) => max > 0)
    let transport = smtpUrl === undefined ? undefined : await connectTo(smtpUrl)
    app.secrets.follow(['smtpUrl'], async ({ smtpUrl: url = '' }) => {
      const next = await connectTo(url)
      return () => {
        // each mail has a connection of its own, so a mail that is being sent goes on
        transport = next
      }
    })
    const counts = { sent: 0, failed: 0, undeliverable: 0 }

    if (!transport && nodeEnv === 'production') app.log.warn('SMTP_URL is not set: mails wait in the outbox')
    const enabled = transport !== undefined || nodeEnv === 'development'

    async function requireAllowance(trx: TenantTransaction, to: string): Promise<void> {
      const refusal = limited && (await findSpentAllowance(trx, mailboxOf(to), limits))
      if (!refusal) return
      const headers = { 'retry-after': String(refusal.wait_seconds) }
      throw rateLimited({ detail: spentDetails[refusal.spent], headers })
    }

    async function queue(trx: TenantTransaction, { to, ...mail }: QueuedMail): Promise<void> {
      await requireAllowance(trx, to)
      await insertMail(trx, { ...mail, mailbox: mailboxOf(to) })
    }

    async function deliver(mail: Mail, messageId: string): Promise<void> {
      if (!transport) {
        app.log.info({ mail: { to: mail.to, subject: mail.subject, text: mail.text } }, 'mail')
        return
      }
      // an address object is not parsed, so it names one mailbox whatever characters are in it
      const to = { name: '', address: mail.to }
      await transport.sendMail({
        ...mail,
        to,
        from: mailFrom,
        messageId,
        disableFileAccess: true,
        disableUrlAccess: true
      })
    }

    async function send(tenant_id: string, id: string): Promise<void> {
      const settings = { ...systemScope, tenant_id }
      const [entry] = await app.gate.query(settings, readOutboxEntry, { tenant_id, id })
      if (!entry) return
      if (!entry.wanted) {
        await app.gate.query(settings, markDropped, { tenant_id, id, reason: 'no longer wanted' })
        return
      }
      const attempted = await attempt(() => compose(tenant_id, entry), { id, attempts: entry.attempts, tenant_id })
      const { outcome, pause_seconds: seconds } = attempted
      const reason = attempted.reason ?? 'unknown'
      if (outcome === 'sent') await app.gate.query(settings, markSent, { tenant_id, id })
      else if (outcome === 'dropped') await app.gate.query(settings, markDropped, { tenant_id, id, reason })
      else await app.gate.query(settings, postpone, { tenant_id, id, seconds, reason })
    }

    async function attempt(
      write: () => Mail,
      { id, attempts, tenant_id }: { id: string; attempts: number; tenant_id?: string | null }
    ): Promise<Attempt> {
      try {
        // each attempt has the same message id, so that a mail server can recognise a repetition
        await deliver(write(), `<${id}@${app.config.baseDomain}>`)
      } catch (err) {
        const reason = err instanceof Error ? err.message.slice(0, 500) : 'unknown'
        const facts = { err, tenant_id, outbox_id: id, attempt: attempts }
        if (attempts >= maxAttempts || isPermanent(err)) {
          counts.undeliverable++
          app.log.warn(facts, 'mail is undeliverable, and is not tried again')
          return { outcome: 'dropped', reason, pause_seconds: 0 }
        }
        counts.failed++
        app.log.warn(facts, 'mail could not be sent, and is tried again')
        return { outcome: 'postponed', reason, pause_seconds: backoffSeconds(attempts) }
      }
      counts.sent++
      return { outcome: 'sent', reason: null, pause_seconds: 0 }
    }

    function compose(tenant_id: string, entry: InvitationToSend): Mail {
      const { subject_id: id, generation, slug } = entry
      const token = app.oneTimeTokens.issue('invitation', { tenant_id, id, generation })
      return invitationMail({
        to: entry.email,
        locale: entry.locale ?? 'en',
        tenant: entry.tenant,
        slug,
        inviter: entry.inviter ?? entry.tenant,
        role: entry.role,
        expires_at: entry.expires_at,
        link: `${appUrl.replaceAll('{slug}', slug)}/invitations/accept?token=${token}`
      })
    }

    const sources = [
      ({ stopping }: TaskRun) =>
        processDue({
          batch,
          stopping,
          claim: (batch) => app.gate.query(systemScope, claimMail, { batch, lease_seconds }),
          work: ({ tenant_id, id }) => send(tenant_id, id)
        })
    ]
    app.addHook('onClose', async () => transport?.close())
    const job = app.jobs.define({
      name: 'outbox',
      intervalMs,
      atStart: true,
      off: enabled ? undefined : 'SMTP_URL is not set',
      tasks: {
        async send_mails(run) {
          for (const sendDue of sources) await sendDue(run)
        }
      }
    })

    app.decorate('mail', {
      queue,
      requireAllowance,
      addSource: (sendDue: (run: TaskRun) => Promise<void>) => void sources.push(sendDue),
      attempt,
      wake: job.wake,
      stats: () => ({ ...counts })
    })
    app.metrics.counter('aggios_mails_total', 'Tries to send a mail of the outbox, by how they ended', () =>
      Object.entries(counts).map(([outcome, value]) => ({ labels: { outcome }, value }))
    )
  },
  { name: 'mail', dependencies: ['database', 'config', 'metrics', 'jobs'] }
)

/** Nodemailer is loaded only when there is a mail server, which makes a start without one faster. */
async function connectTo(smtpUrl: string) {
  const { createTransport } = await import('nodemailer')
  return createTransport(smtpUrl, {
    connectionTimeout: smtpTimeoutMs,
    greetingTimeout: smtpTimeoutMs,
    socketTimeout: smtpTimeoutMs
  } as never)
}

/** The mail server has refused this mail or its recipient permanently (5xx). */
function isPermanent(err: unknown): boolean {
  const { responseCode, command } = err as { responseCode?: number; command?: string }
  return responseCode !== undefined && responseCode >= 500 && commandsOfOneMail.includes(command ?? '')
}
