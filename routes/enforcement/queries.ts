import { sql } from 'kysely'
import type { TenantTransaction } from '../../db/gate/gate.ts'
import { statement } from '../../db/gate/statement.ts'

export type Enforcement = {
  provider_id: string | null
  enforced_from: Date | null
  break_glass_owners: { user_id: string; ready: boolean }[]
}

/** The provider through which people have to come in, if there is one, and the owners who may come in otherwise. */
export const readEnforcement = statement(
  'read_enforcement',
  (_, $: { tenant_id: string }) => sql<Enforcement>`
  select p.id as provider_id, p.enforced_from,
    (select coalesce(jsonb_agg(jsonb_build_object('user_id', b.user_id, 'ready', b.ready)), '[]') from break_glass_owners() b)
      as break_glass_owners
  from (select) as one
  left join identity_providers p on p.tenant_id = ${$.tenant_id} and p.enforced_from is not null`,
  // it locks rows for a moment
  { writes: true }
)

/** What an agency lacks before it may demand its provider. */
export type Lack = 'proven_domain' | 'owner_sign_in' | 'break_glass_owner'

/**
 * Finds what is missing. The break-glass owners are locked until the transaction ends, so that none loses what makes them
 * ready meanwhile. `owner_sign_in`: no owner came in through the provider within a day, so nobody knows that it works.
 */
export async function findLacks(trx: TenantTransaction, tenantId: string, providerId: string): Promise<Lack[]> {
  const { rows } = await sql<Record<Lack, boolean>>`
    select
      exists (select from break_glass_owners() b where b.ready) as break_glass_owner,
      exists (select from tenant_domains d where d.tenant_id = ${tenantId} and d.verified_at is not null) as proven_domain,
      exists (
        select from sessions s join memberships m on m.tenant_id = ${tenantId} and m.user_id = s.user_id
        where s.tenant_id = ${tenantId} and s.provider_id = ${providerId} and m.role = 'owner'
          and s.provider_at > now() - interval '1 day') as owner_sign_in`.execute(trx)
  const found = rows[0]
  return (['proven_domain', 'owner_sign_in', 'break_glass_owner'] as const).filter((each) => !found?.[each])
}

/**
 * Locks the providers of the agency until the transaction ends. Resolves to the one that is demanded (`before`), and to the name
 * of the given one, which is null when there is none. Without a given one it is the name of the one that is demanded.
 */
export async function lockProviders(
  trx: TenantTransaction,
  tenantId: string,
  providerId: string | null
): Promise<{ before: string | null; name: string | null }> {
  const { rows } = await sql<{ id: string; name: string; enforced: boolean }>`
    select id, name, enforced_from is not null as enforced from identity_providers
    where tenant_id = ${tenantId} order by id for no key update`.execute(trx)
  const before = rows.find(({ enforced }) => enforced)?.id ?? null
  return { before, name: rows.find(({ id }) => id === (providerId ?? before))?.name ?? null }
}

/** Demands the provider from now on, and no other. Null: none any more. */
export async function setEnforced(trx: TenantTransaction, tenantId: string, providerId: string | null): Promise<void> {
  await sql`
    update identity_providers set enforced_from = null
    where tenant_id = ${tenantId} and enforced_from is not null and id is distinct from ${providerId}::uuid`.execute(
    trx
  )
  if (providerId === null) return
  await sql`
    update identity_providers set enforced_from = now()
    where tenant_id = ${tenantId} and id = ${providerId} and enforced_from is null`.execute(trx)
}

/** The break-glass owners that an agency may have. */
export const maxBreakGlassOwners = 20

/**
 * Makes an owner a break-glass owner, or takes that from them. `not_found`: there is no such owner. `unready`: they have no
 * password or no second factor. `full`: there are too many. The caller rolls back after these two.
 */
export async function setBreakGlass(
  trx: TenantTransaction,
  userId: string,
  breakGlass: boolean
): Promise<'changed' | 'unchanged' | 'not_found' | 'unready' | 'full'> {
  const found = await sql<{ break_glass: boolean; role: string }>`
    select break_glass, role from memberships where user_id = ${userId} for no key update`.execute(trx)
  const [member] = found.rows
  if (!member || (breakGlass && member.role !== 'owner')) return 'not_found'
  if (member.break_glass === breakGlass) return 'unchanged'
  await sql`update memberships set break_glass = ${breakGlass} where user_id = ${userId}`.execute(trx)
  if (!breakGlass) return 'changed'
  const { rows } = await sql<{
    user_id: string
    ready: boolean
  }>`select user_id, ready from break_glass_owners()`.execute(trx)
  if (rows.length > maxBreakGlassOwners) return 'full'
  return rows.some(({ user_id, ready }) => user_id === userId && ready) ? 'changed' : 'unready'
}
