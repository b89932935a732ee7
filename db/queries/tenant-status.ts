import { type RawBuilder, sql } from 'kysely'
import type { TenantTransaction } from '../gate/gate.ts'
import type { TenantStatus } from '../gate/tables.ts'
import { recordAudit } from './audit.ts'

/** Long enough that every process has read the entry, or has stopped serving because it can't read. */
const publishedSeconds = 60

/**
 * Changes columns of the gate's tenant and publishes its status, so that every process drops its cached tenant. The published
 * entry lives for `seconds`.
 *
 * It is one statement, so that the published status is that of the locked row. A status that was read earlier could predate a
 * suspension, and would make the tokens of a suspended tenant valid again.
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
    insert into changes (kind, subject, state, expires_at)
    select 'tenant', id, status, now() + make_interval(secs => ${seconds}) from changed`.execute(trx)
}

/**
 * Suspends or resumes the gate's tenant, publishes the change to every process, and audits it. With `purgeAfter` (seconds) the
 * tenant is removed for good after that time, unless it is resumed before.
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
  // only resuming a tenant cancels its removal
  const purgeAt =
    purgeAfter !== undefined
      ? sql`now() + make_interval(secs => ${purgeAfter})`
      : status === 'active'
        ? sql`null`
        : sql`purge_at`
  await changeTenant(trx, tenantId, sql`status = ${status}, purge_at = ${purgeAt}`, tokenSeconds)
  await recordAudit(trx, { action, target_id: tenantId })
}
