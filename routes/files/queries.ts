import { type RawBuilder, sql } from 'kysely'
import type { TenantTransaction } from '../../db/gate/gate.ts'
import { statement } from '../../db/gate/statement.ts'
import type { FileRow } from '../../db/queries/files.ts'

type Filter = {
  tenant_id: string
  status: 'ready' | 'deleted'
  purpose: string | null
  /** A part of the name, folded like `folded_name`. */
  q: string | null
  after_id: string
  limit: number
}

/** Lists files, the newest first. Ids are ordered by time, so the id is the position. */
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

/**
 * Picks the statement for the filters. Each index has its own: with an optional condition, PostgreSQL would not use the
 * index.
 */
export const filesBy = ({ purpose }: Pick<Filter, 'purpose'>) => (purpose === null ? allFiles : filesOfPurpose)

export type LockedFile = { status: 'ready' | 'deleted'; name: string; size: number; created_by: string | null }

/**
 * Reads a file that exists or can still be restored, and locks its row until the transaction ends.
 *
 * Rows that the sweep will remove are not locked: the sweep skips locked rows, and would remove them a minute later.
 */
export async function lockFile(trx: TenantTransaction, tenantId: string, id: string): Promise<LockedFile | undefined> {
  const { rows } = await sql<LockedFile>`
    select status, name, size::float8 as size, created_by from files
    where tenant_id = ${tenantId} and id = ${id} and (status = 'ready' or status = 'deleted' and expires_at > now())
    for update`.execute(trx)
  return rows[0]
}

/** Deletes a file. It can be restored for `seconds`; after that the sweep removes it. */
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
