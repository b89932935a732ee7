import { sql } from 'kysely'
import { keyRevocationLife } from '../../../src/auth/api-keys/key-reach.ts'
import { statement } from '../../gate/statement.ts'

/*
 * What operators see and change across agencies, and the records of background jobs.
 */

export type Agency = {
  id: string
  slug: string
  name: string
  status: 'active' | 'suspended'
  plan: string
  created_at: Date
  /** When it is removed for good. Null when it was not deleted. */
  purge_at: Date | null
  members: number
  bytes: number
}

/** A page of all agencies, by slug, or the one with the slug `one`. */
export const listAgencies = statement(
  'list_agencies',
  (_, $: { one: string | null; after: string; batch: number }) => sql<Agency>`
  select id, slug, name, status, plan, created_at, purge_at, members::float8 as members, bytes::float8 as bytes
  from list_agencies(${$.one}, ${$.after}, ${$.batch})`,
  { slow: true }
)

export type UnsentMail = {
  id: string
  agency_id: string | null
  kind: string
  attempts: number
  created_at: Date
  due_at: Date
  dropped_at: Date | null
  last_error: string | null
}

/** Mails that wait (`given_up` false) or were given up, those that are due for longest first. */
export const listMails = statement(
  'list_mails',
  (_, $: { given_up: boolean; batch: number }) => sql<UnsentMail>`
  select id, agency_id, kind, attempts, created_at, due_at, dropped_at, last_error
  from list_mails(${$.given_up}, ${$.batch})`,
  { slow: true }
)

/** Counts the mails that are due, and says since when the oldest is. */
export const readBacklog = statement(
  'read_backlog',
  (_, __: Record<never, never>) => sql<{ mails_due: number; mails_due_since: Date | null }>`
  select mails_due::float8 as mails_due, mails_due_since from upkeep()`,
  { slow: true }
)

/**
 * Tries a mail again from the beginning, or gives it up; an agency sees that in its audit log. No row when there is no such
 * mail, or it was sent, or given up already.
 */
export const operateMail = statement(
  'operate_mail',
  (_, $: { id: string; act: 'retry' | 'drop' }) => sql<{ kind: string; agency_id: string | null }>`
  select kind, agency_id from operate_mail(${$.id}, ${$.act})`,
  { writes: true }
)

export type JobRun = { name: string; succeeded_at: Date | null; failed_at: Date | null; error: string | null }

/** When each background job last succeeded and failed, in any process. */
export const listJobs = statement(
  'list_jobs',
  (_, __: Record<never, never>) => sql<JobRun>`select name, succeeded_at, failed_at, error from list_jobs()`,
  { slow: true }
)

/** Records that a job has succeeded, or why it failed. */
export const recordJob = statement(
  'record_job',
  (_, $: { job: string; failure: string | null }) => sql<{ done: unknown }>`
  select record_job(${$.job}, ${$.failure}) as done`,
  { writes: true }
)

export type OpenSession = {
  id: string
  email: string
  created_at: Date
  last_used_at: Date
  ip: string | null
  user_agent: string | null
}

/** The open sessions of the gate's tenant, newest first. `idle_seconds`: an unused session ends after that time. */
export const listSessions = statement(
  'list_sessions_of_tenant',
  (_, $: { tenant_id: string; idle_seconds: number; limit: number }) => sql<OpenSession>`
  select s.id, u.email, s.created_at, coalesce(s.rotated_at, s.created_at) as last_used_at,
    host(coalesce(s.last_ip, s.ip)) as ip, coalesce(s.last_user_agent, s.user_agent) as user_agent
  from sessions s
  join memberships m on m.tenant_id = ${$.tenant_id} and m.user_id = s.user_id
  join users u on u.id = s.user_id
  where s.tenant_id = ${$.tenant_id} and s.revoked_at is null and s.expires_at > now()
    and coalesce(s.rotated_at, s.created_at) > now() - make_interval(secs => ${$.idle_seconds})
    and not session_is_over(s.id, m.ended_through, m.kept_session)
  order by s.id desc limit ${$.limit}`,
  { slow: true }
)

/**
 * Ends a session of the gate's tenant, publishes and audits it, without an actor. No row when there is no such session, or it
 * has ended.
 */
export const endSessionByOperator = statement(
  'end_session_by_operator',
  (_, $: { tenant_id: string; session_id: string; token_seconds: number }) => sql<{ user_id: string }>`
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
    insert into audit_events (action, actor_id, target_id, session_id, detail)
    select 'session.ended', null, user_id, id, '{"by": "operator"}' from ended
  )
  select user_id from ended`,
  { writes: true }
)

/** Ends all API keys of the gate's tenant, with what was issued for them, and audits each, without an actor. */
export const endKeysByOperator = statement(
  'end_keys_by_operator',
  (_, $: { tenant_id: string }) => sql<{ ended: number }>`
  with ended as (
    delete from api_keys where tenant_id = ${$.tenant_id} returning id, name, sid, previous_sid
  ), published as (
    insert into changes (kind, subject, expires_at)
    select 'session', s.sid, now() + interval ${sql.lit(keyRevocationLife)}
    from ended e cross join lateral (values (e.sid), (e.previous_sid)) s (sid) where s.sid is not null
  ), audited as (
    insert into audit_events (action, actor_id, target_id, detail)
    select 'api_key.ended', null, id, jsonb_build_object('by', 'operator', 'before', jsonb_build_object('name', name)) from ended
  )
  select count(*)::int as ended from ended`,
  { writes: true }
)
