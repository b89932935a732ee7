import { createHash } from 'node:crypto'
import { sql } from 'kysely'
import type { TenantTransaction } from '../gate/gate.ts'
import type { Scope } from '../gate/gate-query.ts'

/** A key belongs to one person in one tenant, on one route. `fingerprint` is the SHA-256 of what is asked. */
export type ClaimedKey = { owner: Scope; route: string; key: string; fingerprint: Buffer }

/** What was answered, byte for byte. */
export type StoredReply = { status: number; headers: Record<string, string>; body: string }

/**
 * Takes a key for the length of the transaction. Resolves to the reply that is stored under it, to nothing when it is free, and
 * never waits: `in_use` when another transaction works under it, `reused` when it stands for another request.
 *
 * The lock ends with the transaction, however that ends, and after what it wrote can be seen; so whoever gets it next sees
 * either everything or nothing.
 */
export async function claimKey(
  trx: TenantTransaction,
  { owner, route, key, fingerprint }: ClaimedKey
): Promise<StoredReply | 'in_use' | 'reused' | undefined> {
  // a digest, so that nobody can choose a key that meets somebody else's
  const digest = createHash('sha256')
    .update(JSON.stringify([owner.tenant_id, owner.user_id, route, key]))
    .digest()
  const lockId = digest.readBigInt64BE().toString()
  const { rows } = await sql<{
    locked: boolean
  }>`select pg_try_advisory_xact_lock(${lockId}::bigint) as locked`.execute(trx)
  if (!rows[0]?.locked) return 'in_use'
  // a statement of its own: this one sees what was committed before the lock was free
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

/** Keeps the reply under a key that this transaction has claimed. False: its owner is no longer a member. */
export async function storeReply(
  trx: TenantTransaction,
  { owner, route, key, fingerprint }: ClaimedKey,
  { status, headers, body }: StoredReply
): Promise<boolean> {
  const { rows } = await sql`
    insert into idempotency_keys (route, key, fingerprint, status, headers, body)
    select ${route}, ${key}, ${fingerprint}::bytea, ${status}::integer, ${JSON.stringify(headers)}::jsonb, ${body}
    from memberships where tenant_id = ${owner.tenant_id} and user_id = ${owner.user_id} for key share
    returning 1`.execute(trx)
  return rows.length > 0
}
