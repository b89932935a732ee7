import fp from 'fastify-plugin'
import { createTransport } from 'nodemailer'
import { claimMail } from '../db/directory.ts'
import { type InvitationToSend, markDropped, markSent, postpone, readOutboxEntry } from '../db/outbox.ts'
import { invitationMail, type Mail } from '../src/mails.ts'

declare module 'fastify' {
  interface FastifyInstance {
    mail: {
      /** Something is in the outbox: look now and not in a while. Delays nobody. */
      nudge(): void
      stats(): { sent: number; failed: number }
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
const nobody = { tenant_id: null, user_id: null, request: '' }

/**
 * Sends what is in the outbox: over SMTP, or into the log in development. Any number of processes work on it together; a lease
 * keeps a mail with one of them, and a process that dies loses none.
 */
export default fp(
  async (app) => {
    const { appUrl, mailFrom, nodeEnv, smtpUrl } = app.config
    const transport =
      smtpUrl === undefined
        ? undefined
        : createTransport(smtpUrl, {
            connectionTimeout: smtpTimeoutMs,
            greetingTimeout: smtpTimeoutMs,
            socketTimeout: smtpTimeoutMs
          } as never)
    const counts = { sent: 0, failed: 0 }
    let timer: NodeJS.Timeout | undefined
    let running: Promise<void> | undefined
    let again = false
    let closed = false

    if (!transport && nodeEnv === 'production') app.log.warn('SMTP_URL is not set: mails wait in the outbox')
    const enabled = transport !== undefined || nodeEnv === 'development'

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
      const settings = { ...nobody, tenant_id }
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
        counts.failed++
        const reason = err instanceof Error ? err.message.slice(0, 500) : 'unknown'
        app.log.warn({ err, tenant_id, outbox_id: id, attempt: entry.attempts }, 'mail could not be sent')
        if (entry.attempts >= maxAttempts) await app.gate.query(settings, markDropped, { tenant_id, id, reason })
        else {
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
        inviter: entry.inviter ?? entry.tenant,
        role: entry.role,
        expires_at: entry.expires_at,
        link: `${appUrl.replaceAll('{slug}', slug)}/invitations/accept?token=${token}`
      })
    }

    async function run(): Promise<void> {
      do {
        again = false
        const due = await app.gate.query(nobody, claimMail, { batch, lease_seconds })
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
