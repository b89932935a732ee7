import { sql } from 'kysely'
import type { TenantTransaction } from '../../db/gate/gate.ts'
import type { PasswordHash } from '../../src/auth/passwords.ts'

/** Reads the name and the versions of the ETag, and locks the person's row until the transaction ends. */
export function lockUser(trx: TenantTransaction, user: { tenant_id: string; user_id: string }) {
  return trx
    .selectFrom('memberships as m')
    .innerJoin('users as u', 'u.id', 'm.user_id')
    .where('m.tenant_id', '=', user.tenant_id)
    .where('m.user_id', '=', user.user_id)
    .select(['u.name', 'u.version', 'm.version as membership_version', 'm.tenant_id'])
    .forNoKeyUpdate('u')
    .executeTakeFirst()
}

export async function renameUser(trx: TenantTransaction, userId: string, name: string): Promise<void> {
  await trx
    .updateTable('users')
    .set({ name, version: sql`version + 1`, updated_at: sql`now()` })
    .where('id', '=', userId)
    .execute()
}

/** Writes a new hash. False, without a write, when the password is no longer the one that was checked. */
export async function changePassword(
  trx: TenantTransaction,
  userId: string,
  checkedVersion: number,
  hash: PasswordHash
): Promise<boolean> {
  const { numUpdatedRows } = await trx
    .updateTable('users')
    .set({ ...hash, password_version: sql`password_version + 1` })
    .where('id', '=', userId)
    .where('password_version', '=', checkedVersion)
    .executeTakeFirst()
  return numUpdatedRows === 1n
}

/** Ends all sessions of the current user but `keep`, in all tenants, in the transaction of the password change. */
export async function endOtherSessions(trx: TenantTransaction, keep: string, tokenSeconds: number): Promise<void> {
  await sql`select end_my_sessions(null, ${keep}, make_interval(secs => ${tokenSeconds}))`.execute(trx)
}
