import fp from 'fastify-plugin'
import { createTransport } from 'nodemailer'
import type { TenantTransaction } from '../../db/gate/gate.ts'
import { systemScope } from '../../db/gate/gate-query.ts'
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
import type { MailKind } from '../../db/tables.ts'
import { rateLimited } from '../../src/http/problems.ts'
import { mailboxOf } from '../../src/mail/mailboxes.ts'
import { invitationMail, type Mail } from '../../src/mail/mails.ts'

type QueuedMail = { kind: MailKind; subject_id: string; generation: number; to: string }

declare module 'fastify' {
  interface FastifyInstance {
    mail: {
      /**
       * Puts a mail into the outbox, in the transaction of what it is about. Throws `rate_limited` when its sender or its recipient
       * has had as many as there may be; thrown out of the transaction, the refusal takes the rest along.
       */
      queue(trx: TenantTransaction, mail: QueuedMail): Promise<void>
      /** Something is in the outbox: look now and not in a while. Delays nobody. */
      nudge(): void
      stats(): { sent: number; failed: number; undeliverable: number }
    }
  }
}

const intervalMs = 5_000
/** One mail a lease, which is longer than a mail server may take: nobody else takes the mail while it is being sent. */
const batch = 1
const lease_seconds = 90
const smtpTimeoutMs = 20_000
/** Five tries over about ten hours: 1, 8, 64, 512 minutes apart. */
const maxAttempts = 5
const backoffSeconds = (attempt: number) => 60 * 8 ** (attempt - 1)
/** What the server said to: a refusal of anything earlier is about this installation and not about the mail. */
const commandsOfOneMail = ['RCPT TO', 'DATA']
const spentDetails: Record<SpentAllowance['spent'], string> = {
  sender: 'you have caused as many mails as one person may for now',
  unverified_sender: 'you have caused as many mails as a person may whose own e-mail address is not verified',
  recipient: 'this address has been sent as many mails as it may get for now'
}

/**
 * Sends what is in the outbox: over SMTP, or into the log in development. Any number of processes work on it together; a lease
 * keeps a mail with one of them, and a process that dies loses none.
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
    const transport =
      smtpUrl === undefined
        ? undefined
        : createTransport(smtpUrl, {
            connectionTimeout: smtpTimeoutMs,
            greetingTimeout: smtpTimeoutMs,
            socketTimeout: smtpTimeoutMs
          } as never)
    const counts = { sent: 0, failed: 0, undeliverable: 0 }
    let timer: NodeJS.Timeout | undefined
    let running: Promise<void> | undefined
    let again = false
    let closed = false

    if (!transport && nodeEnv === 'production') app.log.warn('SMTP_URL is not set: mails wait in the outbox')
    const enabled = transport !== undefined || nodeEnv === 'development'

    async function queue(trx: TenantTransaction, { to, ...mail }: QueuedMail): Promise<void> {
      const mailbox = mailboxOf(to)
      if (limited) {
        const refusal = await findSpentAllowance(trx, mailbox, limits)
        if (refusal) {
          const headers = { 'retry-after': String(refusal.wait_seconds) }
          throw rateLimited({ detail: spentDetails[refusal.spent], headers })
        }
      }
      await insertMail(trx, { ...mail, mailbox })
    }

    async function deliver(mail: Mail, messageId: string): Promise<void> {
      if (!transport) {
        app.log.info({ mail: { to: mail.to, subject: mail.subject, text: mail.text } }, 'mail')
        return
      }
      // an address object is never parsed: what it names is one mailbox, whatever characters are in it
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
      try {
        // the same for each try, so that a mail server can tell a repetition
        await deliver(compose(tenant_id, entry), `<${id}@${app.config.baseDomain}>`)
      } catch (err) {
        const reason = err instanceof Error ? err.message.slice(0, 500) : 'unknown'
        const facts = { err, tenant_id, outbox_id: id, attempt: entry.attempts }
        if (entry.attempts >= maxAttempts || isPermanent(err)) {
          counts.undeliverable++
          app.log.warn(facts, 'mail is undeliverable, and is not tried again')
          await app.gate.query(settings, markDropped, { tenant_id, id, reason })
        } else {
          counts.failed++
          app.log.warn(facts, 'mail could not be sent, and is tried again')
          const seconds = backoffSeconds(entry.attempts)
          await app.gate.query(settings, postpone, { tenant_id, id, seconds, reason })
        }
        return
      }
      counts.sent++
      await app.gate.query(settings, markSent, { tenant_id, id })
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

    async function run(): Promise<void> {
      do {
        again = false
        const due = await app.gate.query(systemScope, claimMail, { batch, lease_seconds })
        for (const { tenant_id, id } of due) await send(tenant_id, id)
        if (due.length === batch) again = true
      } while (again && !closed)
    }

    function work(): void {
      clearTimeout(timer)
      again = true
      running ??= run()
        .catch((err) => app.log.warn({ err }, 'the outbox could not be worked on'))
        .finally(() => {
          running = undefined
          if (closed) return
          timer = setTimeout(work, intervalMs)
          timer.unref()
        })
    }

    app.decorate('mail', {
      queue,
      nudge: () => {
        if (enabled && !closed) setImmediate(work)
      },
      stats: () => ({ ...counts })
    })
    app.metrics.counter('aggios_mails_total', 'Tries to send a mail of the outbox, by how they ended', () =>
      Object.entries(counts).map(([outcome, value]) => ({ labels: { outcome }, value }))
    )
    app.addHook('onReady', async () => {
      if (enabled) work()
    })
    app.addHook('preClose', async () => {
      closed = true
      clearTimeout(timer)
    })
    // once no request is under way any more
    app.addHook('onClose', async () => {
      await running
      transport?.close()
    })
  },
  { name: 'mail', dependencies: ['database', 'config', 'metrics'] }
)

/** The server has refused this mail or its recipient for good (5xx). */
function isPermanent(err: unknown): boolean {
  const { responseCode, command } = err as { responseCode?: number; command?: string }
  return responseCode !== undefined && responseCode >= 500 && commandsOfOneMail.includes(command ?? '')
}
