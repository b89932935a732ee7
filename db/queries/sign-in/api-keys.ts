import { sql } from 'kysely'
import type { KeyRole, Permission } from '../../../src/auth/api-keys/permissions.ts'
import { statement } from '../../gate/statement.ts'
import type { TenantStatus } from '../../gate/tables.ts'

/** What a secret opens. `sid` names what is issued for it, and `seconds_left` is null for a key that does not expire. */
export type FoundKey = {
  role: KeyRole
  permissions: Permission[]
  cidrs: string[]
  sid: string
  seconds_left: number | null
  status: TenantStatus
}

/**
 * Finds a key by the digest of its secret, or of its secret before the last rotation. No row for a wrong secret, and for a key
 * that has ended. Run it in the scope of the key's tenant.
 */
export const findKey = statement(
  'find_api_key',
  (_, $: { tenant_id: string; id: string; digest: Buffer }) => sql<FoundKey>`
  select k.role, k.permissions, k.cidrs, t.status,
    case when k.secret_hash = ${$.digest}::bytea then k.sid else k.previous_sid end as sid,
    extract(epoch from least(k.expires_at, case when k.secret_hash <> ${$.digest}::bytea then k.previous_until end) - now())::float8
      as seconds_left
  from api_keys k join tenants t on t.id = k.tenant_id
  where k.tenant_id = ${$.tenant_id} and k.id = ${$.id}
    and (k.secret_hash = ${$.digest}::bytea or (k.previous_hash = ${$.digest}::bytea and k.previous_until > now()))`
)

export const noteKeyUses = statement(
  'note_key_uses',
  (_, $: { tenants: string[]; keys: string[]; used: Date[] }) => sql<{ noted: number }>`
  select note_key_uses(${$.tenants}::uuid[], ${$.keys}::uuid[], ${$.used}::timestamptz[])::int as noted`,
  { writes: true }
)
