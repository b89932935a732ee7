import { type RawBuilder, sql } from 'kysely'
import type { TenantTransaction } from '../gate/gate.ts'
import type { TenantStatus } from '../tables.ts'
import { recordAudit } from './audit.ts'

/** Long after each process has read it, or has given up serving. */
const publishedSeconds = 60

/**
 * Changes columns of the gate's tenant and publishes its status, so that every process forgets what it remembers of it.
 *
 * One statement: the status that is published is the one of the row while this change has it locked. A status that was read
 * before could be from before a suspension, and would make a suspended agency's tokens good again.
 *
 * `seconds` is for how long the entry lives.
 */
export async function changeTenant(
  trx: TenantTransaction,
  tenantId: string,
  columns: RawBuilder<unknown>,
  seconds = publishedSeconds
): Promise<void> {
  await sql`
    with changed as (
      update tenants set ${columns}, version = version + 1, updated_at = now() where id = ${tenantId}
      returning id, status
    )
    insert into revocations (kind, subject, state, expires_at)
    select 'tenant', id, status, now() + make_interval(secs => ${seconds}) from changed`.execute(trx)
}

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
  // only who resumes a tenant takes its deletion back
  const purgeAt =
    purgeAfter !== undefined
      ? sql`now() + make_interval(secs => ${purgeAfter})`
      : status === 'active'
        ? sql`null`
        : sql`purge_at`
  await changeTenant(trx, tenantId, sql`status = ${status}, purge_at = ${purgeAt}`, tokenSeconds)
  await recordAudit(trx, { action, target_id: tenantId })
}
