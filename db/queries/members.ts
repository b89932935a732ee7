import { type RawBuilder, sql } from 'kysely'
import { allows, type Role, roles } from '../../src/auth/roles.ts'
import type { TenantTransaction } from '../gate/gate.ts'
import { statement } from '../gate/statement.ts'

export type Member = { user_id: string; email: string; name: string; role: Role; joined_at: Date }

const columns = ['m.user_id', 'u.email', 'u.name', 'm.role', 'm.joined_at'] as const

export const readMember = statement('read_member', (db, $: { tenant_id: string; user_id: string }) =>
  db
    .selectFrom('memberships as m')
    .innerJoin('users as u', 'u.id', 'm.user_id')
    .where('m.tenant_id', '=', $.tenant_id)
    .where('m.user_id', '=', $.user_id)
    .select(columns)
)

/**
 * The members of a tenant by user id, which is the order in which the accounts were created. It reads only the rows that it
 * returns, so it is as cheap as a keyed read.
 */
export const listMembers = statement(
  'list_members',
  (_, $: { tenant_id: string; after_id: string; limit: number }) => sql<Member>`
  select m.user_id, u.email, u.name, m.role, m.joined_at
  from memberships m join users u on u.id = m.user_id
  where m.tenant_id = ${$.tenant_id} and m.user_id > ${$.after_id}
  order by m.user_id limit ${$.limit}`
)

/**
 * Locks the memberships of all owners and of the given users, always in the same order, and resolves to their current roles.
 * Decisions based on these rows are serialized: of two owners who demote each other at the same moment, one waits.
 */
export function lockRoles(trx: TenantTransaction, userIds: string[]): Promise<{ user_id: string; role: Role }[]> {
  return trx
    .selectFrom('memberships')
    .where((eb) => eb.or([eb('role', '=', 'owner'), eb('user_id', 'in', userIds)]))
    .select(['user_id', 'role'])
    .orderBy('user_id')
    .forUpdate()
    .execute()
}

/** The role of an API key, which stays as it is until the transaction ends. */
export async function lockKeyRole(trx: TenantTransaction, id: string): Promise<Role | undefined> {
  const { rows } = await sql<{ role: Role }>`select role from api_keys where id = ${id} for share`.execute(trx)
  return rows[0]?.role
}

export async function updateRole(trx: TenantTransaction, userId: string, role: Role): Promise<void> {
  await trx
    .updateTable('memberships')
    .set({ role, version: sql`version + 1`, updated_at: sql`now()` })
    .where('user_id', '=', userId)
    .execute()
}

/** Deletes the membership and, by a trigger, up to 1,000 sessions in this tenant; the sweep removes the rest. */
export async function deleteMember(trx: TenantTransaction, userId: string): Promise<void> {
  await trx.deleteFrom('memberships').where('user_id', '=', userId).execute()
}

/** Makes the gate's user a member of the gate's tenant. Resolves to false when the user is a member already. */
export async function insertMember(trx: TenantTransaction, userId: string, role: Role): Promise<boolean> {
  const { numInsertedOrUpdatedRows } = await trx
    .insertInto('memberships')
    .values({ user_id: userId, role, last_used_at: sql`now()` })
    .onConflict((conflict) => conflict.columns(['tenant_id', 'user_id']).doNothing())
    .executeTakeFirstOrThrow()
  return numInsertedOrUpdatedRows === 1n
}

const inviters = sql.join(roles.filter((role) => allows('admin', role)).map((role) => sql.lit(role)))

/**
 * A SQL condition: whether the author of an invitation, a person or an API key, may still invite. `invitation` is the alias of its
 * table. An invitation becomes invalid when its author is demoted, removed or disabled, or has ended or expired. Resending by a
 * member who may invite makes it valid again.
 */
export function inviterMayInvite(invitation: string): RawBuilder<boolean> {
  const [tenant, author] = [sql.ref(`${invitation}.tenant_id`), sql.ref(`${invitation}.invited_by`)]
  return sql`(exists (select from memberships as author join users on users.id = author.user_id
    where author.tenant_id = ${tenant} and author.user_id = ${author} and author.role in (${inviters}) and users.disabled_at is null)
    or exists (select from api_keys as key where key.tenant_id = ${tenant} and key.id = ${author} and key.role in (${inviters})
      and 'invitations:write' = any (key.permissions) and (key.expires_at is null or key.expires_at > now())))`
}
