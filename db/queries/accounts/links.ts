import { sql } from 'kysely'
import type { LinkPurpose } from '../../../src/auth/one-time-tokens.ts'
import type { TenantTransaction } from '../../gate/gate.ts'
import { statement } from '../../gate/statement.ts'

/** Finds whose link it is. No row when it can't be used. */
export const findAccountLink = statement(
  'find_account_link',
  (_, $: { id: string; purpose: LinkPurpose }) => sql<{ user_id: string; email: string; name: string }>`
  select user_id, email, name from find_account_link(${$.id}, ${$.purpose})`
)

/**
 * Uses up a link of the gate's user. Of several callers one gets the version of the password, and the account can't
 * change until its transaction ends. Resolves to undefined when the link can't be used.
 */
export async function useAccountLink(
  trx: TenantTransaction,
  { id, purpose }: { id: string; purpose: LinkPurpose }
): Promise<number | undefined> {
  const { rows } = await sql<{ version: number | null }>`
    select use_account_link(${id}, ${purpose}) as version`.execute(trx)
  return rows[0]?.version ?? undefined
}

/**
 * Makes the two links with which the gate's user changes their address, and the mails that carry them. Does not look
 * whether somebody has the address. Call `lockPerson` first: it writes links before mails.
 */
export async function requestEmailChange(
  trx: TenantTransaction,
  change: { email: string; old_mailbox: string; new_mailbox: string; tenant_id: string; seconds: number }
): Promise<void> {
  const { email, old_mailbox, new_mailbox, tenant_id, seconds } = change
  await sql`select request_email_change(${email}, ${old_mailbox}, ${new_mailbox}, ${tenant_id},
    make_interval(secs => ${seconds}))`.execute(trx)
}

/**
 * Confirms a change of the address from one of the two mailboxes. `confirmed`: from the first. `changed`: from the second,
 * and the account has the address. `unusable`: the link can't be used, or somebody else has the address by now.
 */
export async function confirmEmailChange(
  trx: TenantTransaction,
  { id, purpose }: { id: string; purpose: LinkPurpose }
): Promise<'confirmed' | 'changed' | 'unusable'> {
  const { rows } = await sql<{ outcome: 'confirmed' | 'changed' | 'unusable' }>`
    select confirm_email_change(${id}, ${purpose}) as outcome`.execute(trx)
  return rows[0]?.outcome ?? 'unusable'
}

/** Records an event of the gate's user in each of their agencies. */
export async function recordMyEvent(trx: TenantTransaction, action: string): Promise<void> {
  await sql`select record_my_event(${action}, null)`.execute(trx)
}
