import { sql } from 'kysely'
import { recordAudit } from './audit.ts'
import type { TenantTransaction } from './gate.ts'
import type { TenantStatus } from './tables.ts'

/**
 * Suspends or resumes the gate's tenant, tells every process, and records it. With `purgeAfter` (seconds) the tenant is
 * removed for good once that time is over; resuming it before then keeps it.
 */
export async function setTenantStatus(
  trx: TenantTransaction,
  tenantId: string,
  {
    status,
    action,
    tokenSeconds,
    purgeAfter
  }: {
    status: TenantStatus
    action: 'tenant.suspended' | 'tenant.resumed' | 'tenant.deleted'
    tokenSeconds: number
    purgeAfter?: number
  }
): Promise<void> {
  await trx
    .updateTable('tenants')
    .set({
      status,
      // only who resumes a tenant takes its deletion back
      ...(status === 'active' && { purge_at: null }),
      ...(purgeAfter !== undefined && { purge_at: sql<Date>`now() + make_interval(secs => ${purgeAfter})` }),
      version: sql`version + 1`,
      updated_at: sql`now()`
    })
    .where('id', '=', tenantId)
    .execute()
  const expires_at = sql<Date>`now() + make_interval(secs => ${tokenSeconds})`
  await trx.insertInto('revocations').values({ kind: 'tenant', subject: tenantId, state: status, expires_at }).execute()
  await recordAudit(trx, { action, target_id: tenantId })
}
