import { sql } from 'kysely'
import type { PasswordHash } from '../../src/auth/passwords.ts'
import type { TenantTransaction } from '../gate/gate.ts'
import { statement } from '../gate/statement.ts'

/**
 * Reads a user as a member of one tenant. The two versions form the ETag: `version` counts changes of the user,
 * `membership_version` those of the membership.
 */
export const readUser = statement('read_user', (db, $: { tenant_id: string; user_id: string }) =>
  db
    .selectFrom('memberships as m')
    .innerJoin('users as u', 'u.id', 'm.user_id')
    .where('m.tenant_id', '=', $.tenant_id)
    .where('m.user_id', '=', $.user_id)
    .select([
      'u.id',
      'u.email',
      'u.name',
      'u.avatar_url',
      sql<boolean>`u.email_verified_at is not null`.as('email_verified'),
      sql<boolean>`u.mfa_enabled_at is not null`.as('mfa_enabled'),
      'm.tenant_id',
      'm.role',
      'u.created_at',
      sql<Date>`greatest(u.updated_at, m.updated_at)`.as('updated_at'),
      'u.version',
      'm.version as membership_version'
    ])
)

/** Inserts a new user, as the user itself. Resolves to false, with nothing written, when the address is taken. */
export async function insertUser(
  trx: TenantTransaction,
  user: { id: string; email: string; name: string; email_verified_at?: Date } & PasswordHash
): Promise<boolean> {
  const { numInsertedOrUpdatedRows } = await trx
    .insertInto('users')
    .values(user)
    .onConflict((conflict) => conflict.column('email').doNothing())
    .executeTakeFirstOrThrow()
  return numInsertedOrUpdatedRows === 1n
}

/**
 * Stores the same password hashed with the current parameters and pepper. Changes nothing if the password was changed
 * meanwhile.
 */
export const replaceHash = statement(
  'replace_hash',
  (db, $: { user_id: string; password_version: number } & PasswordHash) =>
    db
      .updateTable('users')
      .set({ password_hash: $.password_hash, pepper_id: $.pepper_id })
      .where('id', '=', $.user_id)
      .where('password_version', '=', $.password_version),
  { writes: true }
)
