import { createHash } from 'node:crypto'
import { sql } from 'kysely'
import type { TenantTransaction } from '../gate/gate.ts'
import type { Scope } from '../gate/gate-query.ts'

/** An idempotency key belongs to one user in one tenant, on one route. `fingerprint` is the SHA-256 of the request. */
export type ClaimedKey = { owner: Scope; route: string; key: string; fingerprint: Buffer }

/** The reply to the first request, byte for byte. */
export type StoredReply = { status: number; headers: Record<string, string>; body: string }

/**
 * Locks a key for the rest of the transaction, without waiting. Resolves to the reply stored under the key, or to undefined
 * when the key is free. `in_use`: another transaction holds the key. `reused`: the key was used for a different request.
 *
 * The lock is released when the transaction ends, after its writes became visible. So the next holder sees all of them or,
 * after a rollback, none.
 */
export async function claimKey(
  trx: TenantTransaction,
  { owner, route, key, fingerprint }: ClaimedKey
): Promise<StoredReply | 'in_use' | 'reused' | undefined> {
  // a cryptographic digest, so that a client can't choose a key that collides with another client's
  const digest = createHash('sha256')
    .update(JSON.stringify([owner.tenant_id, owner.user_id, route, key]))
    .digest()
  const lockId = digest.readBigInt64BE().toString()
  const { rows } = await sql<{
    locked: boolean
  }>`select pg_try_advisory_xact_lock(${lockId}::bigint) as locked`.execute(trx)
  if (!rows[0]?.locked) return 'in_use'
  // a separate statement, so that its snapshot includes everything committed before the lock was free
  const stored = await trx
    .with('expired', (db) =>
      db
        .deleteFrom('idempotency_keys')
        .where('tenant_id', '=', owner.tenant_id)
        .where('user_id', '=', owner.user_id)
        .where('route', '=', route)
        .where('key', '=', key)
        .where('expires_at', '<=', sql<Date>`now()`)
    )
    .selectFrom('idempotency_keys')
    .select(['fingerprint', 'status', 'headers', 'body'])
    .where('tenant_id', '=', owner.tenant_id)
    .where('user_id', '=', owner.user_id)
    .where('route', '=', route)
    .where('key', '=', key)
    .where('expires_at', '>', sql<Date>`now()`)
    .executeTakeFirst()
  if (!stored) return undefined
  const { fingerprint: known, ...reply } = stored
  return known.equals(fingerprint) ? reply : 'reused'
}

/**
 * Stores the reply under a key that this transaction has claimed. Resolves to false when the owner is no longer a
 * member, or is an API key that has ended.
 */
export async function storeReply(
  trx: TenantTransaction,
  { owner, route, key, fingerprint }: ClaimedKey,
  { status, headers, body }: StoredReply
): Promise<boolean> {
  const { rows } = await sql`
    with member as materialized (
      select from memberships where tenant_id = ${owner.tenant_id} and user_id = ${owner.user_id} for key share
    ), api_key as materialized (
      select from api_keys where tenant_id = ${owner.tenant_id} and id = ${owner.user_id} for key share
    )
    insert into idempotency_keys (route, key, fingerprint, status, headers, body)
    select ${route}, ${key}, ${fingerprint}::bytea, ${status}::integer, ${JSON.stringify(headers)}::jsonb, ${body}
    where exists (select from member) or exists (select from api_key)
    returning 1`.execute(trx)
  return rows.length > 0
}
