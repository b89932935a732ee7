import { type RawBuilder, sql } from 'kysely'
import type { FileRow } from '../../db/files.ts'
import type { TenantTransaction } from '../../db/gate.ts'
import { statement } from '../../db/statement.ts'

type Filter = {
  tenant_id: string
  status: 'ready' | 'deleted'
  purpose: string | null
  /** Folded like the names. */
  q: string | null
  after_id: string
  limit: number
}

/** Files, the newest first; ids are made in order of time, so the id alone is the position. */
function list(name: string, filter: ($: Filter) => RawBuilder<unknown>) {
  return statement(
    name,
    (_, $: Filter) => sql<FileRow>`
    select id, name, purpose, content_type, size::float8 as size, encode(sha256, 'hex') as sha256, created_by, created_at
    from files
    where tenant_id = ${$.tenant_id} ${filter($)} and id < ${$.after_id}
      and status = ${$.status} and (expires_at is null or expires_at > now())
      and (${$.q}::text is null or strpos(folded_name, ${$.q}) > 0)
    order by id desc limit ${$.limit}`,
    { slow: true }
  )
}

const allFiles = list('files_page', () => sql``)
const filesOfPurpose = list('files_page_by_purpose', ($) => sql`and purpose = ${$.purpose}`)

/** One statement for each index: a condition that may be absent would keep PostgreSQL from using the one that is made for it. */
export const filesBy = ({ purpose }: Pick<Filter, 'purpose'>) => (purpose === null ? allFiles : filesOfPurpose)

export type LockedFile = { status: 'ready' | 'deleted'; name: string; size: number; created_by: string | null }

/**
 * What a change is decided by, of a file that is there or can still be restored; the row stays locked until the transaction
 * ends. What is to be removed is not locked: the sweep leaves out what somebody holds, and comes by once a minute.
 */
export async function lockFile(trx: TenantTransaction, tenantId: string, id: string): Promise<LockedFile | undefined> {
  const { rows } = await sql<LockedFile>`
    select status, name, size::float8 as size, created_by from files
    where tenant_id = ${tenantId} and id = ${id} and (status = 'ready' or status = 'deleted' and expires_at > now())
    for update`.execute(trx)
  return rows[0]
}

/** Hides the file, and gives it to the sweep after a time in which it can come back. */
export async function hideFile(trx: TenantTransaction, tenantId: string, id: string, seconds: number): Promise<void> {
  await sql`
    update files set status = case when ${seconds}::int > 0 then 'deleted' else 'removing' end,
      expires_at = now() + make_interval(secs => ${seconds})
    where tenant_id = ${tenantId} and id = ${id}`.execute(trx)
}

export async function restoreFile(trx: TenantTransaction, tenantId: string, id: string): Promise<void> {
  await sql`update files set status = 'ready', expires_at = null where tenant_id = ${tenantId} and id = ${id}`.execute(
    trx
  )
}

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

/** An upload that is not finished, of an agency that is not suspended. */
export const readUpload = statement(
  'read_upload',
  (_, $: { tenant_id: string; id: string }) => sql<UploadRow>`
  select f.name, f.purpose, f.content_type, f.size::float8 as size, f.created_by, u.sha256, u.store_id,
    u.received::float8 as received, u.tags, f.expires_at
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

/** Makes the caller the only one who may write. Whoever was it finds out at its next step. */
export const takeUpload = statement(
  'take_upload',
  (_, $: { tenant_id: string; id: string; writer: string; offset: number }) => sql<{
    tags: string[]
    tail: Buffer
    store_id: string | null
  }>`
  update uploads set writer = ${$.writer}::uuid
  where tenant_id = ${$.tenant_id} and id = ${$.id} and received = ${$.offset}::bigint
    and coalesce(concluding_until < now(), true)
  returning tags, tail, store_id`,
  { writes: true }
)

/** No row: somebody else writes now. */
export const findWriter = statement(
  'find_writer',
  (_, $: { tenant_id: string; id: string; writer: string }) => sql<{ id: string }>`
  select id from uploads where tenant_id = ${$.tenant_id} and id = ${$.id} and writer = ${$.writer}::uuid`
)

/** Makes the caller the only one who puts the whole together, for long enough. No row: somebody else does, or nothing is left to do. */
export const concludeUpload = statement(
  'conclude_upload',
  (_, $: { tenant_id: string; id: string; seconds: number }) => sql<{ id: string }>`
  update uploads set concluding_until = now() + make_interval(secs => ${$.seconds})
  where tenant_id = ${$.tenant_id} and id = ${$.id} and coalesce(concluding_until < now(), true) returning id`,
  { writes: true }
)

/** It still takes. */
export const renewConclusion = statement(
  'renew_conclusion',
  (_, $: { tenant_id: string; id: string; seconds: number }) => sql<never>`
  update uploads set concluding_until = now() + make_interval(secs => ${$.seconds})
  where tenant_id = ${$.tenant_id} and id = ${$.id}`,
  { writes: true }
)

/** It could not be put together now, and somebody may try again. */
export const releaseUpload = statement(
  'release_upload',
  (_, $: { tenant_id: string; id: string }) => sql<never>`
  update uploads set concluding_until = null where tenant_id = ${$.tenant_id} and id = ${$.id}`,
  { writes: true }
)

/** What has arrived is kept: whole parts in the store, the rest here. No row: somebody else writes now, or the sweep came. */
export const advanceUpload = statement(
  'advance_upload',
  (
    _,
    $: {
      tenant_id: string
      id: string
      writer: string
      received: number
      tags: string[]
      tail: Buffer
      store_id: string | null
      patience_seconds: number
    }
  ) => sql<{ expires_at: Date }>`
  with file as (
    update files set expires_at = now() + make_interval(secs => ${$.patience_seconds})
    where tenant_id = ${$.tenant_id} and id = ${$.id} and status = 'pending' returning expires_at
  )
  update uploads set received = ${$.received}::bigint, tags = ${$.tags}::text[], tail = ${$.tail}::bytea,
    store_id = ${$.store_id}
  from file where tenant_id = ${$.tenant_id} and id = ${$.id} and writer = ${$.writer}::uuid returning file.expires_at`,
  { writes: true }
)
