import { mayManage, type Role } from '../../src/auth/roles.ts'
import type { TenantTransaction } from '../gate/gate.ts'
import { recordAudit } from './audit.ts'
import { deleteMember, lockKeyRole, lockRoles, updateRole } from './members.ts'
import { endMemberSessions, publishMember } from './revocations.ts'

/** `actor_id`, a person or an API key, acts on the member `user_id`. `token_seconds` is the life of an access token, and so of a revocation. */
type Act = { actor_id: string; user_id: string; token_seconds: number }

/**
 * The outcome of an act on a member. It is decided by the roles in the database, not by those in the token. Every outcome but
 * `done` has changed nothing. `gone`: the actor is no longer a member, or the key has ended.
 */
export type MemberOutcome = 'done' | 'forbidden' | 'last_owner' | 'not_found' | 'gone'

/** Changes the role of a member. */
export async function changeRole(trx: TenantTransaction, act: Act, role: Role): Promise<MemberOutcome> {
  const found = await lockPair(trx, act)
  if (typeof found === 'string') return found
  const { actor, target, owners } = found
  if (!mayManage(actor, 'admin') || !mayManage(actor, target) || !mayManage(actor, role)) return 'forbidden'
  if (target === role) return 'done'
  if (target === 'owner' && owners === 1) return 'last_owner'
  await updateRole(trx, act.user_id, role)
  await publishMember(trx, act.user_id, role, act.token_seconds)
  await recordAudit(trx, {
    action: 'member.role_changed',
    target_id: act.user_id,
    detail: { before: { role: target }, after: { role } }
  })
  return 'done'
}

/** Removes a member; a member may remove themselves. */
export async function removeMember(trx: TenantTransaction, act: Act): Promise<MemberOutcome> {
  const found = await lockPair(trx, act)
  if (typeof found === 'string') return found
  const { actor, target, owners } = found
  const oneself = act.actor_id === act.user_id
  if (!oneself && (!mayManage(actor, 'admin') || !mayManage(actor, target))) return 'forbidden'
  if (target === 'owner' && owners === 1) return 'last_owner'
  // also end the sessions: if the user returns in the same role, old tokens must not become valid again
  await endMemberSessions(trx, act.user_id, act.token_seconds)
  await deleteMember(trx, act.user_id)
  await publishMember(trx, act.user_id, null, act.token_seconds)
  await recordAudit(trx, { action: 'member.removed', target_id: act.user_id, detail: { before: { role: target } } })
  return 'done'
}

/** Ends all sessions of a member in this tenant. */
export async function endSessionsOf(trx: TenantTransaction, act: Act): Promise<MemberOutcome> {
  const found = await lockPair(trx, act)
  if (typeof found === 'string') return found
  if (!mayManage(found.actor, 'admin') || !mayManage(found.actor, found.target)) return 'forbidden'
  const ended = await endMemberSessions(trx, act.user_id, act.token_seconds)
  await recordAudit(trx, { action: 'member.sessions_ended', target_id: act.user_id, detail: { ended } })
  return 'done'
}

/** Makes a member an owner and the acting owner an admin, in one transaction. */
export async function transferOwnership(trx: TenantTransaction, act: Act): Promise<MemberOutcome> {
  const found = await lockPair(trx, act)
  if (typeof found === 'string') return found
  const { actor, target } = found
  if (actor !== 'owner') return 'forbidden'
  if (act.actor_id === act.user_id) return 'done'
  for (const [userId, before, after] of [
    [act.user_id, target, 'owner'],
    [act.actor_id, actor, 'admin']
  ] as const) {
    if (before === after) continue
    await updateRole(trx, userId, after)
    await publishMember(trx, userId, after, act.token_seconds)
  }
  await recordAudit(trx, { action: 'tenant.transferred', target_id: act.user_id, detail: { before: { role: target } } })
  return 'done'
}

async function lockPair(
  trx: TenantTransaction,
  { actor_id, user_id }: Act
): Promise<'gone' | 'not_found' | { actor: Role; target: Role; owners: number }> {
  const rows = await lockRoles(trx, [actor_id, user_id])
  const roleOf = (id: string) => rows.find((row) => row.user_id === id)?.role
  const actor = roleOf(actor_id) ?? (await lockKeyRole(trx, actor_id))
  const target = roleOf(user_id)
  if (!actor) return 'gone'
  if (!target) return 'not_found'
  return { actor, target, owners: rows.filter(({ role }) => role === 'owner').length }
}
