import { sql } from 'kysely'
import type { TenantTransaction } from '../gate/gate.ts'
import { statement } from '../gate/statement.ts'
import { recordAudit } from './audit.ts'
import { changeTenant } from './tenant-status.ts'

/** The limits of a plan; null means the server's setting. `requests` 0 means no limit, `storage_quota` is in bytes. */
export type PlanLimits = {
  requests: number | null
  window_seconds: number | null
  storage_quota: number | null
}

/** Lists the plans, each with its number of tenants. */
export const listPlans = statement(
  'list_plans',
  (_, __: Record<never, never>) => sql<PlanLimits & { name: string; tenants: number }>`
  select name, requests, window_seconds, storage_quota::float8 as storage_quota, tenants::int as tenants from list_plans()`,
  { slow: true }
)

/** Creates or changes a plan. It takes effect on every process within a second. */
export const setPlan = statement(
  'set_plan',
  (_, $: PlanLimits & { name: string }) => sql<never>`
  select from set_plan(${$.name}, ${$.requests}, ${$.window_seconds}, ${$.storage_quota}::bigint)`,
  { writes: true }
)

/**
 * Changes the plan of the gate's tenant, publishes the change to every process, and audits it. The database refuses an unknown
 * plan (foreign_key_violation).
 */
export async function changePlan(trx: TenantTransaction, tenantId: string, plan: string): Promise<void> {
  await changeTenant(trx, tenantId, sql`plan = ${plan}`)
  await recordAudit(trx, { action: 'tenant.plan_changed', target_id: tenantId, detail: { after: { plan } } })
}
