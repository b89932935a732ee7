import { sql } from 'kysely'
import type { InvitableRole } from '../../src/auth/roles.ts'
import type { Rate } from '../../src/config/value-readers.ts'
import type { Locale } from '../../src/mail/layout.ts'
import type { TenantTransaction } from '../gate/gate.ts'
import { statement } from '../gate/statement.ts'
import type { MailKind } from '../gate/tables.ts'
import { inviterMayInvite } from './members.ts'

/** Queues a mail in the transaction of the change it is about. One mail is sent for each generation of the token. */
export async function insertMail(
  trx: TenantTransaction,
  mail: { kind: MailKind; subject_id: string; generation: number; mailbox: string }
): Promise<void> {
  await trx.insertInto('outbox').values(mail).execute()
}

export type SpentAllowance = { spent: 'sender' | 'unverified_sender' | 'recipient'; wait_seconds: number }

/**
 * Resolves to the limit that one more mail from the gate's user to this mailbox would exceed, counted over all tenants, or to
 * undefined.
 *
 * Holds a lock on the user and the mailbox until the transaction ends, so that two callers can't both get the last mail.
 */
export async function findSpentAllowance(
  trx: TenantTransaction,
  mailbox: string,
  limits: { recipient: Rate; sender: Rate; unverified: Rate }
): Promise<SpentAllowance | undefined> {
  const { recipient, sender, unverified } = limits
  const seconds = ({ window_ms }: Rate) => sql`make_interval(secs => ${window_ms / 1000})`
  const { rows } = await sql<SpentAllowance>`
    select spent, wait_seconds from mail_allowance(${mailbox}, ${recipient.max}, ${seconds(recipient)},
      ${sender.max}, ${seconds(sender)}, ${unverified.max}, ${seconds(unverified)})`.execute(trx)
  return rows[0]
}

export type InvitationToSend = {
  kind: MailKind
  subject_id: string
  generation: number
  attempts: number
  /** False when the invitation was revoked, used, resent or has expired since the mail was queued. */
  wanted: boolean
  email: string
  role: InvitableRole
  expires_at: Date
  tenant: string
  slug: string
  locale: Locale | null
  inviter: string | null
}

/** Reads everything that the text of a mail needs. */
export const readOutboxEntry = statement(
  'read_outbox_entry',
  (_, $: { tenant_id: string; id: string }) => sql<InvitationToSend>`
  select o.kind, o.subject_id, o.generation, o.attempts,
    coalesce(i.accepted_at is null and i.generation = o.generation and i.expires_at > now()
      and ${inviterMayInvite('i')}, false)
      and t.status = 'active' as wanted,
    i.email, i.role, i.expires_at, t.name as tenant, t.slug, t.settings ->> 'locale' as locale, u.name as inviter
  from outbox o
  join tenants t on t.id = o.tenant_id
  left join invitations i on i.tenant_id = o.tenant_id and i.id = o.subject_id
  left join memberships m on m.tenant_id = o.tenant_id and m.user_id = i.invited_by
  left join users u on u.id = m.user_id
  where o.tenant_id = ${$.tenant_id} and o.id = ${$.id} and o.sent_at is null and o.dropped_at is null`
)

export const markSent = statement(
  'mark_sent',
  (_, $: { tenant_id: string; id: string }) => sql<never>`
  update outbox set sent_at = now() where tenant_id = ${$.tenant_id} and id = ${$.id}`,
  { writes: true }
)

export const markDropped = statement(
  'mark_dropped',
  (_, $: { tenant_id: string; id: string; reason: string }) => sql<never>`
  update outbox set dropped_at = now(), last_error = ${$.reason} where tenant_id = ${$.tenant_id} and id = ${$.id}`,
  { writes: true }
)

export const postpone = statement(
  'postpone',
  (_, $: { tenant_id: string; id: string; seconds: number; reason: string }) => sql<never>`
  update outbox set due_at = now() + make_interval(secs => ${$.seconds}), last_error = ${$.reason}
  where tenant_id = ${$.tenant_id} and id = ${$.id}`,
  { writes: true }
)
