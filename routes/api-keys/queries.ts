import { sql } from 'kysely'
import type { TenantTransaction } from '../../db/gate/gate.ts'
import { statement } from '../../db/gate/statement.ts'
import { keyRevocationLife } from '../../src/auth/api-keys/key-reach.ts'
import type { KeyRole, Permission } from '../../src/auth/api-keys/permissions.ts'
import type { Role } from '../../src/auth/roles.ts'

export type ApiKeyRow = {
  id: string
  name: string
  role: KeyRole
  permissions: Permission[]
  cidrs: string[]
  created_by: string
  created_at: Date
  expires_at: Date | null
  last_used_at: Date | null
  previous_until: Date | null
}
type NewKey = Pick<ApiKeyRow, 'id' | 'name' | 'role' | 'permissions' | 'cidrs'> & {
  expires_at: Date | null
  digest: Buffer
}

const columns = sql`k.id, k.name, k.role, k.permissions, k.cidrs, k.created_by, k.created_at, k.expires_at, k.last_used_at,
  case when k.previous_until > now() then k.previous_until end as previous_until`

/** The keys that an agency may have. */
export const maxKeys = 100
const revocationLife = sql.lit(keyRevocationLife)

/** The newest first. */
export const listKeys = statement(
  'list_api_keys',
  (_, $: { tenant_id: string; before_id: string; limit: number }) => sql<ApiKeyRow>`
  select ${columns} from api_keys k
  where k.tenant_id = ${$.tenant_id} and k.id < ${$.before_id} order by k.id desc limit ${$.limit}`
)

export const readKey = statement(
  'read_api_key',
  (_, $: { tenant_id: string; id: string }) => sql<ApiKeyRow>`
  select ${columns} from api_keys k where k.tenant_id = ${$.tenant_id} and k.id = ${$.id}`
)

/**
 * The role of the gate's user, who is about to be the author of a key. It stays until the transaction ends, so that whoever
 * takes the right away waits for the key, and ends it. Undefined for somebody who is no member, or disabled.
 */
export async function lockAuthorRole(trx: TenantTransaction): Promise<Role | undefined> {
  const account = await sql`
    select from users where id = current_user_id() and disabled_at is null for share`.execute(trx)
  if (account.rows.length === 0) return undefined
  const { rows } = await sql<{ role: Role }>`
    select role from memberships where user_id = current_user_id() for share`.execute(trx)
  return rows[0]?.role
}

/**
 * Inserts a key. Host bits of its networks are cleared. Keys that have expired make room for it. `full`: the agency has as many
 * others as it may have.
 */
export async function insertKey(trx: TenantTransaction, tenantId: string, key: NewKey): Promise<ApiKeyRow | 'full'> {
  // of two requests at the same moment one waits for the other, so that the count is right
  await sql`select from tenants where id = ${tenantId} for no key update`.execute(trx)
  await sql`
    delete from api_keys where expires_at <= now() and (select count(*) from api_keys) >= ${maxKeys}`.execute(trx)
  const count = await sql<{ n: number }>`select count(*)::int as n from api_keys`.execute(trx)
  if ((count.rows[0]?.n ?? 0) >= maxKeys) return 'full'
  const { id, name, role, permissions, cidrs, expires_at, digest } = key
  const { rows } = await sql<ApiKeyRow>`
    insert into api_keys as k (id, name, role, permissions, cidrs, expires_at, secret_hash)
    values (${id}, ${name}, ${role}, ${permissions}::text[],
      array(select network(c::inet)::cidr from unnest(${cidrs}::text[]) c), ${expires_at}::timestamptz, ${digest}::bytea)
    returning ${columns}`.execute(trx)
  return rows[0] as ApiKeyRow
}

/**
 * Gives a key another secret, and makes the gate's user its author. The older secret stays good for the overlap, and the one
 * before it ends. What was issued for the older secret is revoked only where it could outlive the overlap: then the secret gets
 * another `sid`, under which it goes on, and it ends with whoever was its author. Resolves to undefined when there is no such key.
 */
export async function rotateKey(
  trx: TenantTransaction,
  { id, digest, overlap_seconds }: { id: string; digest: Buffer; overlap_seconds: number }
): Promise<(ApiKeyRow & { expired: boolean }) | undefined> {
  const overlap = sql`make_interval(secs => ${overlap_seconds})`
  const { rows } = await sql<ApiKeyRow & { expired: boolean }>`
    with before as materialized (
      select id, secret_hash, sid, previous_sid, created_by, coalesce(expires_at <= now(), false) as expired from api_keys
      where id = ${id} for update
    ), revoked as (
      insert into changes (kind, subject, expires_at)
      select 'session', s.sid, now() + interval ${revocationLife}
      from before b cross join lateral (
        values (b.previous_sid), (case when ${overlap} < interval ${revocationLife} then b.sid end)) s (sid)
      where s.sid is not null
    )
    update api_keys k set
      secret_hash = ${digest}::bytea, sid = gen_random_uuid(), created_by = current_user_id(),
      previous_hash = case when ${overlap_seconds}::int > 0 then b.secret_hash end,
      previous_until = case when ${overlap_seconds}::int > 0 then now() + ${overlap} end,
      previous_by = case when ${overlap_seconds}::int > 0 then b.created_by end,
      previous_sid = case
        when ${overlap_seconds}::int = 0 then null
        when ${overlap} < interval ${revocationLife} then gen_random_uuid()
        else b.sid
      end
    from before b where k.tenant_id = current_tenant_id() and k.id = b.id
    returning ${columns}, b.expired`.execute(trx)
  return rows[0]
}

/** Ends a key, and what was issued for it. Resolves to undefined when there is no such key. */
export async function deleteKey(trx: TenantTransaction, id: string): Promise<{ name: string } | undefined> {
  const { rows } = await sql<{ name: string }>`
    with ended as (
      delete from api_keys where id = ${id} returning name, sid, previous_sid
    ), revoked as (
      insert into changes (kind, subject, expires_at)
      select 'session', s.sid, now() + interval ${revocationLife}
      from ended e cross join lateral (values (e.sid), (e.previous_sid)) s (sid) where s.sid is not null
    )
    select name from ended`.execute(trx)
  return rows[0]
}
