import { recordAudit } from '../../db/audit.ts'
import { filesAfter, loseFile, miscountedStorage, recountStorage } from '../../db/files.ts'
import type { TenantGate } from '../../db/gate.ts'
import { findOrphans } from '../../db/orphans.ts'
import { fileKey } from '../objects/keys.ts'
import { openStore } from '../objects/open.ts'
import type { ObjectStore, StoredObject } from '../objects/store.ts'
import { end, nobody, operate } from './operator.ts'

/*
 * npm run files -- compare [--repair]
 *
 * Holds the rows of files against what lies in the store, one line for each that does not match: after a restore of one of the
 * two, say. `--repair` gives up files whose bytes are lost (their agencies read so in their audit logs), removes objects that
 * no row refers to, and counts again where a count is wrong.
 */

const [command, flag, ...rest] = process.argv.slice(2)
if (command !== 'compare' || rest.length > 0 || (flag !== undefined && flag !== '--repair')) {
  end(64, 'usage: files compare [--repair]')
}
const repair = flag === '--repair'
const page = 1000

const say = (line: string) => void process.stdout.write(`${line}\n`)

await operate(async (gate, config) => {
  const store = openStore(config)
  const lost = await compareRows(gate, store)
  const orphans = await compareObjects(gate, store)
  const miscounted = await compareCounts(gate)
  store.close()
  const found = `${lost} files without their bytes, ${orphans} objects without a row, ${miscounted} wrong counts`
  return repair ? `repaired: ${found}` : found
})

/** Rows and keys stand in one order, so both are read once and nothing is asked for one by one. */
async function compareRows(gate: TenantGate, store: ObjectStore): Promise<number> {
  let count = 0
  const objects = allObjects(store)
  let object = await objects.next()
  for await (const { tenant_id, id, status, size } of allRows(gate)) {
    if (status !== 'ready' && status !== 'deleted') continue
    const key = fileKey(tenant_id, id)
    while (!object.done && object.value.key < key) object = await objects.next()
    const there = !object.done && object.value.key === key ? object.value.size : undefined
    // an empty file that was sent in parts has no object
    if (there === size || (size === 0 && there === undefined)) continue
    count++
    say(`${key} ${there === undefined ? 'has no bytes' : `has ${there} bytes and not ${size}`}`)
    if (repair) await giveUp(gate, tenant_id, id)
  }
  return count
}

async function compareObjects(gate: TenantGate, store: ObjectStore): Promise<number> {
  let count = 0
  for (let after = ''; ; ) {
    const objects = await store.list(after, page)
    for (const key of await findOrphans(gate, objects)) {
      count++
      say(`${key} belongs to no row`)
      if (repair) await store.remove(key)
    }
    const last = objects.at(-1)
    if (!last || objects.length < page) return count
    after = last.key
  }
}

async function compareCounts(gate: TenantGate): Promise<number> {
  const wrong = await gate.query(nobody, miscountedStorage, {})
  for (const { tenant_id, counted, actual } of wrong) {
    say(`agency ${tenant_id} is counted with ${counted} bytes and has ${actual}`)
    if (repair) await gate.query({ tenant_id, user_id: null, request: '' }, recountStorage, { tenant_id })
  }
  return wrong.length
}

async function giveUp(gate: TenantGate, tenant_id: string, id: string): Promise<void> {
  await gate.transaction({ tenant_id, user_id: null, request: '' }, async (trx) => {
    await loseFile(trx, tenant_id, id)
    await recordAudit(trx, { action: 'file.lost', target_id: id })
  })
}

async function* allRows(gate: TenantGate) {
  let position = {
    after_tenant: '00000000-0000-0000-0000-000000000000',
    after_id: '00000000-0000-0000-0000-000000000000'
  }
  for (;;) {
    const rows = await gate.query(nobody, filesAfter, { ...position, batch: page })
    yield* rows
    const last = rows.at(-1)
    if (!last || rows.length < page) return
    position = { after_tenant: last.tenant_id, after_id: last.id }
  }
}

async function* allObjects(store: ObjectStore): AsyncGenerator<StoredObject> {
  for (let after = ''; ; ) {
    const objects = await store.list(after, page)
    yield* objects
    const last = objects.at(-1)
    if (!last || objects.length < page) return
    after = last.key
  }
}
