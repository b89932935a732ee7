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
 * The fence: whether this database may remove objects from this store.
 *
 * The store carries a mark: which installation it belongs to, which database swept it last, and a generation. Each turn of the
 * search for orphans moves the generation, first in the database and then in the store. So the store is never ahead of the
 * database that sweeps it, and it is ahead of every backup that is older than a turn. A dump that was restored is noticed at
 * once, because the database's identity is another one then.
 *
 * Two installations with one store are noticed in the same way. An operator decides which one it is: `npm run files -- accept-store`.
 */

const Mark = Type.Object({
  installation: Type.String(),
  database: Type.String(),
  generation: Type.Integer({ minimum: 0 })
})
type Mark = { installation: string; database: string; generation: number }

/** `ours`: objects may be removed. All others say why not. */
export type Verdict =
  | 'ours'
  | 'unmarked'
  | 'unreadable'
  | 'another installation'
  | 'another database'
  | 'older database'

/** So many objects decide whose a store is that has no mark. */
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
 * Whether the store is this database's. A store that has no mark gets it if it has no objects either, or if no mark was ever
 * written and most objects are no orphans: after an upgrade from a version that knew no marks.
 */
export async function checkStoreOwner(gate: TenantGate, store: ObjectStore): Promise<Verdict> {
  // before the database, which others may advance meanwhile
  const mark = await readMark(store)
  const own = await readDatabaseMark(gate)
  if (mark === undefined) {
    if (!(await mayAdoptUnmarked(gate, store, own))) return 'unmarked'
    await writeMark(store, own)
    return 'ours'
  }
  if (mark === 'unreadable') return mark
  if (mark.installation !== own.installation) return 'another installation'
  if (mark.database !== own.database) return 'another database'
  return mark.generation > own.generation ? 'older database' : 'ours'
}

/** Moves the generation on. Only for the database whose store it is. */
export async function advanceStore(gate: TenantGate, store: ObjectStore): Promise<void> {
  const own = await readDatabaseMark(gate)
  await advanceAfter(gate, store, own, own.generation)
}

/** Takes the store for this database, whatever its mark says. Every other database finds it taken. */
export async function acceptStore(gate: TenantGate, store: ObjectStore): Promise<void> {
  const mark = await readMark(store)
  const own = await readDatabaseMark(gate)
  const before = typeof mark === 'object' ? mark.generation : 0
  await advanceAfter(gate, store, own, Math.max(before, own.generation))
}

/** The database first: after a crash in between it is ahead of the store, which is no harm. */
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
  // an object that is new may have lost its row a moment ago
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
