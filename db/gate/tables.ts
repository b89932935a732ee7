import type { ColumnType, Generated, JSONColumnType } from 'kysely'
import type { InvitableRole, Role } from '../../src/auth/roles.ts'
import type { Locale } from '../../src/mail/layout.ts'

/** A column that only PostgreSQL writes, by default or trigger. `tenant_id` comes from the transaction's setting. */
type ByDatabase<T> = ColumnType<T, never, never>
/** A column that is set on insert and never updated. */
type Fixed<T> = ColumnType<T, T, never>

/** `mfa_required_from` is RFC 3339 in UTC with milliseconds, as the database compares it (0018_second_factor). */
export type TenantSettings = { allowed_origins?: string[]; locale?: Locale; mfa_required_from?: string }
export type TenantStatus = 'active' | 'suspended'

export type TenantsTable = {
  id: Fixed<string>
  slug: Fixed<string>
  name: string
  status: ColumnType<TenantStatus, never, TenantStatus>
  purge_at: ColumnType<Date | null, never, Date | null>
  plan: ColumnType<string, never, string>
  settings: JSONColumnType<TenantSettings, never, string>
  logo_url: ColumnType<string | null, never, string | null>
  version: ColumnType<number, never, number>
  created_at: ByDatabase<Date>
  updated_at: ColumnType<Date, never, Date>
}

/** `password_hash` and `pepper_id` can be written but not selected: the server's role has no right to read them. */
export type UsersTable = {
  id: Fixed<string>
  email: Fixed<string>
  name: string
  avatar_url: ColumnType<string | null, never, string | null>
  password_hash: ColumnType<never, string | null, string>
  pepper_id: ColumnType<never, string | null, string>
  password_version: ColumnType<number, never, number>
  email_verified_at: ColumnType<Date | null, Date | undefined, Date>
  disabled_at: ByDatabase<Date | null>
  mfa_enabled_at: ByDatabase<Date | null>
  version: ColumnType<number, never, number>
  created_at: ByDatabase<Date>
  updated_at: ColumnType<Date, never, Date>
}

export type MembershipsTable = {
  tenant_id: ByDatabase<string>
  user_id: Fixed<string>
  role: Role
  version: ColumnType<number, never, number>
  last_used_at: ColumnType<Date | null, Date | null, Date>
  joined_at: ByDatabase<Date>
  updated_at: ColumnType<Date, never, Date>
}

export type SessionsTable = {
  tenant_id: ByDatabase<string>
  id: Fixed<string>
  user_id: Fixed<string>
  counter: ColumnType<number, never, number>
  rotated_at: ColumnType<Date, never, Date>
  expires_at: Fixed<Date>
  revoked_at: ColumnType<Date | null, never, Date>
  user_agent: ByDatabase<string | null>
  ip: ByDatabase<string | null>
  created_at: ByDatabase<Date>
  authenticated_at: ColumnType<Date | null, Date | undefined, Date>
  mfa_at: ColumnType<Date | null, Date | null | undefined, Date>
  provider_id: ColumnType<string | null, never, never>
  provider_at: ColumnType<Date | null, never, never>
  key_thumbprint: ColumnType<string | null, never, never>
}

export type ChangesTable = {
  kind: ColumnType<never, 'session' | 'sessions' | 'member' | 'tenant', never>
  subject: ColumnType<never, string, never>
  state: ColumnType<never, string | null, never>
  expires_at: ColumnType<never, Date, never>
}

export type AuditEventsTable = {
  tenant_id: ByDatabase<string>
  created_at: ByDatabase<Date>
  id: ByDatabase<string>
  action: Fixed<string>
  actor_id: ColumnType<string | null, string | null | undefined, never>
  target_id: ColumnType<string | null, string | null | undefined, never>
  session_id: ColumnType<string | null, string | null | undefined, never>
  ip: ByDatabase<string | null>
  user_agent: ByDatabase<string | null>
  request_id: ByDatabase<string | null>
  detail: ColumnType<unknown, string | undefined, never>
}

export type InvitationsTable = {
  tenant_id: ByDatabase<string>
  id: Fixed<string>
  email: Fixed<string>
  role: InvitableRole
  invited_by: ColumnType<string, never, string>
  generation: ColumnType<number, never, number>
  created_at: ColumnType<Date, never, Date>
  expires_at: ColumnType<Date, never, Date>
  accepted_at: ColumnType<Date | null, never, Date>
}

export type MailKind = 'invitation'

export type OutboxTable = {
  tenant_id: ByDatabase<string>
  id: ByDatabase<string>
  kind: Fixed<MailKind>
  subject_id: Fixed<string>
  generation: Fixed<number>
  attempts: ByDatabase<number>
  due_at: ColumnType<Date, never, Date>
  sent_at: ColumnType<Date | null, never, Date>
  dropped_at: ColumnType<Date | null, never, Date>
  last_error: ColumnType<string | null, never, string>
  mailbox: Fixed<string>
  sender_id: ByDatabase<string | null>
  created_at: ByDatabase<Date>
}

export type UploadsTable = {
  tenant_id: ByDatabase<string>
  id: Fixed<string>
  sha256: Fixed<Buffer | null>
  store_id: ColumnType<string | null, string | null, string>
}

export type IdempotencyKeysTable = {
  tenant_id: ByDatabase<string>
  user_id: ByDatabase<string>
  route: Fixed<string>
  key: Fixed<string>
  fingerprint: Fixed<Buffer>
  status: Fixed<number>
  headers: ColumnType<Record<string, string>, string, never>
  body: Fixed<string>
  expires_at: ByDatabase<Date>
}

/** The tables that are reached through the tenant gate only. */
export type TenantTables = {
  tenants: TenantsTable
  users: UsersTable
  memberships: MembershipsTable
  sessions: SessionsTable
  changes: ChangesTable
  audit_events: AuditEventsTable
  invitations: InvitationsTable
  outbox: OutboxTable
  uploads: UploadsTable
  idempotency_keys: IdempotencyKeysTable
}

/**
 * The tables that are readable without a tenant: the list of migrations. All others need the gate or the directory's
 * functions.
 */
export type SharedTables = {
  kysely_migration: { name: Generated<string>; timestamp: string }
}
