import { sql } from 'kysely'
import type { Role } from '../../src/auth/roles.ts'
import type { TenantTransaction } from '../gate/gate.ts'

/**
 * Publishes what a person now is in the gate's tenant; null: nothing any more. Tokens that say otherwise are refused within a
 * second, everywhere. The entry lives as long as the last such token can.
 *
 * A person who is disabled stays nothing, whatever role they get meanwhile.
 */
export async function publishMember(
  trx: TenantTransaction,
  userId: string,
  state: Role | null,
  tokenSeconds: number
): Promise<void> {
  await sql`
    insert into revocations (kind, subject, state, expires_at)
    select 'member', ${userId}::uuid,
      case when not exists (select from users where id = ${userId} and disabled_at is not null) then ${state}::text end,
      now() + make_interval(secs => ${tokenSeconds})`.execute(trx)
}

/**
 * Ends every open session of a person in the gate's tenant by one mark, and publishes it: what is written is bounded, however
 * many sessions there are. Resolves to how many were open.
 */
export async function endMemberSessions(trx: TenantTransaction, userId: string, tokenSeconds: number): Promise<number> {
  const { rows } = await sql<{ ended: number }>`
    with over as materialized (
      select ended, state from end_sessions(current_tenant_id(), ${userId}, null)
    ), published as (
      insert into revocations (kind, subject, state, expires_at)
      select 'sessions', ${userId}::uuid, state, now() + make_interval(secs => ${tokenSeconds}) from over
    )
    select ended::int as ended from over`.execute(trx)
  return rows[0]?.ended ?? 0
}
