import { Type } from '@sinclair/typebox'
import { Value } from '@sinclair/typebox/value'
import { sql } from 'kysely'
import { isOurKey, markKey } from '../../src/files/store/keys.ts'
import type { ObjectStore } from '../../src/files/store/object-store.ts'
import type { TenantGate } from '../gate/gate.ts'
import { systemScope } from '../gate/gate-query.ts'
import { statement } from '../gate/statement.ts'
import { findOrphans } from './orphans.ts'

/*
 * The fence decides whether this database may remove objects from this store. It protects a store from a database that was
 * restored from an older backup, or that belongs to another installation.
 *
 * The store holds a mark: its installation, the database that swept it last, and a generation. Each run of the orphan sweep
 * increases the generation, first in the database and then in the store. So the store is never ahead of the database that
 * sweeps it, but it is ahead of every backup from before the last run. A restored dump is detected at once, because it has
 * another database identity.
 *
 * Two installations that share one store are detected in the same way. An operator decides which one keeps it, with
 * `npm run files -- accept-store`.
 */

const Mark = Type.Object({
  installation: Type.String(),
  database: Type.String(),
  generation: Type.Integer({ minimum: 0 })
})
type Mark = { installation: string; database: string; generation: number }

/** `ours`: objects may be removed. Every other verdict is the reason why not. */
export type Verdict =
  | 'ours'
  | 'unmarked'
  | 'unreadable'
  | 'another installation'
  | 'another database'
  | 'older database'

/** How many objects are examined to decide whether an unmarked store belongs to this database. */
const sample = 1000
const maxMarkBytes = 1024

const readFence = statement(
  'read_store_fence',
  (_, __: Record<never, never>) => sql<Mark>`
  select installation, database, generation::float8 as generation from store_fence()`
)
const advanceFence = statement(
  'advance_store_fence',
  (_, $: { after: number }) => sql<{ generation: number }>`
  select advance_store_fence(${$.after})::float8 as generation`,
  { writes: true }
)

/**
 * Checks whether the store belongs to this database. An unmarked store is marked as ours when it holds no object of the
 * product. It is also marked when this database has never swept a store and at least half of the sampled objects are not
 * orphans, as after an upgrade from a version without marks.
 */
export async function checkStoreOwner(gate: TenantGate, store: ObjectStore): Promise<Verdict> {
  const { verdict, adopted } = await judgeStoreOwner(gate, store)
  if (adopted) await writeMark(store, adopted)
  return verdict
}

/** Like `checkStoreOwner`, but changes nothing. `adopted`: the mark that an unmarked store of ours lacks. */
export async function judgeStoreOwner(
  gate: TenantGate,
  store: ObjectStore
): Promise<{ verdict: Verdict; adopted?: Mark }> {
  // read before the database's generation, which another process may increase in the meantime
  const mark = await readMark(store)
  const own = await readDatabaseMark(gate)
  if (mark === undefined) {
    return (await mayAdoptUnmarked(gate, store, own)) ? { verdict: 'ours', adopted: own } : { verdict: 'unmarked' }
  }
  if (mark === 'unreadable') return { verdict: mark }
  if (mark.installation !== own.installation) return { verdict: 'another installation' }
  if (mark.database !== own.database) return { verdict: 'another database' }
  return { verdict: mark.generation > own.generation ? 'older database' : 'ours' }
}

/** The installation to which the store belongs by its mark. Undefined when it has no mark that can be read. */
export async function readStoreInstallation(store: ObjectStore): Promise<string | undefined> {
  const mark = await readMark(store)
  return typeof mark === 'object' ? mark.installation : undefined
}

/** The installation to which the database belongs. */
export async function readInstallation(gate: TenantGate): Promise<string> {
  return (await readDatabaseMark(gate)).installation
}

/** Increases the generation. Call it only when the store is ours. */
export async function advanceStore(gate: TenantGate, store: ObjectStore): Promise<void> {
  const own = await readDatabaseMark(gate)
  await advanceAfter(gate, store, own, own.generation)
}

/** Claims the store for this database, whatever its mark says. Every other database then refuses to sweep it. */
export async function acceptStore(gate: TenantGate, store: ObjectStore): Promise<void> {
  const mark = await readMark(store)
  const own = await readDatabaseMark(gate)
  const before = typeof mark === 'object' ? mark.generation : 0
  await advanceAfter(gate, store, own, Math.max(before, own.generation))
}

/** Updates the database first: after a crash in between the database is ahead of the store, which is harmless. */
async function advanceAfter(gate: TenantGate, store: ObjectStore, own: Mark, after: number): Promise<void> {
  const [next] = await gate.query(systemScope, advanceFence, { after })
  if (!next) throw new Error('the database has no row of its sweep')
  await writeMark(store, { ...own, generation: next.generation })
}

async function readDatabaseMark(gate: TenantGate): Promise<Mark> {
  const [own] = await gate.query(systemScope, readFence, {})
  if (!own) throw new Error('the database has no row of its sweep')
  return own
}

async function mayAdoptUnmarked(gate: TenantGate, store: ObjectStore, own: Mark): Promise<boolean> {
  const objects = (await store.list('', sample)).filter(({ key }) => isOurKey(key))
  if (objects.length === 0) return true
  if (own.generation > 0) return false
  // not all objects have to be known: an orphan may be an object whose row was removed a moment ago
  return (await findOrphans(gate, objects)).length <= objects.length / 2
}

async function readMark(store: ObjectStore): Promise<Mark | 'unreadable' | undefined> {
  const stream = await store.get(markKey, { start: 0, end: maxMarkBytes - 1 })
  if (!stream) return undefined
  const chunks: Buffer[] = []
  for await (const chunk of stream as AsyncIterable<Buffer>) chunks.push(chunk)
  try {
    const mark: unknown = JSON.parse(Buffer.concat(chunks).toString())
    return Value.Check(Mark, mark) ? mark : 'unreadable'
  } catch {
    return 'unreadable'
  }
}

function writeMark(store: ObjectStore, { installation, database, generation }: Mark): Promise<void> {
  return store.put(markKey, Buffer.from(JSON.stringify({ installation, database, generation })))
}
