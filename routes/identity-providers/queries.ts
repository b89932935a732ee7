import { sql } from 'kysely'
import type { TenantTransaction } from '../../db/gate/gate.ts'
import type { NewcomerRole, ProviderRow } from '../../db/queries/sign-in/identity-providers.ts'

/** What is written of a provider, with its secret encrypted. */
export type ProviderValues = {
  name: string
  client_id: string
  client_secret: Buffer
  key_id: string
  email_claim: string
  name_claim: string
  trust_email: boolean
  newcomer_role: NewcomerRole | null
}

const columns = sql`id, name, issuer, client_id, client_secret, key_id, email_claim, name_claim, trust_email, newcomer_role,
  version, created_at, updated_at`

/**
 * Stores a provider in one of the ten places of the tenant. Resolves to undefined when all are taken, when the tenant has
 * a provider of this issuer, or when another request takes the place at the same moment.
 */
export async function insertProvider(
  trx: TenantTransaction,
  provider: ProviderValues & { id: string; issuer: string }
): Promise<ProviderRow | undefined> {
  const { id, name, issuer, client_id, client_secret, key_id } = provider
  const { email_claim, name_claim, trust_email, newcomer_role } = provider
  const { rows } = await sql<ProviderRow>`
    insert into identity_providers (id, place, name, issuer, client_id, client_secret, key_id, email_claim, name_claim, trust_email,
      newcomer_role)
    select ${id}::uuid, free.place, ${name}::text, ${issuer}::text, ${client_id}::text, ${client_secret}::bytea, ${key_id}::text,
      ${email_claim}::text, ${name_claim}::text, ${trust_email}::boolean, ${newcomer_role}::text
    from generate_series(1, 10) as free (place)
    where not exists (
      select from identity_providers p where p.tenant_id = current_tenant_id() and p.place = free.place)
    order by free.place limit 1
    on conflict do nothing
    returning ${columns}`.execute(trx)
  return rows[0]
}

/** Reads a provider and locks it until the transaction ends. */
export async function lockProvider(trx: TenantTransaction, id: string): Promise<ProviderRow | undefined> {
  const { rows } = await sql<ProviderRow>`
    select ${columns} from identity_providers where id = ${id} for update`.execute(trx)
  return rows[0]
}

export async function updateProvider(
  trx: TenantTransaction,
  id: string,
  values: ProviderValues
): Promise<ProviderRow | undefined> {
  const { name, client_id, client_secret, key_id, email_claim, name_claim, trust_email, newcomer_role } = values
  const { rows } = await sql<ProviderRow>`
    update identity_providers set name = ${name}, client_id = ${client_id}, client_secret = ${client_secret}, key_id = ${key_id},
      email_claim = ${email_claim}, name_claim = ${name_claim}, trust_email = ${trust_email}, newcomer_role = ${newcomer_role},
      version = version + 1, updated_at = now()
    where id = ${id} returning ${columns}`.execute(trx)
  return rows[0]
}

/**
 * Removes a locked provider with its identities, and ends and publishes the sessions that were opened through it. A
 * session that is being opened waits for the lock, and then is refused.
 */
export async function deleteProvider(trx: TenantTransaction, id: string, tokenSeconds: number): Promise<number> {
  await sql`delete from identity_providers where id = ${id}`.execute(trx)
  const { rows } = await sql<{ ended: number }>`
    with ended as (
      update sessions set revoked_at = now()
      where tenant_id = current_tenant_id() and provider_id = ${id} and revoked_at is null
      returning id
    ), published as (
      insert into changes (kind, subject, expires_at)
      select 'session', id, now() + make_interval(secs => ${tokenSeconds}) from ended
    )
    select count(*)::int as ended from ended`.execute(trx)
  return rows[0]?.ended ?? 0
}
