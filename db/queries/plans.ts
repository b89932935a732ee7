import { sql } from 'kysely'
import type { TenantTransaction } from '../gate/gate.ts'
import { statement } from '../gate/statement.ts'
import { recordAudit } from './audit.ts'
import { changeTenant } from './tenant-status.ts'

/** What a plan allows; null: as the server's settings say. `requests` 0 is no limit, `storage_quota` is bytes. */
export type PlanLimits = {
  requests: number | null
  window_seconds: number | null
  storage_quota: number | null
}

/** Every plan, with how many tenants have it. */
export const listPlans = statement(
  'list_plans',
  (_, __: Record<never, never>) => sql<PlanLimits & { name: string; tenants: number }>`
  select name, requests, window_seconds, storage_quota::float8 as storage_quota, tenants::int as tenants from list_plans()`,
  { slow: true }
)

/** Makes or changes a plan. It is in force on every process within a second. */
export const setPlan = statement(
  'set_plan',
  (_, $: PlanLimits & { name: string }) => sql<never>`
  select from set_plan(${$.name}, ${$.requests}, ${$.window_seconds}, ${$.storage_quota}::bigint)`,
  { writes: true }
)

/**
 * Gives the gate's tenant another plan, tells every process, and records it. The database refuses a plan that there is not
 * (foreign_key_violation).
 */
export async function changePlan(trx: TenantTransaction, tenantId: string, plan: string): Promise<void> {
  await changeTenant(trx, tenantId, sql`plan = ${plan}`)
  await recordAudit(trx, { action: 'tenant.plan_changed', target_id: tenantId, detail: { after: { plan } } })
}
