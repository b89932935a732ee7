import { sql } from 'kysely'
import type { TenantTransaction } from '../../db/gate/gate.ts'

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
