import { sql } from 'kysely'
import type { Role } from '../../src/auth/roles.ts'
import type { TenantTransaction } from '../gate/gate.ts'
import { statement } from '../gate/statement.ts'

type Refusal = 'suspended' | 'disabled' | 'outdated'
type Admission = { email: string; role: Role } & (
  | { outcome: 'opened'; session_id: string }
  | { outcome: Refusal; session_id: null }
)

/**
 * Opens a session in the gate's tenant for the gate's user, updates the membership's last use and audits it. No row when the
 * user is not a member.
 *
 * The database creates the id, above the membership's mark (`ended_through`), and ends the oldest session when there are more
 * than 100: `open_session` in db/migrations/0009_session_marks.ts.
 *
 * A sign-in (`session.opened`) from a network and with a program that the user's sessions do not know queues a notice.
 *
 * The user's row is locked against a change of password. `password_version` is the version that the password was checked
 * against. So a sign-in with an old password is either seen and ended by the change of password, or refused as `outdated`.
 */
export const openSession = statement(
  'open_session',
  (
    _,
    $: {
      tenant_id: string
      user_id: string
      session_seconds: number
      token_seconds: number
      password_version: number
      action: string
    }
  ) => sql<Admission>`
  with member as materialized (
    select u.id, u.email, m.role, m.last_used_at is not null as used_here,
      case
        when u.disabled_at is not null then 'disabled'
        when ${$.password_version}::int <> u.password_version then 'outdated'
        when t.status <> 'active' then 'suspended'
        else 'opened'
      end as outcome
    from memberships m join users u on u.id = m.user_id join tenants t on t.id = m.tenant_id
    where m.tenant_id = ${$.tenant_id} and m.user_id = ${$.user_id}
    for share of u
  ), opened as materialized (
    select open_session(id, make_interval(secs => ${$.session_seconds}), make_interval(secs => ${$.token_seconds})) as id
    from member where outcome = 'opened'
  ), audited as (
    insert into audit_events (action, session_id) select ${$.action}, id from opened where id is not null
  )
  select m.outcome, m.email, m.role, o.id as session_id,
    case when ${$.action} = 'session.opened' and o.id is not null
      then notice_new_device(m.id, o.id, m.used_here) end as noticed
  from member m left join opened o on true
  where m.outcome <> 'opened' or o.id is not null`,
  { writes: true }
)

export type Rotation = {
  outcome: 'rotated' | 'repeated' | 'reused' | 'revoked' | 'expired' | 'disabled' | 'suspended' | 'ahead'
  counter: number
  user_id: string
  email: string
  role: Role
}

/**
 * Rotates a refresh token, decided while the row of its family (the session) is locked. No row when the family does not exist.
 *
 * - `rotated`: the token was current; its successor has `counter`.
 * - `repeated`: the token is the direct predecessor, within the grace period. It gets the same successor, and an audit event
 *   when the address or user agent differs from the use before.
 * - `reused`: the token is older, or too late. The family is now revoked, published and audited.
 * - `ahead`: the counter was never issued, as happens after a restore.
 *
 * `ahead`, and the outcomes that are not listed, change nothing.
 *
 * The lock makes a statement that waits decide by the newest version of the row. A plain read with a conditional update would
 * decide by a snapshot that is older than the wait.
 */
export const rotateSession = statement(
  'rotate_session',
  (
    _,
    $: {
      tenant_id: string
      family: string
      counter: number
      grace_seconds: number
      idle_seconds: number
      token_seconds: number
    }
  ) => sql<Rotation>`
  with verdict as materialized (
    select f.id, f.user_id, u.email, m.role,
      case
        when f.revoked_at is not null or session_is_over(f.id, m.ended_through, m.kept_session) then 'revoked'
        when t.status <> 'active' then 'suspended'
        when u.disabled_at is not null then 'disabled'
        when f.expires_at <= now() or f.rotated_at + make_interval(secs => ${$.idle_seconds}) <= now() then 'expired'
        when f.counter = ${$.counter} then 'rotated'
        when f.counter < ${$.counter} then 'ahead'
        when f.counter = ${$.counter}::int + 1 and f.rotated_at + make_interval(secs => ${$.grace_seconds}) > now()
          then 'repeated'
        else 'reused'
      end as outcome,
      (coalesce(f.last_ip, f.ip), coalesce(f.last_user_agent, f.user_agent)) is distinct from
        ((current_request() ->> 'ip')::inet, current_request() ->> 'user_agent') as elsewhere
    from sessions f
    join memberships m on m.tenant_id = ${$.tenant_id} and m.user_id = f.user_id
    join users u on u.id = f.user_id
    join tenants t on t.id = ${$.tenant_id}
    where f.tenant_id = ${$.tenant_id} and f.id = ${$.family}
    for no key update of f
  ), rotated as (
    update sessions s set counter = s.counter + 1, rotated_at = now(),
      last_ip = (current_request() ->> 'ip')::inet, last_user_agent = current_request() ->> 'user_agent'
    from verdict v where v.outcome = 'rotated' and s.tenant_id = ${$.tenant_id} and s.id = v.id
  )
  select outcome, ${$.counter}::int + 1 as counter, user_id, email, role,
    case outcome when 'reused'
      then revoke_family(${$.tenant_id}, id, user_id, make_interval(secs => ${$.token_seconds})) end as revoked,
    case when outcome = 'repeated' and elsewhere then record_repeated_refresh(id, user_id) end as recorded
  from verdict`,
  { writes: true }
)

/** Signs out: ends the session, publishes and audits it. Does nothing when the session has already ended. */
export const endSession = statement(
  'end_session',
  (_, $: { tenant_id: string; session_id: string; token_seconds: number }) => sql<{ user_id: string }>`
  with ended as (
    update sessions s set revoked_at = now()
    where s.tenant_id = ${$.tenant_id} and s.id = ${$.session_id} and s.revoked_at is null and not exists (
      select from memberships m where m.tenant_id = ${$.tenant_id} and m.user_id = s.user_id
        and session_is_over(s.id, m.ended_through, m.kept_session))
    returning s.id, s.user_id
  ), published as (
    insert into revocations (kind, subject, expires_at)
    select 'session', id, now() + make_interval(secs => ${$.token_seconds}) from ended
  ), audited as (
    insert into audit_events (action, actor_id, session_id) select 'session.ended', user_id, id from ended
  )
  select user_id from ended`,
  { writes: true }
)

/**
 * Reads the password version of an open session's user, from the database and not from the process's memory. A session that
 * is opened because of this one is given the version, so that a change of password ends or refuses it.
 */
export const findOpenSession = statement(
  'find_open_session',
  (_, $: { tenant_id: string; session_id: string; idle_seconds: number }) => sql<{ password_version: number }>`
  select u.password_version from sessions s join users u on u.id = s.user_id
  join memberships m on m.tenant_id = ${$.tenant_id} and m.user_id = s.user_id
  where s.tenant_id = ${$.tenant_id} and s.id = ${$.session_id} and s.revoked_at is null and s.expires_at > now()
    and not session_is_over(s.id, m.ended_through, m.kept_session)
    and s.rotated_at + make_interval(secs => ${$.idle_seconds}) > now()`
)

/** Opens the first session of a new member, in the transaction that creates the membership. Resolves to its id. */
export async function openFirstSession(
  trx: TenantTransaction,
  session: { user_id: string; session_seconds: number; token_seconds: number }
): Promise<string> {
  const { rows } = await sql<{ id: string | null }>`
    select open_session(${session.user_id}, make_interval(secs => ${session.session_seconds}),
      make_interval(secs => ${session.token_seconds})) as id`.execute(trx)
  const id = rows[0]?.id
  if (!id) throw new Error('a first session needs a membership')
  return id
}
