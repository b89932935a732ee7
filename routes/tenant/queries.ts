import { sql } from 'kysely'
import type { TenantTransaction } from '../../db/gate.ts'
import type { TenantSettings } from '../../db/tables.ts'

/** What a change is compared with; the tenant's row stays locked until the transaction ends. */
export function lockTenant(trx: TenantTransaction, tenantId: string) {
  return trx
    .selectFrom('tenants')
    .where('id', '=', tenantId)
    .select(['id', 'slug', 'name', 'settings', 'status', 'version'])
    .forNoKeyUpdate()
    .executeTakeFirst()
}

/**
 * Writes the new state, and tells every process to forget what it remembers of this tenant. The entry lives for a minute:
 * long after each has read it, or has given up serving.
 */
export async function updateTenant(
  trx: TenantTransaction,
  tenant: { id: string; status: string },
  change: { name: string; settings: TenantSettings }
): Promise<void> {
  await trx
    .updateTable('tenants')
    .set({
      name: change.name,
      settings: JSON.stringify(change.settings),
      version: sql`version + 1`,
      updated_at: sql`now()`
    })
    .where('id', '=', tenant.id)
    .execute()
  await trx
    .insertInto('revocations')
    .values({ kind: 'tenant', subject: tenant.id, state: tenant.status, expires_at: sql`now() + interval '1 minute'` })
    .execute()
}
