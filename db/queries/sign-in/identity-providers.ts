import { sql } from 'kysely'
import type { TenantTransaction } from '../../gate/gate.ts'
import { statement } from '../../gate/statement.ts'

/*
 * The own providers of tenants.
 */

export type NewcomerRole = 'admin' | 'member' | 'viewer'

export type ProviderRow = {
  id: string
  name: string
  issuer: string
  client_id: string
  client_secret: Buffer
  key_id: string
  email_claim: string
  name_claim: string
  trust_email: boolean
  newcomer_role: NewcomerRole | null
  version: number
  created_at: Date
  updated_at: Date
}

const columns = sql`id, name, issuer, client_id, client_secret, key_id, email_claim, name_claim, trust_email, newcomer_role,
  version, created_at, updated_at`

/** Lists the providers of a tenant, at most ten, the oldest first. */
export const listProviders = statement(
  'list_providers',
  (_, $: { tenant_id: string }) => sql<ProviderRow & { enforced: boolean }>`
  select ${columns}, enforced_from is not null as enforced from identity_providers where tenant_id = ${$.tenant_id} order by id`
)

export const readProvider = statement(
  'read_provider',
  (_, $: { tenant_id: string; id: string }) => sql<ProviderRow>`
  select ${columns} from identity_providers where tenant_id = ${$.tenant_id} and id = ${$.id}`
)

/** Stores the secret encrypted anew, unless it was changed meanwhile. */
export const resealProvider = statement(
  'reseal_provider',
  (_, $: { tenant_id: string; id: string; before: Buffer; secret: Buffer; key_id: string }) => sql<never>`
  update identity_providers set client_secret = ${$.secret}, key_id = ${$.key_id}
  where tenant_id = ${$.tenant_id} and id = ${$.id} and client_secret = ${$.before}`,
  { writes: true }
)

/** The keys that stored secrets of providers need. */
export const providerKeysInUse = statement(
  'provider_keys_in_use',
  (_, __: Record<never, never>) => sql<{ id: string }>`select id from provider_keys_in_use() as id`
)

/**
 * The role of somebody who comes through a provider for the first time, if this address may become a member so: its
 * domain is proven to be the tenant's. Locks the provider, so that it allows it until the transaction ends.
 */
export async function findNewcomerRole(
  trx: TenantTransaction,
  { id, email }: { id: string; email: string }
): Promise<NewcomerRole | undefined> {
  const { rows } = await sql<{ role: NewcomerRole }>`
    select p.newcomer_role as role from identity_providers p
    where p.tenant_id = current_tenant_id() and p.id = ${id} and p.newcomer_role is not null and tenant_has_domain(${email})
    for share`.execute(trx)
  return rows[0]?.role
}
