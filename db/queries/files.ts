import { sql } from 'kysely'
import type { TenantTransaction } from '../gate/gate.ts'
import { statement } from '../gate/statement.ts'

export type FileRow = {
  id: string
  name: string
  purpose: string | null
  content_type: string
  size: number
  sha256: string
  created_by: string | null
  created_at: Date
}

const shown = sql`id, name, purpose, content_type, size::float8 as size, encode(sha256, 'hex') as sha256, created_by, created_at`

/** A file that is whole and not deleted. */
export const readFile = statement(
  'read_file',
  (_, $: { tenant_id: string; id: string }) => sql<FileRow>`
  select ${shown} from files where tenant_id = ${$.tenant_id} and id = ${$.id} and status = 'ready'`
)

/** The same for a link, which nobody who could be suspended stands behind. */
export const readLinkedFile = statement(
  'read_linked_file',
  (_, $: { tenant_id: string; id: string }) => sql<FileRow>`
  select ${shown} from files where tenant_id = ${$.tenant_id} and id = ${$.id} and status = 'ready'
    and exists (select from tenants t where t.id = ${$.tenant_id} and t.status = 'active')`
)

export type NewFile = {
  id: string
  name: string
  folded_name: string
  purpose: string | null
  content_type: string
  /** Bytes that are reserved for it. */
  size: number
  timeout_seconds: number
}

/** A file whose bytes are about to arrive. No row: the tenant has not that much room, or as many files as it may have. */
export const reserveFile = statement(
  'reserve_file',
  (_, $: NewFile & { quota: number; max_files: number }) => sql<{ id: string }>`
  with room as (
    insert into storage_usage as u (bytes) select ${$.size}::bigint where ${$.size}::bigint <= ${$.quota}::bigint
    on conflict (tenant_id) do update set bytes = u.bytes + excluded.bytes where u.bytes + excluded.bytes <= ${$.quota}::bigint
      and u.files < ${$.max_files}::bigint
    returning 1
  )
  insert into files (id, name, folded_name, purpose, content_type, size, expires_at)
  select ${$.id}, ${$.name}, ${$.folded_name}, ${$.purpose}, ${$.content_type}, ${$.size}::bigint,
    now() + make_interval(secs => ${$.timeout_seconds})
  from room returning id`,
  { writes: true }
)

/** Reserves more for a file that is arriving, and keeps it from being swept. No row: no room, or it was swept. */
export const growFile = statement(
  'grow_file',
  (_, $: { tenant_id: string; id: string; more: number; quota: number; timeout_seconds: number }) => sql<{
    size: number
  }>`
  with file as (
    select id from files where tenant_id = ${$.tenant_id} and id = ${$.id} and status = 'pending' for update
  ), room as (
    update storage_usage set bytes = bytes + ${$.more}::bigint from file
    where tenant_id = ${$.tenant_id} and bytes + ${$.more}::bigint <= ${$.quota}::bigint returning 1
  )
  update files f set size = f.size + ${$.more}::bigint, expires_at = now() + make_interval(secs => ${$.timeout_seconds})
  from room where f.tenant_id = ${$.tenant_id} and f.id = ${$.id} returning f.size::float8 as size`,
  { writes: true }
)

export type FinishedFile = { id: string; size: number; sha256: Buffer; content_type: string; purpose: string | null }

/** The file is whole; what was reserved and not used is free again. Undefined: the sweep has taken it. */
export async function finishFile(
  trx: TenantTransaction,
  tenantId: string,
  { id, size, sha256, content_type, purpose }: FinishedFile
): Promise<FileRow | undefined> {
  const { rows } = await sql<FileRow>`
    with before as (
      select size from files where tenant_id = ${tenantId} and id = ${id} and status = 'pending' for update
    ), freed as (
      update storage_usage u set bytes = u.bytes - before.size + ${size}::bigint from before where u.tenant_id = ${tenantId} returning 1
    ), finished as (
      delete from uploads where tenant_id = ${tenantId} and id = ${id}
    )
    update files set status = 'ready', size = ${size}::bigint, sha256 = ${sha256}, content_type = ${content_type},
      purpose = ${purpose}, expires_at = null
    from freed where tenant_id = ${tenantId} and id = ${id} returning ${shown}`.execute(trx)
  return rows[0]
}

/** Takes a file that has not become one, so that nobody finishes it any more. No row: it is finished, or somebody else's to remove. */
export const giveUpFile = statement(
  'give_up_file',
  (_, $: { tenant_id: string; id: string; lease_seconds: number }) => sql<{ store_id: string | null }>`
  update files f set status = 'removing', expires_at = now() + make_interval(secs => ${$.lease_seconds})
  where f.tenant_id = ${$.tenant_id} and f.id = ${$.id} and f.status = 'pending'
  returning (select u.store_id from uploads u where u.tenant_id = f.tenant_id and u.id = f.id) as store_id`,
  { writes: true }
)

/** Removes the row of a file whose bytes are gone, and frees its room. */
export const removeFile = statement(
  'remove_file',
  (_, $: { tenant_id: string; id: string }) => sql<never>`
  with gone as (
    delete from files where tenant_id = ${$.tenant_id} and id = ${$.id} and status in ('pending', 'removing') returning size
  )
  update storage_usage u set bytes = u.bytes - gone.size from gone where u.tenant_id = ${$.tenant_id}`,
  { writes: true }
)

export type ClaimedFile = {
  tenant_id: string
  id: string
  was: 'pending' | 'deleted' | 'removing'
  store_id: string | null
}

/** Files whose time is over, leased to the caller. */
export const claimFiles = statement(
  'claim_files',
  (_, $: { batch: number; lease_seconds: number }) =>
    sql<ClaimedFile>`select tenant_id, id, was, store_id from claim_files(${$.batch}, make_interval(secs => ${$.lease_seconds}))`,
  { writes: true }
)

/** What would be claimed, which stays as it is. */
export const dueFiles = statement(
  'due_files',
  (_, $: { batch: number }) => sql<Omit<ClaimedFile, 'store_id'>>`select tenant_id, id, was from due_files(${$.batch})`,
  { slow: true }
)

export const claimObjectSweep = statement(
  'claim_object_sweep',
  (_, $: { pause_seconds: number }) => sql<{ reached: string | null }>`
  select claim_object_sweep(make_interval(secs => ${$.pause_seconds})) as reached`,
  { writes: true }
)
export const advanceObjectSweep = statement(
  'advance_object_sweep',
  (_, $: { reached: string }) => sql<never>`select advance_object_sweep(${$.reached})`,
  { writes: true }
)

/** Of these objects, those that a row refers to. */
export const knownObjects = statement(
  'known_objects',
  (_, $: { owners: string[]; kinds: string[]; ids: string[] }) => sql<{ owner: string; kind: string; id: string }>`
  select owner, kind, id from known_objects(${$.owners}::uuid[], ${$.kinds}::text[], ${$.ids}::uuid[])`,
  { slow: true }
)

export const filesAfter = statement(
  'files_after',
  (_, $: { after_tenant: string; after_id: string; batch: number }) =>
    sql<{
      tenant_id: string
      id: string
      status: string
      size: number
    }>`select tenant_id, id, status, size::float8 as size from files_after(${$.after_tenant}, ${$.after_id}, ${$.batch})`,
  { slow: true }
)

export const miscountedStorage = statement(
  'miscounted_storage',
  (_, __: Record<never, never>) => sql<{ tenant_id: string; counted: number; actual: number }>`
  select tenant_id, counted::float8 as counted, actual::float8 as actual from miscounted_storage()`,
  { slow: true }
)

/** A file of which bytes are expected in the store, as it was read. */
export type ReadyFile = { tenant_id: string; id: string; status: 'ready' | 'deleted'; size: number }

/** A file or an object that is younger is not judged by a comparison of both: its other half may be on the way. */
export const settledAfterSeconds = 3600

/** No row: the file is not any more what was read, or is too young to be judged. */
export const readSettledFile = statement(
  'read_settled_file',
  (_, $: ReadyFile & { settledAfterSeconds: number }) => sql<{ id: string }>`
  select id from files where tenant_id = ${$.tenant_id} and id = ${$.id} and status = ${$.status} and size = ${$.size}::bigint
    and created_at < now() - make_interval(secs => ${$.settledAfterSeconds})`
)

/** Gives up a file whose bytes are gone, unless it has changed; the sweep removes its row. */
export async function loseFile(trx: TenantTransaction, { tenant_id, id, status, size }: ReadyFile): Promise<boolean> {
  const { rows } = await sql`
    update files set status = 'removing', expires_at = now()
    where tenant_id = ${tenant_id} and id = ${id} and status = ${status} and size = ${size}::bigint
      and created_at < now() - make_interval(secs => ${settledAfterSeconds})
    returning id`.execute(trx)
  return rows.length === 1
}

/**
 * Sets the count of a tenant to what its rows say. Whoever changes a file also changes this count, so once it is locked the next
 * statement sees all changes that are counted. One statement would see the rows as they were before it waited for the lock.
 */
export async function recountStorage(trx: TenantTransaction, tenantId: string): Promise<void> {
  await sql`insert into storage_usage (bytes) values (0) on conflict (tenant_id) do nothing`.execute(trx)
  await sql`select from storage_usage where tenant_id = ${tenantId} for update`.execute(trx)
  await sql`
    update storage_usage set bytes = (select coalesce(sum(size), 0) from files where tenant_id = ${tenantId})
    where tenant_id = ${tenantId}`.execute(trx)
}
