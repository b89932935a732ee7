import { sql } from 'kysely'
import type { TenantTransaction } from '../../db/gate/gate.ts'
import { changeTenant } from '../../db/queries/tenant-status.ts'
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

/** Writes the new state, and tells every process to forget what it remembers of this tenant. */
export function updateTenant(
  trx: TenantTransaction,
  tenantId: string,
  { name, settings }: { name: string; settings: TenantSettings }
): Promise<void> {
  return changeTenant(trx, tenantId, sql`name = ${name}, settings = ${JSON.stringify(settings)}`)
}
