import { type RawBuilder, sql } from 'kysely'
import type { Role } from '../../src/auth/roles.ts'
import type { ReadChange } from '../gate/memory.ts'
import { statement } from '../gate/statement.ts'
import type { TenantSettings, TenantStatus } from '../gate/tables.ts'
import type { PlanLimits } from './plans.ts'

/*
 * Queries that need no tenant, or that span tenants: calls of the functions that `aggios_directory` owns. The functions named
 * `my_…` take the user from the gate's settings.
 */

/** The facts about a tenant that every request needs. */
export type TenantRow = { id: string; slug: string; status: TenantStatus; settings: TenantSettings } & PlanLimits

/** Finds a tenant by the slug in its host name. */
export const findTenant = statement(
  'find_tenant',
  (_, $: { slug: string }) => sql<TenantRow>`
  select id, slug, status, settings, requests, window_seconds, storage_quota::float8 as storage_quota
  from find_tenant(${$.slug}) t cross join lateral tenant_limits(t.id)`
)

/** Finds a tenant by the id in a token. Most requests have a token, so this costs one function call instead of two. */
export const readTenantEntry = statement(
  'tenant_entry',
  (_, $: { tenant_id: string }) => sql<TenantRow>`
  select id, slug, status, settings, requests, window_seconds, storage_quota::float8 as storage_quota
  from tenant_entry(${$.tenant_id})`
)

export type Credentials = { password_hash: string | null; pepper_id: string | null; password_version: number }
export type Identity = Credentials & { id: string; disabled_at: Date | null; email_verified_at: Date | null }
/** `id` is null when the address has no account. */
export type AccountRow = Omit<Identity, 'id'> & { id: string | null; failures: number }

/** Reads what is needed to check a password, by e-mail address. Always returns one row. */
export const findAccount = statement(
  'find_account',
  (_, $: { email: string }) => sql<AccountRow>`
  select id, password_hash, pepper_id, password_version, disabled_at, email_verified_at, failures
  from find_account(${$.email})`
)

/** Whether the user of this e-mail address has recently opened a session from the network of this IP address. */
export const isKnownNetwork = statement(
  'is_known_network',
  (_, $: { email: string; address: string }) => sql<{ known: boolean }>`
  select is_known_network(${$.email}, ${$.address}::inet) as known`
)

/** Counts another wrong password in a row, also for an address without an account. */
export const countFailure = statement(
  'count_sign_in_failure',
  (_, $: { email: string }) => sql<{ failures: number }>`select count_sign_in_failure(${$.email}) as failures`,
  { writes: true }
)

export const forgetFailures = statement(
  'forget_sign_in_failures',
  (_, $: { email: string }) => sql<{ done: unknown }>`select forget_sign_in_failures(${$.email}) as done`,
  { writes: true }
)

export const sweepFailures = statement(
  'sweep_sign_in_failures',
  (_, $: { batch: number }) => sql<{ removed: number }>`select sweep_sign_in_failures(${$.batch})::int as removed`,
  { writes: true }
)

export const myCredentials = statement(
  'my_credentials',
  (_, __: Record<never, never>) => sql<Credentials & { email: string }>`
  select email, password_hash, pepper_id, password_version from my_credentials()`
)

export type MyTenant = { id: string; slug: string; name: string; status: TenantStatus; role: Role }

/** Lists the user's tenants, the most recently used first. */
export const myTenantsByUse = statement(
  'my_tenants_by_use',
  (_, __: Record<never, never>) => sql<MyTenant>`
  select id, slug, name, status, role from my_tenants() order by last_used_at desc nulls last, id`
)

/** The tenant that the gate's user used last. Active ones come before suspended ones. No row: the user is in none. */
export const findTenantLastUsed = statement(
  'find_tenant_last_used',
  (_, __: Record<never, never>) => sql<{ id: string }>`
  select id from my_tenants() order by status = 'active' desc, last_used_at desc nulls last, id limit 1`
)

/**
 * A SQL condition: whether the session may know of a tenant. A session that was opened through an agency's own provider
 * knows of that agency only. Without a session it is an operator who asks.
 */
const isInReach = (tenant: RawBuilder<unknown>, sessionId: string | null) => sql<boolean>`(${sessionId}::uuid is null
    or ${tenant} = current_tenant_id()
    or exists (select from sessions s where s.tenant_id = current_tenant_id() and s.id = ${sessionId} and s.provider_id is null))`

/** Lists the user's tenants by slug, one page after `after_slug`, as far as the session may know of them. */
export const myTenantsPage = statement(
  'my_tenants_page',
  (_, $: { session_id: string | null; after_slug: string; limit: number }) => sql<MyTenant>`
  select id, slug, name, status, role from my_tenants() t
  where slug > ${$.after_slug} and ${isInReach(sql`t.id`, $.session_id)} order by slug limit ${$.limit}`,
  { slow: true }
)

export type MySession = {
  id: string
  tenant_id: string
  tenant_slug: string
  user_agent: string | null
  ip: string | null
  created_at: Date
  last_used_at: Date
  expires_at: Date
  /** Whether a key of the client is needed to use the session. */
  bound: boolean
}

/** Lists the user's open sessions that the present one may know of, newest first. Ids increase with time, so the id alone is the page's position. */
export const mySessionsPage = statement(
  'my_sessions_page',
  (_, $: { session_id: string | null; idle_seconds: number; after_id: string; limit: number }) => sql<MySession>`
  select id, tenant_id, tenant_slug, user_agent, host(ip) as ip, created_at, last_used_at, expires_at,
    key_thumbprint is not null as bound
  from my_sessions_with_keys(make_interval(secs => ${$.idle_seconds})) m
  where id < ${$.after_id} and ${isInReach(sql`m.tenant_id`, $.session_id)} order by id desc limit ${$.limit}`,
  { slow: true }
)

/** Ends one session of the user (`one`), or all but one (`keep`) with one mark per tenant; publishes and audits it. */
export const endMySessions = statement(
  'end_my_sessions',
  (_, $: { one: string | null; keep: string | null; token_seconds: number }) => sql<{ ended: number }>`
  select end_my_sessions(${$.one}, ${$.keep}, make_interval(secs => ${$.token_seconds}))::int as ended`,
  { writes: true }
)

/**
 * Ends the user's account in all tenants. `last_owner`: nothing has changed, because a tenant would be left without an
 * owner.
 */
export const endMyIdentity = statement(
  'end_my_identity',
  (_, $: { token_seconds: number }) => sql<{ outcome: 'ended' | 'last_owner' }>`
  select end_my_identity(make_interval(secs => ${$.token_seconds})) as outcome`,
  { writes: true }
)

/**
 * Ends the account of somebody whom only the own provider of the gate's tenant lets in. With nothing changed: `elsewhere`, they
 * are in another tenant too; `own_way_in`, they can sign in otherwise; `last_owner`.
 */
export const endMyConfinedIdentity = statement(
  'end_my_confined_identity',
  (_, $: { token_seconds: number }) => sql<{ outcome: 'ended' | 'last_owner' | 'elsewhere' | 'own_way_in' }>`
  select end_my_confined_identity(make_interval(secs => ${$.token_seconds})) as outcome`,
  { writes: true }
)

/**
 * A change that makes issued tokens invalid; processes must remember it for `seconds_left`. `state` depends on the kind.
 * `member`: the role that the user now has, or null for none. `sessions`: `<through>` or `<through> <kept>`, see
 * db/migrations/0009_session_marks.ts. `tenant`: its status. A `plan` makes no token invalid.
 */
export type Revocation = {
  tenant_id: string
  kind: 'session' | 'sessions' | 'member' | 'tenant' | 'plan'
  subject: string
  state: string | null
  seconds_left: number
}

/**
 * Which server answers, and which of its databases. Transaction ids, and so snapshots, mean something in one database only. A
 * server that has started anew counts as another one: what it has lost in a crash, and what it was restored to, is unknown.
 */
const source = sql<string>`(select concat_ws(' ', extract(epoch from pg_postmaster_start_time()), d.oid)
  from pg_database d where d.datname = current_database())`

/**
 * Reads the current snapshot. Call it before reading all unexpired revocations (`changesPage`). Every change that is visible
 * in the snapshot is then known, so later reads ask for the rest only (`changesUnseen`).
 */
export const changesSnapshot = statement(
  'changes_snapshot',
  (_, __: Record<never, never>) => sql<{ snapshot: string; source: string }>`
  select pg_current_snapshot()::text as snapshot, ${source} as source`
)

/**
 * A page of the unexpired revocations, ordered by tenant and id. `entries` has one line each: kind, tenant, subject, seconds
 * left and state, separated by spaces. A missing state means null.
 */
export const changesPage = statement(
  'changes_page',
  (_, $: { after_tenant: string; after_id: number; limit: number }) => sql<{
    found: number
    last_tenant: string
    last_id: number
    entries: string
  }>`
  select found, last_tenant, last_id::float8 as last_id, entries
  from changes_page(${$.after_tenant}, ${$.after_id}::bigint, ${$.limit}::int)`,
  { slow: true }
)

/** Returns the snapshot of this read first, then each change that was not visible in the snapshot `seen`. */
export const changesUnseen = statement(
  'changes_unseen',
  (_, $: { seen: string }) => sql<
    { snapshot: string; source: string } | ({ snapshot: null } & (Revocation | ReadChange))
  >`
  select snapshot, case when snapshot is not null then ${source} end as source, tenant_id, kind, subject, state, seconds_left
  from changes_unseen(${$.seen}::text::pg_snapshot)`
)

export const peppersInUse = statement(
  'peppers_in_use',
  (_, __: Record<never, never>) => sql<{ id: string }>`
  select id from peppers_in_use() as id`
)

export const sweep = statement(
  'sweep',
  (_, $: { batch: number }) => sql<{ removed: number }>`
  select sweep(${$.batch})::int as removed`,
  { writes: true }
)

/** Removes sessions that ended more than `age_seconds` ago. */
export const sweepSessions = statement(
  'sweep_sessions',
  (_, $: { batch: number; age_seconds: number }) => sql<{ removed: number }>`
  select sweep_sessions(${$.batch}, make_interval(secs => ${$.age_seconds}))::int as removed`,
  { writes: true }
)

export const ensureAuditPartitions = statement(
  'ensure_audit_partitions',
  (_, __: Record<never, never>) => sql<{ ensured: unknown }>`select ensure_audit_partitions() as ensured`,
  { writes: true }
)

/** Proves that the database answers. */
export const ping = statement('ping', (_, __: Record<never, never>) => sql<{ one: number }>`select 1 as one`)

/**
 * The flushed position of the primary's WAL, in bytes. Replicas receive at most this, and every acknowledged commit is
 * before it.
 */
export const walPosition = statement(
  'wal_position',
  (_, __: Record<never, never>) => sql<{ position: number }>`
  select pg_wal_lsn_diff(pg_current_wal_flush_lsn(), '0/0')::float8 as position`
)

/** Claims the next mails to send, leased to the caller for `lease_seconds`. */
export const claimMail = statement(
  'claim_mail',
  (_, $: { batch: number; lease_seconds: number }) => sql<{ tenant_id: string; id: string }>`
  select tenant_id, id from claim_mail(${$.batch}, make_interval(secs => ${$.lease_seconds}))`,
  { writes: true }
)

export const sweepOutbox = statement(
  'sweep_outbox',
  (_, $: { batch: number }) => sql<{ removed: number }>`select sweep_outbox(${$.batch})::int as removed`,
  { writes: true }
)

export const sweepIdempotencyKeys = statement(
  'sweep_idempotency_keys',
  (_, $: { batch: number }) => sql<{ removed: number }>`select sweep_idempotency_keys(${$.batch})::int as removed`,
  { writes: true }
)

export const sweepOneTimeMarks = statement(
  'sweep_one_time_marks',
  (_, $: { batch: number }) => sql<{ removed: number }>`select sweep_one_time_marks(${$.batch})::int as removed`,
  { writes: true }
)

/** Removes invitations, with their e-mail addresses, thirty days after their end. */
export const sweepInvitations = statement(
  'sweep_invitations',
  (_, $: { batch: number }) => sql<{ removed: number }>`select sweep_invitations(${$.batch})::int as removed`,
  { writes: true }
)

/** Removes one tenant that is due for removal; null when there is none. */
export const purgeTenant = statement(
  'purge_tenant',
  (_, __: Record<never, never>) => sql<{ id: string | null }>`select purge_tenant() as id`,
  { writes: true }
)
