import { sql } from 'kysely'
import type { TenantTransaction } from '../../db/gate/gate.ts'
import type { TenantSettings } from '../../db/gate/tables.ts'
import { changeTenant } from '../../db/queries/tenant-status.ts'

/** Reads the tenant and locks its row until the transaction ends. */
export function lockTenant(trx: TenantTransaction, tenantId: string) {
  return trx
    .selectFrom('tenants')
    .where('id', '=', tenantId)
    .select(['id', 'slug', 'name', 'settings', 'status', 'version'])
    .forNoKeyUpdate()
    .executeTakeFirst()
}

/** Writes the name and the settings, and makes every process drop its cached copy of the tenant. */
export function updateTenant(
  trx: TenantTransaction,
  tenantId: string,
  { name, settings }: { name: string; settings: TenantSettings }
): Promise<void> {
  return changeTenant(trx, tenantId, sql`name = ${name}, settings = ${JSON.stringify(settings)}`)
}
