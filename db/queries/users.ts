import { sql } from 'kysely'
import type { PasswordHash } from '../../src/auth/passwords.ts'
import { userTag } from '../../src/http/etags.ts'
import type { TenantTransaction } from '../gate/gate.ts'
import { statement } from '../gate/statement.ts'

/**
 * Reads a user as a member of one tenant. The two versions form the ETag: `version` counts changes of the user,
 * `membership_version` those of the membership.
 */
export const readUser = statement(
  'read_user',
  (db, $: { tenant_id: string; user_id: string }) =>
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
      ]),
  { remembered: { reads: ['memberships', 'users'], tag: userTag } }
)

/** Somebody who signs in at a provider. */
type NoPassword = { password_hash: null; pepper_id: null }

/** Inserts a new user, as the user itself. Resolves to false, with nothing written, when the address is taken. */
export async function insertUser(
  trx: TenantTransaction,
  user: { id: string; email: string; name: string; email_verified_at?: Date } & (PasswordHash | NoPassword)
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

/** Writes a new hash, for the gate's user. False, without a write, when the password is no longer the one that was checked. */
export async function changePassword(
  trx: TenantTransaction,
  userId: string,
  checkedVersion: number,
  hash: PasswordHash
): Promise<boolean> {
  await lockAccount(trx)
  const { numUpdatedRows } = await trx
    .updateTable('users')
    .set({ ...hash, password_version: sql`password_version + 1` })
    .where('id', '=', userId)
    .where('password_version', '=', checkedVersion)
    .executeTakeFirst()
  return numUpdatedRows === 1n
}

/** Marks the address as verified: the person received a token by mail. False when it was verified already. */
export async function verifyEmail(trx: TenantTransaction, userId: string): Promise<boolean> {
  const { numUpdatedRows } = await trx
    .updateTable('users')
    .set({ email_verified_at: sql`now()`, version: sql`version + 1`, updated_at: sql`now()` })
    .where('id', '=', userId)
    .where('email_verified_at', 'is', null)
    .executeTakeFirst()
  return numUpdatedRows === 1n
}

/** Ends all sessions of the gate's user in all tenants, but `keep`, in the transaction of a change of the password. */
export async function endUserSessions(
  trx: TenantTransaction,
  keep: string | null,
  tokenSeconds: number
): Promise<void> {
  await sql`select end_my_sessions(null, ${keep}, make_interval(secs => ${tokenSeconds}))`.execute(trx)
}

/**
 * Locks the account of the gate's user until the transaction ends, in the order that all transactions keep
 * (db/migrations/0024_account_locks.ts). Call it before anything of the account is changed or locked.
 */
export async function lockAccount(trx: TenantTransaction): Promise<void> {
  await sql`select lock_my_account()`.execute(trx)
}

/**
 * Locks the account of the gate's user, whose password was checked. False when the password has changed since; all sessions
 * ended then.
 */
export async function lockPerson(trx: TenantTransaction, passwordVersion: number): Promise<boolean> {
  await lockAccount(trx)
  const { rows } = await sql`
    select from users where id = current_user_id() and password_version = ${passwordVersion}`.execute(trx)
  return rows.length === 1
}

/**
 * As `lockPerson`, for somebody who was decided about otherwise: false also when the address has changed since, or the person is
 * disabled.
 */
export async function lockPersonAsDecided(
  trx: TenantTransaction,
  { password_version, email }: { password_version: number; email: string }
): Promise<boolean> {
  await lockAccount(trx)
  const { rows } = await sql`
    select from users where id = current_user_id() and password_version = ${password_version} and email = ${email}
      and disabled_at is null`.execute(trx)
  return rows.length === 1
}

/** Reads the address of the gate's user, from the database and not from the token. */
export const findMyEmail = statement('find_my_email', (db, _: Record<never, never>) =>
  db.selectFrom('users').where('id', '=', sql<string>`(select current_user_id())`).select('email')
)
