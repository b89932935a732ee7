import { sql } from 'kysely'
import { queryIn, type TenantTransaction } from '../../gate/gate.ts'
import { statement } from '../../gate/statement.ts'

/*
 * Identities at providers: db/migrations/0019_identities.ts. All statements but the last ones call functions that
 * `aggios_directory` owns, because identities belong to people and not to tenants.
 */

/** Uses something up, once in all processes. It is remembered for `seconds`, which must be longer than it is good. */
export const useOnce = statement(
  'use_once',
  (_, $: { id: string; seconds: number }) => sql<{ used: boolean }>`
  select use_once(${$.id}, make_interval(secs => ${$.seconds})) as used`,
  { writes: true }
)

/**
 * Notes which session was opened by a code, whose use is marked by its id. False when the code was used again meanwhile: the
 * transaction must not be committed then. True as well for an id that marks nothing.
 */
export async function noteSessionOfCode(trx: TenantTransaction, code: string, session: string): Promise<boolean> {
  const { rows } = await sql<{ noted: boolean }>`select note_session_of_mark(${code}, ${session}) as noted`.execute(trx)
  return rows[0]?.noted ?? false
}

/**
 * Notes that a used code is used again, so that it opens no session any more. Resolves to the session that it has opened, if
 * there is one, and to undefined when the code was not used yet.
 */
export async function replayCode(
  trx: TenantTransaction,
  code: string
): Promise<{ session_id: string | null } | undefined> {
  const { rows } = await sql<{ session_id: string | null }>`select session_id from replay_mark(${code})`.execute(trx)
  return rows[0]
}

export type IdentityRow = {
  id: string
  user_id: string
  email: string
  password_version: number
  disabled_at: Date | null
}

/** Finds whose identity it is. `own`: one of the gate's tenant, at its own provider. */
export const findUserIdentity = statement(
  'find_user_identity',
  (_, $: { own: boolean; issuer: string; subject: string }) => sql<IdentityRow>`
  select id, user_id, email, password_version, disabled_at
  from find_user_identity(${$.own}, ${$.issuer}, ${$.subject})`
)

export type NewIdentity = {
  id: string
  provider: string
  own: boolean
  issuer: string
  subject: string
  email: string | null
}

export type LinkingOutcome = 'linked' | 'taken' | 'full' | 'gone'

/**
 * Links an identity to the gate's user. `taken`: somebody has it already. `full`: there is no room for it. `gone`: the tenant's
 * provider was removed meanwhile, or the person is no member.
 */
export async function linkIdentity(
  trx: TenantTransaction,
  { id, provider, own, issuer, subject, email }: NewIdentity
): Promise<LinkingOutcome> {
  const { rows } = await sql<{ outcome: LinkingOutcome }>`
    select link_my_identity(${id}, ${provider}, ${own}, ${issuer}, ${subject}, ${email}) as outcome`.execute(trx)
  return rows[0]?.outcome ?? 'taken'
}

/** Notes a use of an identity of the gate's user. False when it is no longer linked. */
export async function touchIdentity(trx: TenantTransaction, id: string, email: string | null): Promise<boolean> {
  const { rows } = await sql<{ touched: boolean }>`select touch_my_identity(${id}, ${email}) as touched`.execute(trx)
  return rows[0]?.touched ?? false
}

export type MyIdentity = {
  id: string
  provider: string
  agency_id: string | null
  name: string | null
  email: string | null
  created_at: Date
  last_used_at: Date | null
}

/** Lists the identities of the gate's user: at most twenty, and one at each own provider of their tenants. */
export const myIdentities = statement(
  'my_identities',
  (_, __: Record<never, never>) => sql<MyIdentity>`
  select id, provider, agency_id, name, email, created_at, last_used_at from my_identities()`
)

export type Unlinking = { outcome: 'unlinked' | 'last' | 'unknown'; provider: string; agency_id: string | null }

/** Removes an identity of the gate's user. `last`: it stays, because it is the only way in. */
export async function unlinkIdentity(trx: TenantTransaction, id: string): Promise<Unlinking> {
  const { rows } = await sql<Unlinking>`select outcome, provider, agency_id from unlink_my_identity(${id})`.execute(trx)
  return rows[0] as Unlinking
}

/** Records what has happened to an identity of the gate's user, in each of their agencies. */
export async function recordIdentityEvent(trx: TenantTransaction, action: string, provider: string): Promise<void> {
  await sql`select record_my_event(${action}, jsonb_build_object('provider', ${provider}::text))`.execute(trx)
}

/** Removes all identities of the gate's user. Resolves to how many there were. */
export async function forgetIdentities(trx: TenantTransaction): Promise<number> {
  const { rows } = await sql<{ count: number }>`select forget_my_identities() as count`.execute(trx)
  return rows[0]?.count ?? 0
}

/** Whether the gate's user has verified their address. */
export async function isVerified(trx: TenantTransaction): Promise<boolean> {
  const { rows } = await sql`
    select from users where id = current_user_id() and email_verified_at is not null`.execute(trx)
  return rows.length === 1
}

/** Reads through which own provider of the tenant a session was opened. `provider_id` is null for all other sessions. */
export const findSessionProvider = statement(
  'find_session_provider',
  (_, $: { tenant_id: string; session_id: string }) => sql<{ provider_id: string | null }>`
  select provider_id from sessions where tenant_id = ${$.tenant_id} and id = ${$.session_id}`
)

/** As `findSessionProvider`, and whether the gate's user is in another tenant as well. */
export const findSessionReach = statement(
  'find_session_reach',
  (_, $: { tenant_id: string; session_id: string }) => sql<{ provider_id: string | null; elsewhere: boolean }>`
  select provider_id, provider_id is not null and exists (select from my_tenants() t where t.id <> ${$.tenant_id}) as elsewhere
  from sessions where tenant_id = ${$.tenant_id} and id = ${$.session_id}`
)

/**
 * Whether the tenant's own provider may vouch for an address: its domain is proven to be the tenant's, or the tenant demands
 * this provider, so that its guests have no other way in.
 */
export const mayVouchFor = statement(
  'may_vouch_for',
  (_, $: { provider: string; email: string }) => sql<{ allowed: boolean }>`
  select tenant_has_domain(${$.email}) or exists (
    select from identity_providers p
    where p.tenant_id = current_tenant_id() and p.id = ${$.provider} and p.enforced_from is not null) as allowed`
)

/**
 * Whether an identity at the tenant's own provider may be linked to the gate's user without asking, whose address is locked
 * then. The person is a member, the address is verified, and it is of a domain that is the tenant's. Where the tenant demands
 * this provider, any verified address of a member will do, because its guests have no other way in.
 */
export async function isLinkable(
  trx: TenantTransaction,
  { email, provider }: { email: string; provider: string }
): Promise<boolean> {
  const { rows } = await sql`
    select from memberships m join users u on u.id = m.user_id
    where m.tenant_id = current_tenant_id() and m.user_id = current_user_id() and u.email = ${email}
      and u.email_verified_at is not null and u.disabled_at is null
    for no key update of u`.execute(trx)
  const [verdict] = await queryIn(trx, mayVouchFor, { email, provider })
  return rows.length === 1 && verdict?.allowed === true
}
