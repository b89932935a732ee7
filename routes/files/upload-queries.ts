import { sql } from 'kysely'
import type { TenantTransaction } from '../../db/gate/gate.ts'
import { statement } from '../../db/gate/statement.ts'

/*
 * Uploads that outlive a request: direct and resumable ones.
 *
 * Of a resumable upload, `received` counts the bytes in complete parts and in `tail`, a column that an older version
 * writes. The pieces follow these bytes. Pieces are appended, so that a small piece costs a small write. Pieces that
 * fill a part become a part.
 */

export type UploadRow = {
  name: string
  purpose: string | null
  content_type: string
  size: number
  created_by: string | null
  sha256: Buffer | null
  store_id: string | null
  received: number
  tags: string[]
  expires_at: Date
}

/** The number of bytes in pieces. Pieces from before `received` advanced do not count. */
const pieced = sql`case when u.pieced_from = u.received then u.pieced else 0 end`
const arrived = sql`(u.received + ${pieced})`

/** Reads an unfinished upload of an active agency. */
export const readUpload = statement(
  'read_upload',
  (_, $: { tenant_id: string; id: string }) => sql<UploadRow>`
  select f.name, f.purpose, f.content_type, f.size::float8 as size, f.created_by, u.sha256, u.store_id,
    ${arrived}::float8 as received, u.tags, f.expires_at
  from files f join uploads u on u.tenant_id = f.tenant_id and u.id = f.id
  where f.tenant_id = ${$.tenant_id} and f.id = ${$.id} and f.status = 'pending'
    and exists (select from tenants t where t.id = ${$.tenant_id} and t.status = 'active')`
)

export async function insertUpload(
  trx: TenantTransaction,
  upload: { id: string; sha256: Buffer | null; store_id: string | null }
): Promise<void> {
  await trx.insertInto('uploads').values(upload).execute()
}

/** Makes the request the only writer of an upload. The previous writer notices at its next statement. */
export const takeUpload = statement(
  'take_upload',
  (_, $: { tenant_id: string; id: string; writer: string; offset: number }) => sql<{
    tags: string[]
    store_id: string | null
    received: number
  }>`
  update uploads u set writer = ${$.writer}::uuid
  where u.tenant_id = ${$.tenant_id} and u.id = ${$.id} and ${arrived} = ${$.offset}::bigint
    and coalesce(u.concluding_until < now(), true)
  returning u.tags, u.store_id, u.received::float8 as received`,
  { writes: true }
)

/** Checks that the request is still the writer. No row: another request is. */
export const findWriter = statement(
  'find_writer',
  (_, $: { tenant_id: string; id: string; writer: string }) => sql<{ id: string }>`
  select id from uploads where tenant_id = ${$.tenant_id} and id = ${$.id} and writer = ${$.writer}::uuid`
)

/**
 * Gives the request a lease to complete an upload, and keeps the sweep from the upload meanwhile. No row: another
 * request has the lease, or the upload is completed already.
 */
export const leaseCompletion = statement(
  'conclude_upload',
  (_, $: { tenant_id: string; id: string; seconds: number }) => sql<{ id: string }>`
  with mine as (
    update uploads set concluding_until = now() + make_interval(secs => ${$.seconds})
    where tenant_id = ${$.tenant_id} and id = ${$.id} and coalesce(concluding_until < now(), true) returning id
  ), kept as (
    update files f set expires_at = greatest(f.expires_at, now() + make_interval(secs => ${$.seconds}))
    from mine where f.tenant_id = ${$.tenant_id} and f.id = mine.id and f.status = 'pending'
  )
  select id from mine`,
  { writes: true }
)

/** Renews the lease to complete an upload. */
export const renewCompletion = statement(
  'renew_conclusion',
  (_, $: { tenant_id: string; id: string; seconds: number }) => sql<never>`
  with mine as (
    update uploads set concluding_until = now() + make_interval(secs => ${$.seconds})
    where tenant_id = ${$.tenant_id} and id = ${$.id} returning id
  )
  update files f set expires_at = greatest(f.expires_at, now() + make_interval(secs => ${$.seconds}))
  from mine where f.tenant_id = ${$.tenant_id} and f.id = mine.id and f.status = 'pending'`,
  { writes: true }
)

/** Releases the lease after a failure, so that another request can complete the upload. */
export const releaseCompletion = statement(
  'release_upload',
  (_, $: { tenant_id: string; id: string }) => sql<never>`
  update uploads set concluding_until = null where tenant_id = ${$.tenant_id} and id = ${$.id}`,
  { writes: true }
)

/** Identifies the writer of an upload, with the upload's idle timeout and its maximum age. */
type Writing = { tenant_id: string; id: string; writer: string; timeout_seconds: number; life_seconds: number }

/** Renews the idle timeout of an upload, up to its maximum age. */
const renewTimeout = ($: Writing) => sql`
  update files set expires_at = least(now() + make_interval(secs => ${$.timeout_seconds}),
    created_at + make_interval(secs => ${$.life_seconds}))
  where tenant_id = ${$.tenant_id} and id = ${$.id} and status = 'pending'`

/**
 * Records a part that is in the store, and deletes its pieces. No row: another request is the writer, or the sweep has
 * the upload.
 */
export const advanceUpload = statement(
  'advance_upload',
  (_, $: Writing & { received: number; tags: string[]; store_id: string | null }) => sql<{ expires_at: Date }>`
  with file as (${renewTimeout($)} returning expires_at),
  upload as (
    update uploads set received = ${$.received}::bigint, tags = ${$.tags}::text[], tail = '', store_id = ${$.store_id}
    from file where tenant_id = ${$.tenant_id} and id = ${$.id} and writer = ${$.writer}::uuid returning file.expires_at
  ), unneeded as (
    delete from upload_pieces where tenant_id = ${$.tenant_id} and upload_id = ${$.id} and exists (select from upload)
  )
  select expires_at from upload`,
  { writes: true }
)

/**
 * Small pieces are joined up to this size, so that a part has a few thousand pieces at most. Several such rows fit into
 * a page.
 */
const joinedBytes = 1500

/**
 * Appends a piece. `received` is the number of bytes before the pieces. No row: another request is the writer, or the
 * sweep has the upload.
 */
export const appendPiece = statement(
  'append_piece',
  (_, $: Writing & { received: number; position: number; content: Buffer }) => sql<{ expires_at: Date }>`
  with file as (${renewTimeout($)} returning expires_at),
  upload as (
    update uploads u set pieced = ${pieced} + octet_length(${$.content}::bytea), pieced_from = u.received
    from file where u.tenant_id = ${$.tenant_id} and u.id = ${$.id} and u.writer = ${$.writer}::uuid
      and u.received = ${$.received}::bigint
    returning file.expires_at
  ), joined as (
    update upload_pieces p set content = p.content || ${$.content}::bytea
    from upload
    where p.tenant_id = ${$.tenant_id} and p.upload_id = ${$.id} and p.received = ${$.received}::bigint
      and octet_length(p.content) + octet_length(${$.content}::bytea) <= ${sql.lit(joinedBytes)}
      and p.position = (select max(l.position) from upload_pieces l
        where l.tenant_id = ${$.tenant_id} and l.upload_id = ${$.id} and l.received = ${$.received}::bigint)
    returning 1
  ), appended as (
    insert into upload_pieces (upload_id, received, position, content)
    select ${$.id}, ${$.received}::bigint, ${$.position}::bigint, ${$.content}::bytea from upload
    where not exists (select from joined)
  )
  select expires_at from upload`,
  { writes: true }
)

/** Renews the idle timeout while bytes arrive. No row: another request is the writer, or the sweep has the upload. */
export const renewUpload = statement(
  'prolong_upload',
  (_, $: Writing) => sql<{ id: string }>`
  ${renewTimeout($)} and exists (select from uploads u
    where u.tenant_id = ${$.tenant_id} and u.id = ${$.id} and u.writer = ${$.writer}::uuid)
  returning id`,
  { writes: true }
)

/** Reads the bytes after the complete parts, in order: `tail` of an older version, then the pieces. */
export const readPieces = statement(
  'read_pieces',
  (_, $: { tenant_id: string; id: string }) => sql<{ content: Buffer }>`
  select content from (
    select u.tail as content, -1::bigint as position from uploads u where u.tenant_id = ${$.tenant_id} and u.id = ${$.id}
    union all
    select p.content, p.position from uploads u
    join upload_pieces p on p.tenant_id = u.tenant_id and p.upload_id = u.id and p.received = u.received
    where u.tenant_id = ${$.tenant_id} and u.id = ${$.id}) as kept
  order by position`,
  { slow: true }
)

/** Locks the storage usage of the tenant until the transaction ends, so that reservations run one after the other. */
export async function lockStorageUsage(trx: TenantTransaction, tenantId: string): Promise<void> {
  await sql`insert into storage_usage (bytes) values (0) on conflict (tenant_id) do nothing`.execute(trx)
  await sql`select from storage_usage where tenant_id = ${tenantId} for update`.execute(trx)
}

/** Sums the bytes that a member's unfinished uploads hold. */
export async function heldBytes(trx: TenantTransaction, tenantId: string, userId: string): Promise<number> {
  const { rows } = await sql<{ bytes: number }>`
    select coalesce(sum(f.size), 0)::float8 as bytes
    from uploads u join files f on f.tenant_id = u.tenant_id and f.id = u.id
    where u.tenant_id = ${tenantId} and f.created_by = ${userId} and f.status = 'pending'`.execute(trx)
  return rows[0]?.bytes ?? 0
}

export type UnfinishedUpload = {
  id: string
  name: string
  purpose: string | null
  content_type: string
  size: number
  received: number
  created_by: string | null
  created_at: Date
  expires_at: Date
}

/** Lists the unfinished uploads of one member, or of all members, the newest first. */
export const listUnfinishedUploads = statement(
  'unfinished_uploads',
  (_, $: { tenant_id: string; user_id: string | null; after_id: string; limit: number }) => sql<UnfinishedUpload>`
  select f.id, f.name, f.purpose, f.content_type, f.size::float8 as size, ${arrived}::float8 as received,
    f.created_by, f.created_at, f.expires_at
  from uploads u join files f on f.tenant_id = u.tenant_id and f.id = u.id
  where u.tenant_id = ${$.tenant_id} and u.id < ${$.after_id} and f.status = 'pending'
    and (${$.user_id}::uuid is null or f.created_by = ${$.user_id}::uuid)
  order by u.id desc limit ${$.limit}`,
  { slow: true }
)

/** Ends an unfinished upload of one member, or of any member. The sweep removes its bytes. */
export async function endUpload(
  trx: TenantTransaction,
  tenantId: string,
  id: string,
  userId: string | null
): Promise<{ name: string; size: number } | undefined> {
  const { rows } = await sql<{ name: string; size: number }>`
    update files f set status = 'removing', expires_at = now()
    where f.tenant_id = ${tenantId} and f.id = ${id} and f.status = 'pending'
      and (${userId}::uuid is null or f.created_by = ${userId}::uuid)
      and exists (select from uploads u where u.tenant_id = f.tenant_id and u.id = f.id)
    returning f.name, f.size::float8 as size`.execute(trx)
  return rows[0]
}
