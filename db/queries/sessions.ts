import { sql } from 'kysely'
import type { Role } from '../../src/auth/roles.ts'
import type { TenantTransaction } from '../gate/gate.ts'
import { statement } from '../gate/statement.ts'

type Refusal = 'suspended' | 'disabled' | 'outdated' | 'provider_required' | 'mfa_required' | 'enrollment_required'
/** `provider` is the one through which the user has to come in: of `provider_required`. */
type Admission = { email: string; role: Role; provider: string | null } & (
  | { outcome: 'opened'; session_id: string }
  | { outcome: Refusal; session_id: null }
)

/** When the user proved who they are, and when by a second factor. Null for `authenticated_at` is now. */
export type SessionProof = {
  authenticated_at: Date | null
  mfa_at: Date | null
  /** The tenant's own provider that said who it is. The session stays in the tenant. */
  provider_id: string | null
  /** The provider that said who it is, for the audit log. Null for a password. */
  by: string | null
}
/** The key that a session is bound to (DPoP). Null: whoever has its tokens may use them. */
type SessionKey = { key_thumbprint: string | null }
/** A password was proved just now, and no second factor. */
export const passwordOnly: SessionProof = { authenticated_at: null, mfa_at: null, provider_id: null, by: null }

/**
 * Opens a session in the gate's tenant for the gate's user, updates the membership's last use and audits it as `action`, if
 * there is one. No row when the user is not a member.
 *
 * The database creates the id, above the membership's mark (`ended_through`), and ends the oldest session when there are more
 * than 100: `open_session` in db/migrations/0018_second_factor.ts, 0019_identities.ts and 0023_bound_sessions.ts. No row either when the tenant's
 * own provider is gone by now.
 *
 * `provider_required`: the tenant demands its own provider, and the proof is not by it. A break-glass owner is let in, and
 * recorded: `admit` in db/migrations/0022_enforcement.ts.
 *
 * `mfa_at` is when a second factor was proved, or null. Without it the outcome is `mfa_required` for a user who has one, and
 * for a user who has none `enrollment_required` where the tenant demands one. A tenant that trusts its own provider demands
 * none besides: a factor would hold in all tenants of the user, and is not for one of them to set up. These three are audited as `session.challenged`, but
 * for a switch: somebody has the password. `authenticated_at` is when the user proved who they are, if that was earlier than now.
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
      action: string | null
    } & SessionProof &
      SessionKey
  ) => sql<Admission>`
  with member as materialized (
    select u.id, u.email, m.role, m.last_used_at is not null as used_here,
      case
        when u.disabled_at is not null then 'disabled'
        when ${$.password_version}::int <> u.password_version then 'outdated'
        when t.status <> 'active' then 'suspended'
        when required_provider(m.break_glass, ${$.provider_id}::uuid) is not null then 'provider_required'
        when u.mfa_enabled_at is not null and ${$.mfa_at}::timestamptz is null then 'mfa_required'
        when u.mfa_enabled_at is null and ${$.provider_id}::uuid is null and mfa_is_required(t.settings) then 'enrollment_required'
        else 'opened'
      end as outcome
    from memberships m join users u on u.id = m.user_id join tenants t on t.id = m.tenant_id
    where m.tenant_id = ${$.tenant_id} and m.user_id = ${$.user_id}
    for share of u
  ), opened as materialized (
    select open_session(id, make_interval(secs => ${$.session_seconds}), make_interval(secs => ${$.token_seconds}),
      ${$.authenticated_at}::timestamptz, ${$.mfa_at}::timestamptz, ${$.provider_id}::uuid, ${$.key_thumbprint}::text) as id
    from member where outcome = 'opened'
  ), audited as (
    insert into audit_events (action, session_id, detail)
    select ${$.action}::text, id, case when ${$.by}::text is not null then jsonb_build_object('by', ${$.by}::text) end
    from opened where id is not null and ${$.action}::text is not null
    union all
    select 'session.challenged', null, case when ${$.by}::text is not null then jsonb_build_object('by', ${$.by}::text) end
    from member
    where outcome in ('provider_required', 'mfa_required', 'enrollment_required') and ${$.action}::text is distinct from 'session.switched'
  )
  select m.outcome, m.email, m.role, o.id as session_id,
    case m.outcome when 'provider_required' then required_provider(false, ${$.provider_id}::uuid) end as provider,
    case when ${$.action} = 'session.opened' and o.id is not null
      then notice_new_device(m.id, o.id, m.used_here) end as noticed
  from member m left join opened o on true
  where m.outcome <> 'opened' or o.id is not null`,
  { writes: true }
)

export type Rotation = {
  outcome:
    | 'rotated'
    | 'repeated'
    | 'reused'
    | 'revoked'
    | 'expired'
    | 'disabled'
    | 'suspended'
    | 'provider_required'
    | 'unproven'
    | 'ahead'
    | 'another_key'
  counter: number
  user_id: string
  email: string
  role: Role
} & SessionKey

/**
 * Rotates a refresh token, decided while the row of its family (the session) is locked. No row when the family does not exist.
 *
 * - `rotated`: the token was current; its successor has `counter`.
 * - `repeated`: the token is the direct predecessor, within the grace period. It gets the same successor, and an audit event
 *   when the address or user agent differs from the use before.
 * - `reused`: the token is older, or too late. The family is now revoked, published and audited.
 * - `provider_required`: the tenant demands its own provider, and the session was opened otherwise.
 * - `unproven`: the tenant demands a second factor, and none was used in this session, or there is none any more. Not for a
 *   session that was opened through the tenant's own provider.
 * - `ahead`: the counter was never issued, as happens after a restore.
 * - `another_key`: the session is bound to a key, and it is not this one. Decided first, so that whoever has a stolen token
 *   without the key can't end the session with it.
 *
 * `provider_required`, `unproven`, `ahead`, `another_key`, and the outcomes that are not listed, change nothing.
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
    } & SessionKey
  ) => sql<Rotation>`
  with verdict as materialized (
    select f.id, f.user_id, u.email, m.role, f.key_thumbprint,
      case
        when f.key_thumbprint <> coalesce(${$.key_thumbprint}::text, '') then 'another_key'
        when f.revoked_at is not null or session_is_over(f.id, m.ended_through, m.kept_session) then 'revoked'
        when t.status <> 'active' then 'suspended'
        when u.disabled_at is not null then 'disabled'
        when f.expires_at <= now() or f.rotated_at + make_interval(secs => ${$.idle_seconds}) <= now() then 'expired'
        when f.counter < ${$.counter} then 'ahead'
        when f.counter > ${$.counter}::int + 1 or (f.counter = ${$.counter}::int + 1
          and f.rotated_at + make_interval(secs => ${$.grace_seconds}) <= now()) then 'reused'
        when required_provider(m.break_glass, f.provider_id) is not null then 'provider_required'
        when mfa_is_required(t.settings) and f.provider_id is null and (f.mfa_at is null or u.mfa_enabled_at is null) then 'unproven'
        when f.counter = ${$.counter} then 'rotated'
        else 'repeated'
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
  select outcome, ${$.counter}::int + 1 as counter, user_id, email, role, key_thumbprint,
    case outcome when 'reused'
      then revoke_family(${$.tenant_id}, id, user_id, make_interval(secs => ${$.token_seconds})) end as revoked,
    case when outcome = 'repeated' and elsewhere then record_repeated_refresh(id, user_id) end as recorded
  from verdict`,
  { writes: true }
)

/**
 * Ends the session, publishes it, and audits it as `action`: a person has signed out, or the code that had opened the session
 * was used again. Does nothing when the session has already ended.
 */
export const endSession = statement(
  'end_session',
  (
    _,
    $: {
      tenant_id: string
      session_id: string
      token_seconds: number
      action: 'session.ended' | 'session.code_reused'
    }
  ) => sql<{ user_id: string }>`
  with ended as (
    update sessions s set revoked_at = now()
    where s.tenant_id = ${$.tenant_id} and s.id = ${$.session_id} and s.revoked_at is null and not exists (
      select from memberships m where m.tenant_id = ${$.tenant_id} and m.user_id = s.user_id
        and session_is_over(s.id, m.ended_through, m.kept_session))
    returning s.id, s.user_id
  ), published as (
    insert into changes (kind, subject, expires_at)
    select 'session', id, now() + make_interval(secs => ${$.token_seconds}) from ended
  ), audited as (
    insert into audit_events (action, actor_id, session_id) select ${$.action}::text, user_id, id from ended
  )
  select user_id from ended`,
  { writes: true }
)

/**
 * Reads the password version of an open session's user, from the database and not from the process's memory. A session that
 * is opened because of this one is given the version, so that a change of password ends or refuses it. It is also given the
 * proofs, so that it is as old as this one. A session through the tenant's own provider must not open one elsewhere.
 */
export const findOpenSession = statement(
  'find_open_session',
  (_, $: { tenant_id: string; session_id: string; idle_seconds: number }) => sql<
    { password_version: number } & SessionProof
  >`
  select u.password_version, greatest(coalesce(s.authenticated_at, s.created_at), s.provider_at) as authenticated_at, s.mfa_at,
    s.provider_id, null::text as by
  from sessions s join users u on u.id = s.user_id
  join memberships m on m.tenant_id = ${$.tenant_id} and m.user_id = s.user_id
  where s.tenant_id = ${$.tenant_id} and s.id = ${$.session_id} and s.revoked_at is null and s.expires_at > now()
    and not session_is_over(s.id, m.ended_through, m.kept_session)
    and s.rotated_at + make_interval(secs => ${$.idle_seconds}) > now()`
)

/** Opens the first session of a new member, in the transaction that creates the membership. Resolves to its id. */
export async function openFirstSession(
  trx: TenantTransaction,
  session: { user_id: string; session_seconds: number; token_seconds: number } & SessionKey
): Promise<string> {
  const { rows } = await sql<{ id: string | null }>`
    select open_session(${session.user_id}, make_interval(secs => ${session.session_seconds}),
      make_interval(secs => ${session.token_seconds}), null, null, null, ${session.key_thumbprint}) as id`.execute(trx)
  const id = rows[0]?.id
  if (!id) throw new Error('a first session needs a membership')
  return id
}

/** Seconds for which a proof of the password or of a factor is enough for dangerous operations. */
export const freshSeconds = 300

/**
 * Whether the user has proved who they are lately, in this session. Call it in the transaction of what needs the proof: an
 * access token alone, which is good for a day, must not be enough.
 */
export async function isFresh(
  trx: TenantTransaction,
  { tenant_id, sid }: { tenant_id: string; sid: string }
): Promise<boolean> {
  const { rows } = await sql<{ fresh: boolean }>`
    select greatest(coalesce(s.authenticated_at, s.created_at), s.provider_at) > now() - make_interval(secs => ${freshSeconds}) as fresh
    from sessions s join memberships m on m.tenant_id = ${tenant_id} and m.user_id = s.user_id
    where s.tenant_id = ${tenant_id} and s.id = ${sid} and s.revoked_at is null
      and not session_is_over(s.id, m.ended_through, m.kept_session)`.execute(trx)
  return rows[0]?.fresh ?? false
}

/**
 * As `isFresh`, for a change of the user's factors: somebody who has one must have proved it, and not the password only.
 */
export async function isFreshByFactor(
  trx: TenantTransaction,
  { tenant_id, sid }: { tenant_id: string; sid: string }
): Promise<boolean> {
  if (!(await isFresh(trx, { tenant_id, sid }))) return false
  const { rows } = await sql`
    select from sessions s join users u on u.id = s.user_id
    where s.tenant_id = ${tenant_id} and s.id = ${sid}
      and (u.mfa_enabled_at is null or s.mfa_at > now() - make_interval(secs => ${freshSeconds}))`.execute(trx)
  return rows.length === 1
}

/**
 * Marks the session as proved now, and by a second factor at `mfa_at` if there was one. False when the session has ended.
 */
export async function markAuthenticated(
  trx: TenantTransaction,
  { tenant_id, sid, mfa_at }: { tenant_id: string; sid: string; mfa_at: Date | null }
): Promise<boolean> {
  const { numAffectedRows } = await sql`
    update sessions s set authenticated_at = now(), mfa_at = coalesce(${mfa_at}::timestamptz, s.mfa_at)
    from memberships m
    where s.tenant_id = ${tenant_id} and s.id = ${sid} and s.revoked_at is null
      and m.tenant_id = ${tenant_id} and m.user_id = s.user_id
      and not session_is_over(s.id, m.ended_through, m.kept_session)`.execute(trx)
  return numAffectedRows === 1n
}
