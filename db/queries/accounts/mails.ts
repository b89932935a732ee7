import { sql } from 'kysely'
import type { Role } from '../../../src/auth/roles.ts'
import type { AgencyNewsKind } from '../../../src/mail/agency-news.ts'
import type { Locale } from '../../../src/mail/layout.ts'
import type { NoticeKind } from '../../../src/mail/notices.ts'
import type { TenantTransaction } from '../../gate/gate.ts'
import { statement } from '../../gate/statement.ts'

/*
 * Mails about accounts: db/migrations/0017_recovery.ts. They belong to no tenant.
 */

/**
 * Asks for a mail with which whoever has the address can set a new password. Writes the same whoever has it; at most one
 * such mail of an address waits.
 */
export const requestPasswordReset = statement(
  'request_password_reset',
  (_, $: { email: string; mailbox: string; tenant_id: string | null; detail: string | null }) => sql<{ done: unknown }>`
  select request_password_reset(${$.email}, ${$.mailbox}, ${$.tenant_id}, ${$.detail}::jsonb) as done`,
  { writes: true }
)

/** Asks for a mail with which the gate's user can verify their address. Does nothing when it is verified. */
export const requestVerification = statement(
  'request_verification',
  (_, $: { mailbox: string; tenant_id: string }) => sql<{ done: unknown }>`
  select request_verification(${$.mailbox}, ${$.tenant_id}) as done`,
  { writes: true }
)

/** Tells the gate's user what happened to their account, in the transaction in which it happens. */
export async function queueNotice(trx: TenantTransaction, kind: NoticeKind): Promise<void> {
  await sql`select queue_notice(${kind}, null)`.execute(trx)
}

/** Tells everybody in the gate's tenant who has one of the roles, in the transaction of what has happened. */
export async function queueAgencyNotice(
  trx: TenantTransaction,
  kind: NoticeKind,
  detail: { domain?: string },
  roles: readonly Role[]
): Promise<void> {
  await sql`select queue_agency_notice(${kind}, ${JSON.stringify(detail)}::jsonb, ${roles}::text[])`.execute(trx)
}

/** Tells all members of the gate's tenant what it demands of them from now on, in the transaction of the change. */
export async function queueAgencyNews(
  trx: TenantTransaction,
  kind: AgencyNewsKind,
  detail: { provider?: string; from?: string }
): Promise<void> {
  await sql`select queue_agency_news(${kind}, ${JSON.stringify(detail)}::jsonb)`.execute(trx)
}

/** Claims the next mails of these kinds, leased to the caller for `lease_seconds`. */
export const claimAccountMail = statement(
  'claim_account_mail',
  (_, $: { kinds: readonly string[]; batch: number; lease_seconds: number }) => sql<{ id: string }>`
  select id from claim_account_mail(${$.kinds}, ${$.batch}, make_interval(secs => ${$.lease_seconds})) as id`,
  { writes: true }
)

export type AccountMailToSend = {
  kind: string
  address: string
  name: string
  /** The agency to whose host the link leads. Null when the person is a member of no active one. */
  agency_id: string | null
  agency: string | null
  slug: string | null
  locale: Locale | null
  link_id: string | null
  expires_at: Date | null
  attempts: number
  revision: number
  detail: { ip?: string; user_agent?: string; domain?: string; person?: string; provider?: string; from?: string }
  asked_at: Date
  /** The limit because of which the mail is not sent. */
  refused: 'recipient' | 'notices' | null
}

/** Decides whether a mail is still wanted, and reads what its text needs. No row when it is not. */
export const prepareAccountMail = statement(
  'prepare_account_mail',
  (
    _,
    $: {
      id: string
      most: number
      window_seconds: number
      most_notices: number
      reset_seconds: number
      verification_seconds: number
    }
  ) => sql<AccountMailToSend>`
  select kind, address, name, agency_id, agency, slug, locale, link_id, expires_at, attempts, revision, detail, asked_at, refused
  from prepare_account_mail(${$.id}, ${$.most}, make_interval(secs => ${$.window_seconds}), ${$.most_notices},
    make_interval(secs => ${$.reset_seconds}), make_interval(secs => ${$.verification_seconds}))`,
  { writes: true }
)

/** Records how an attempt ended. Does nothing when the mail has been asked for anew meanwhile. */
export const settleAccountMail = statement(
  'settle_account_mail',
  (
    _,
    $: {
      id: string
      revision: number
      outcome: 'sent' | 'dropped' | 'postponed'
      reason: string | null
      pause_seconds: number
    }
  ) => sql<{ done: unknown }>`
  select settle_account_mail(${$.id}, ${$.revision}, ${$.outcome}, ${$.reason}, make_interval(secs => ${$.pause_seconds})) as done`,
  { writes: true }
)

/** Removes old mails, and links that can no longer be used. */
export const sweepAccountMails = statement(
  'sweep_account_mails',
  (_, $: { batch: number }) => sql<{ removed: number }>`select sweep_account_mails(${$.batch})::int as removed`,
  { writes: true }
)
