import { sql } from 'kysely'
import type { TenantTransaction } from '../../db/gate/gate.ts'
import { statement } from '../../db/gate/statement.ts'
import { type Domain, domainColumns } from '../../db/queries/sign-in/domains.ts'

/** The domains that an agency may have. */
export const maxDomains = 20

/** By name. */
export const listDomains = statement(
  'list_domains',
  (_, $: { tenant_id: string; after: string; limit: number }) => sql<Domain>`
  select ${domainColumns} from tenant_domains
  where tenant_id = ${$.tenant_id} and name > ${$.after} order by name limit ${$.limit}`
)

export const readDomain = statement(
  'read_domain',
  (_, $: { tenant_id: string; name: string }) => sql<Domain>`
  select ${domainColumns} from tenant_domains where tenant_id = ${$.tenant_id} and name = ${$.name}`
)

/** Adds a domain, which is not proven yet. `full`: the agency has as many as it may have. `known`: it has this one. */
export async function insertDomain(
  trx: TenantTransaction,
  tenantId: string,
  name: string
): Promise<Domain | 'full' | 'known'> {
  // of two requests at the same moment one waits for the other, so that the count is right
  await sql`select from tenants where id = ${tenantId} for no key update`.execute(trx)
  const count = await sql<{ n: number }>`
    select count(*)::int as n from tenant_domains where tenant_id = ${tenantId}`.execute(trx)
  if ((count.rows[0]?.n ?? 0) >= maxDomains) return 'full'
  const { rows } = await sql<Domain>`
    insert into tenant_domains (name) values (${name}) on conflict (tenant_id, name) do nothing
    returning ${domainColumns}`.execute(trx)
  return rows[0] ?? 'known'
}

/** Resolves to false when there is no such domain. */
export async function deleteDomain(trx: TenantTransaction, name: string): Promise<boolean> {
  const { rows } = await sql`delete from tenant_domains where name = ${name} returning name`.execute(trx)
  return rows.length > 0
}
