import fp from 'fastify-plugin'
import { systemScope } from '../../db/gate/gate-query.ts'
import {
  type AccountMailToSend,
  claimAccountMail,
  prepareAccountMail,
  settleAccountMail
} from '../../db/queries/accounts/mails.ts'
import { type LinkPurpose, linkPurposes, mailedLinkSeconds } from '../../src/auth/one-time-tokens.ts'
import { processDue } from '../../src/due-work.ts'
import { type AccountMailKind, accountMail, linkTo } from '../../src/mail/account-mails.ts'
import { agencyNewsKinds } from '../../src/mail/agency-news.ts'
import type { Mail } from '../../src/mail/layout.ts'
import { noticeKinds } from '../../src/mail/notices.ts'
import { nilUuid } from '../../src/uuids.ts'

/** Longer than the timeouts of SMTP, so that no other process sends the same mail meanwhile. */
const lease_seconds = 90
/** What agencies tell all their members, sent in one round, so that other mails come in between. */
const newsInRound = 20
/** The notices that a person gets in a day, and as many of each kind from each agency. A sender's allowance does not hold for them, because nobody asks for them. */
export const maxNotices = 20
const kinds: readonly string[] = [...linkPurposes, ...noticeKinds]

/**
 * Sends the mails about accounts: links to set a password or to confirm an address, and notices.
 *
 * Who gets a mail, and whether it is still wanted, is decided when it is sent. So a request for one does the same work
 * whether or not somebody has the address. A mail of a kind that this version does not know is left to newer processes.
 */
export default fp(
  async (app) => {
    const { appUrl, rateLimitMailTo } = app.config
    const limits = {
      most: rateLimitMailTo.max,
      window_seconds: rateLimitMailTo.window_ms / 1000,
      most_notices: maxNotices,
      reset_seconds: mailedLinkSeconds.reset,
      verification_seconds: mailedLinkSeconds.verification
    }

    app.mail.addSource(({ stopping }) => {
      let news = 0
      return processDue({
        batch: 1,
        stopping,
        async claim(batch) {
          const urgent = await claimOf(kinds, batch)
          if (urgent.length > 0) return urgent
          if (news++ < newsInRound) return claimOf(agencyNewsKinds, batch)
          app.mail.wake()
          return []
        },
        work: ({ id }) => send(id)
      })
    })

    const claimOf = (kinds: readonly string[], batch: number) =>
      app.gate.query(systemScope, claimAccountMail, { kinds, batch, lease_seconds })

    async function send(id: string): Promise<void> {
      const [entry] = await app.gate.query(systemScope, prepareAccountMail, { id, ...limits })
      if (!entry) return
      if (entry.refused !== null) {
        app.log.info({ mail_kind: entry.kind, limit: entry.refused }, 'a mail about an account was one too many')
        return
      }
      const { attempts, revision, agency_id: tenant_id } = entry
      // a later revision has another link, so it is another mail
      const attempt = await app.mail.attempt(() => compose(entry), { id: `${id}.${revision}`, attempts, tenant_id })
      await app.gate.query(systemScope, settleAccountMail, { id, revision, ...attempt })
    }

    function compose({ kind, link_id, agency_id, slug, ...entry }: AccountMailToSend): Mail {
      const purpose = kind as LinkPurpose
      const link = (id: string) => {
        const token = app.oneTimeTokens.issue(purpose, { tenant_id: agency_id ?? nilUuid, id, generation: 1 })
        return linkTo(appUrl, slug ?? undefined, purpose, token)
      }
      return accountMail({
        kind: kind as AccountMailKind,
        to: entry.address,
        locale: entry.locale ?? 'en',
        name: entry.name,
        agency: entry.agency ?? undefined,
        link: link_id === null ? undefined : link(link_id),
        expires_at: entry.expires_at ?? undefined,
        at: entry.asked_at,
        person: entry.detail.person,
        domain: entry.detail.domain,
        provider: entry.detail.provider,
        from: entry.detail.from === undefined ? undefined : new Date(entry.detail.from),
        ip: entry.detail.ip,
        user_agent: entry.detail.user_agent
      })
    }
  },
  { name: 'account-mails', dependencies: ['mail', 'database', 'config'] }
)
