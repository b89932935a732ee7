import { sql } from 'kysely'
import { tenantTag } from '../../src/http/etags.ts'
import type { TenantTransaction } from '../gate/gate.ts'
import { statement } from '../gate/statement.ts'

/** Reads a tenant as its members see it. */
export const readTenant = statement(
  'read_tenant',
  (db, $: { tenant_id: string }) =>
    db
      .selectFrom('tenants as t')
      .where('t.id', '=', $.tenant_id)
      .select([
        't.id',
        't.name',
        't.slug',
        't.status',
        't.plan',
        't.settings',
        't.logo_url',
        't.created_at',
        't.updated_at',
        't.version',
        sql<number>`(select count(*)::int from memberships m where m.tenant_id = t.id)`.as('members'),
        sql<number>`coalesce((select u.bytes from storage_usage u where u.tenant_id = t.id), 0)::float8`.as(
          'storage_bytes'
        )
      ]),
  { remembered: { reads: ['memberships', 'storage_usage', 'tenants'], tag: tenantTag } }
)

/**
 * Inserts a tenant. The gate must already be set to the new tenant's id. Resolves to false, with nothing written, when the slug
 * is taken.
 */
export async function insertTenant(
  trx: TenantTransaction,
  tenant: { id: string; slug: string; name: string }
): Promise<boolean> {
  const inserted = await trx
    .insertInto('tenants')
    .values(tenant)
    .onConflict((conflict) => conflict.column('slug').doNothing())
    .returning('id')
    .executeTakeFirst()
  return inserted !== undefined
}

/**
 * Reads the seconds until the gate's user may create another tenant under `daily_limit`; null means now. Locks the user's
 * count until the transaction ends, so run it before the insert.
 */
export const foundingWait = statement(
  'founding_wait',
  (_, $: { daily_limit: number }) =>
    sql<{ seconds: number | null }>`select founding_wait(${$.daily_limit}, interval '1 day') as seconds`,
  { writes: true }
)

/** Makes the gate's user the owner of the gate's tenant. */
export async function insertOwner(trx: TenantTransaction, userId: string): Promise<void> {
  await trx.insertInto('memberships').values({ user_id: userId, role: 'owner', last_used_at: sql`now()` }).execute()
}
