import { sql } from 'kysely'
import type { Role } from '../src/roles.ts'
import type { TenantTransaction } from './gate.ts'

/**
 * Publishes what a person now is in the gate's tenant; null: nothing any more. Tokens that say otherwise are refused within a
 * second, everywhere. The entry lives as long as the last such token can.
 */
export async function publishMember(
  trx: TenantTransaction,
  userId: string,
  state: Role | null,
  tokenSeconds: number
): Promise<void> {
  const expires_at = sql<Date>`now() + make_interval(secs => ${tokenSeconds})`
  await trx.insertInto('revocations').values({ kind: 'member', subject: userId, state, expires_at }).execute()
}

/** Ends and publishes every open session of a person in the gate's tenant. Resolves to how many there were. */
export async function endMemberSessions(trx: TenantTransaction, userId: string, tokenSeconds: number): Promise<number> {
  const { rows } = await sql<{ ended: number }>`
    with ended as (
      update sessions set revoked_at = now()
      where tenant_id = current_tenant_id() and user_id = ${userId} and revoked_at is null
      returning id
    ), published as (
      insert into revocations (kind, subject, expires_at)
      select 'session', id, now() + make_interval(secs => ${tokenSeconds}) from ended
      returning 1
    )
    select count(*)::int as ended from published`.execute(trx)
  return rows[0]?.ended ?? 0
}
