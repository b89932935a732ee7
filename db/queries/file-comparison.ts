import { fileKey } from '../../src/files/store/keys.ts'
import type { ObjectStore, StoredObject } from '../../src/files/store/object-store.ts'
import type { TenantGate } from '../gate/gate.ts'
import { systemScope } from '../gate/gate-query.ts'
import { recordAudit } from './audit.ts'
import {
  filesAfter,
  markFileLost,
  miscountedStorage,
  type ReadyFile,
  readSettledFile,
  recountStorage,
  settledAfterSeconds
} from './files.ts'
import { findOrphans } from './orphans.ts'

export type Comparison = {
  gate: TenantGate
  store: ObjectStore
  /** Also repairs what does not match. */
  repair: boolean
  /** Called with one line for each mismatch. */
  report: (line: string) => void
}

export type Findings = { lost: number; orphans: number; miscounted: number }

const inTenant = (tenant_id: string) => ({ tenant_id, user_id: null, request: '' })
const nilUuid = '00000000-0000-0000-0000-000000000000'
const page = 1000

/**
 * Compares the rows of files with the objects of the store. Both may change meanwhile.
 *
 * A row becomes `ready` after its object is complete and `removing` before its object is removed, and never goes back. So
 * rows are read before objects. A file counts as lost only if the store, asked for this one object, does not have it, and the
 * row is unchanged afterwards. Rows and objects younger than an hour are skipped.
 */
export async function compareFiles(comparison: Comparison): Promise<Findings> {
  return {
    lost: await compareRows(comparison),
    orphans: await compareObjects(comparison),
    miscounted: await compareCounts(comparison)
  }
}

/** Rows and keys have the same order, so each page of rows is compared with the same range of the store's listing. */
async function compareRows({ gate, store, repair, report }: Comparison): Promise<number> {
  let count = 0
  let position = { after_tenant: nilUuid, after_id: nilUuid }
  for (let before = ''; ; ) {
    const rows = await gate.query(systemScope, filesAfter, { ...position, batch: page })
    const last = rows.at(-1)
    if (!last) return count
    const lastKey = fileKey(last.tenant_id, last.id)
    const sizes = await sizesBetween(store, before, lastKey)
    for (const row of rows) {
      if (!isWhole(row)) continue
      const key = fileKey(row.tenant_id, row.id)
      if (matches(row, sizes.get(key))) continue
      const storedSize = await findFault(gate, store, row)
      if (storedSize === 'none') continue
      if (repair && !(await markLost(gate, row))) continue
      count++
      report(`${key} ${storedSize === undefined ? 'has no bytes' : `has ${storedSize} bytes and not ${row.size}`}`)
    }
    if (rows.length < page) return count
    position = { after_tenant: last.tenant_id, after_id: last.id }
    before = lastKey
  }
}

type Row = { tenant_id: string; id: string; status: string; size: number }

const isWhole = (row: Row): row is Row & ReadyFile => row.status === 'ready' || row.status === 'deleted'

/** Whether the stored size is right. An empty file that was uploaded in parts has no object. */
const matches = ({ size }: Row, storedSize: number | undefined) =>
  storedSize === size || (size === 0 && storedSize === undefined)

/**
 * Asks the store for this one object. Resolves to its wrong size, undefined if the object is missing, or `none` if all
 * is well.
 */
async function findFault(gate: TenantGate, store: ObjectStore, row: ReadyFile): Promise<number | undefined | 'none'> {
  const storedSize = await store.size(fileKey(row.tenant_id, row.id))
  if (matches(row, storedSize)) return 'none'
  const unchanged = await gate.query(inTenant(row.tenant_id), readSettledFile, { ...row, settledAfterSeconds })
  return unchanged.length === 0 ? 'none' : storedSize
}

/** Marks a file as lost and records it. Resolves to false when the row has changed since it was read. */
function markLost(gate: TenantGate, row: ReadyFile): Promise<boolean> {
  return gate.transaction(inTenant(row.tenant_id), async (trx) => {
    if (!(await markFileLost(trx, row))) return false
    await recordAudit(trx, { action: 'file.lost', target_id: row.id })
    return true
  })
}

/** The sizes of the objects whose keys are greater than `after` and at most `last`. */
async function sizesBetween(store: ObjectStore, after: string, last: string): Promise<Map<string, number>> {
  const sizes = new Map<string, number>()
  for await (const { key, size } of objectsAfter(store, after)) {
    if (key > last) break
    sizes.set(key, size)
  }
  return sizes
}

async function* objectsAfter(store: ObjectStore, from: string): AsyncGenerator<StoredObject> {
  for (let after = from; ; ) {
    const objects = await store.list(after, page)
    yield* objects
    const last = objects.at(-1)
    if (!last || objects.length < page) return
    after = last.key
  }
}

async function compareObjects({ gate, store, repair, report }: Comparison): Promise<number> {
  let count = 0
  for (let after = ''; ; ) {
    const objects = await store.list(after, page)
    for (const key of await findOrphans(gate, objects)) {
      count++
      report(`${key} belongs to no row`)
      if (repair) await store.remove(key)
    }
    const last = objects.at(-1)
    if (!last || objects.length < page) return count
    after = last.key
  }
}

async function compareCounts({ gate, repair, report }: Comparison): Promise<number> {
  const wrong = await gate.query(systemScope, miscountedStorage, {})
  for (const { tenant_id, counted, actual } of wrong) {
    report(`agency ${tenant_id} is counted with ${counted} bytes and has ${actual}`)
    if (repair) await gate.transaction(inTenant(tenant_id), (trx) => recountStorage(trx, tenant_id))
  }
  return wrong.length
}
