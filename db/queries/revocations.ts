import { sql } from 'kysely'
import type { Role } from '../../src/auth/roles.ts'
import type { TenantTransaction } from '../gate/gate.ts'

/**
 * Publishes a user's current role in the gate's tenant; null when the user is no longer a member. Every process refuses tokens
 * with another role within a second. The entry lives as long as the last such token can.
 *
 * For a disabled user null is published, whatever `state` is.
 */
export async function publishMember(
  trx: TenantTransaction,
  userId: string,
  state: Role | null,
  tokenSeconds: number
): Promise<void> {
  await sql`
    insert into changes (kind, subject, state, expires_at)
    select 'member', ${userId}::uuid,
      case when not exists (select from users where id = ${userId} and disabled_at is not null) then ${state}::text end,
      now() + make_interval(secs => ${tokenSeconds})`.execute(trx)
}

/**
 * Ends all open sessions of a user in the gate's tenant with one mark, and publishes it. One mark keeps the amount written
 * small, however many sessions there are. Resolves to the number of sessions that were open.
 */
export async function endMemberSessions(trx: TenantTransaction, userId: string, tokenSeconds: number): Promise<number> {
  const { rows } = await sql<{ ended: number }>`
    with over as materialized (
      select ended, state from end_sessions(current_tenant_id(), ${userId}, null)
    ), published as (
      insert into changes (kind, subject, state, expires_at)
      select 'sessions', ${userId}::uuid, state, now() + make_interval(secs => ${tokenSeconds}) from over
    )
    select ended::int as ended from over`.execute(trx)
  return rows[0]?.ended ?? 0
}
