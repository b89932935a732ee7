import { LRUCache } from 'lru-cache'
import { nilUuid } from '../../src/uuids.ts'
import type { Scope } from './gate-query.ts'
import type { RememberedStatement } from './statement.ts'

/**
 * A change that remembered rows can show. `user`: a person, in one tenant, or in all where `tenant_id` is the nil UUID.
 * `agency`: anything of a tenant, or of all tenants. `usage`: the bytes that a tenant stores. `swept`: changes were removed
 * before this process has read them.
 */
export type ReadChange = { kind: 'user' | 'agency' | 'usage' | 'swept'; tenant_id: string; subject: string }

type Entry = {
  key: string
  tenant_id: string
  user_id: string
  showsUsage: boolean
  /** The place in the order in which the database was asked. */
  asked: number
  /** Undefined while the database is asked. */
  rows: unknown[] | undefined
  tag: string
}

type Asked<Values, Row> = { statement: RememberedStatement<Values, Row>; scope: Scope; values: Values }

/** Rows are answered from memory while the change feed was read within this time. */
export const freshMs = 1000
export const maxEntries = 20_000
export const maxBytes = 16 * 1024 * 1024
/** A quarter of the memory for one tenant, and what a person with some tenants needs. */
export const maxPerTenant = maxEntries / 4
export const maxPerUser = 40
/** What an entry takes beside its rows: its key, its places in three maps, and V8's headers of objects. */
const overheadBytes = 700

export type ReadMemory = ReturnType<typeof createReadMemory>

/**
 * Remembers the rows of statements that are asked for again and again, each for one tenant, one user and one set of values.
 *
 * Rows are found while the change feed is fresh, and are forgotten when the feed tells of a change. So they are never older
 * than `freshMs`. Rows are not kept when a change became known, or everything was forgotten, after the database was asked for them:
 * they may be those of before.
 *
 * `now` is the monotonic clock, and `wall` the other one. Both must agree that the feed is fresh, because the monotonic clock
 * stands still while a machine sleeps.
 */
export function createReadMemory({
  now = () => performance.now(),
  wall = Date.now,
  onHit = (_age: number) => {}
}: {
  now?: () => number
  wall?: () => number
  /** Gets the milliseconds since the feed was read. */
  onHit?: (age: number) => void
} = {}) {
  const byTenant = new Map<string, Set<Entry>>()
  const byUser = new Map<string, Set<Entry>>()
  const kept = new LRUCache<string, Entry>({
    maxSize: maxBytes,
    max: maxEntries,
    dispose: (entry) => unlist(entry)
  })
  let readAt = Number.NEGATIVE_INFINITY
  let readAtWall = Number.NEGATIVE_INFINITY
  let questions = 0
  let hits = 0

  function list(entry: Entry): void {
    addTo(byTenant, entry.tenant_id, entry)
    addTo(byUser, entry.user_id, entry)
  }

  function unlist(entry: Entry): void {
    removeFrom(byTenant, entry.tenant_id, entry)
    removeFrom(byUser, entry.user_id, entry)
  }

  /** Whether the rows may be kept: nothing was forgotten meanwhile, and no later question was answered earlier. */
  const isWanted = (entry: Entry) =>
    (byUser.get(entry.user_id)?.has(entry) ?? false) && (kept.peek(entry.key)?.asked ?? 0) < entry.asked

  function forgetEntry(entry: Entry): void {
    // an entry that waits for its rows is in the lists only, and its rows will not be kept
    if (entry.rows === undefined) unlist(entry)
    else kept.delete(entry.key)
  }

  function forgetAll(): void {
    kept.clear()
    byTenant.clear()
    byUser.clear()
  }

  /** Makes room for one more among the entries of a tenant or a user: the ones that were kept first go. */
  function limit(entries: Set<Entry> | undefined, most: number): void {
    if (!entries) return
    for (const entry of entries) {
      if (entries.size <= most) return
      forgetEntry(entry)
    }
  }

  function age(): number {
    const elapsed = now() - readAt
    const elapsedByWall = wall() - readAtWall
    return elapsedByWall < 0 ? Number.POSITIVE_INFINITY : Math.max(elapsed, elapsedByWall)
  }

  return {
    /** Tells that every change was known that was committed before this moment. */
    feedRead(at: { now: number; wall: number }): void {
      readAt = at.now
      readAtWall = at.wall
    },

    forget({ kind, tenant_id, subject }: ReadChange): void {
      if (kind === 'swept' || (kind === 'agency' && tenant_id === nilUuid)) {
        forgetAll()
        return
      }
      const entries = kind === 'user' ? byUser.get(subject) : byTenant.get(tenant_id)
      for (const entry of entries ?? []) {
        if (kind === 'user' && tenant_id !== nilUuid && entry.tenant_id !== tenant_id) continue
        if (kind === 'usage' && !entry.showsUsage) continue
        forgetEntry(entry)
      }
    },

    forgetAll,

    /**
     * The remembered rows, or undefined when the database must be asked. `known` is the tag that the client has: a tag that
     * is not the one of the rows may be a newer one.
     */
    find<Values extends object, Row>(asked: Asked<Values, Row>, known: string | undefined): Row[] | undefined {
      const entry = kept.get(keyOf(asked))
      if (entry) {
        const elapsed = age()
        if (elapsed < freshMs && (known === undefined || known === entry.tag || known === `W/${entry.tag}`)) {
          hits++
          onHit(elapsed)
          return entry.rows as Row[]
        }
      }
      return undefined
    },

    /** Asks the database by `ask`, and remembers its rows. No rows are not remembered. */
    async fill<Values extends object, Row>(asked: Asked<Values, Row>, ask: () => Promise<Row[]>): Promise<Row[]> {
      questions++
      const { statement, scope } = asked
      if (scope.tenant_id === null || scope.user_id === null || age() >= freshMs) return ask()
      const entry: Entry = {
        key: keyOf(asked),
        tenant_id: scope.tenant_id,
        user_id: scope.user_id,
        showsUsage: statement.remembered.reads.includes('storage_usage'),
        asked: questions,
        rows: undefined,
        tag: ''
      }
      list(entry)
      try {
        const rows = await ask()
        const [row] = rows
        if (row !== undefined && isWanted(entry)) {
          entry.rows = rows
          entry.tag = statement.remembered.tag(row)
          kept.set(entry.key, entry, { size: JSON.stringify(rows).length + overheadBytes })
          limit(byTenant.get(entry.tenant_id), maxPerTenant)
          limit(byUser.get(entry.user_id), maxPerUser)
        }
        return rows
      } finally {
        // not for rows that are too large to be kept either
        if (kept.peek(entry.key) !== entry) unlist(entry)
      }
    },

    /** `listed`: the agencies and people of whom something is remembered or asked. */
    stats: () => ({
      hits,
      questions,
      entries: kept.size,
      bytes: kept.calculatedSize,
      listed: byTenant.size + byUser.size
    })
  }
}

/** The statement, whose rows they are by the verified claims, and every value that is not one of these claims. */
function keyOf<Values extends object, Row>({ statement, scope, values }: Asked<Values, Row>): string {
  let key = `${statement.name} ${scope.tenant_id} ${scope.user_id}`
  for (const name of statement.order) {
    const value = values[name]
    if (value !== (scope as Record<string, unknown>)[name]) key += ` ${name}=${JSON.stringify(value)}`
  }
  return key
}

function addTo(lists: Map<string, Set<Entry>>, id: string, entry: Entry): void {
  const entries = lists.get(id)
  if (entries) entries.add(entry)
  else lists.set(id, new Set([entry]))
}

function removeFrom(lists: Map<string, Set<Entry>>, id: string, entry: Entry): void {
  const entries = lists.get(id)
  if (entries?.delete(entry) && entries.size === 0) lists.delete(id)
}
