import { setTimeout as sleep } from 'node:timers/promises'
import type pg from 'pg'
import { withOwner } from './owner-connection.ts'

/*
 * Indexes on tables that may be large. A migration declares them, and they are built after its step, outside of any transaction,
 * while servers go on reading and writing.
 */

/** `on` is what follows the table in SQL: `(tenant_id, name) where deleted_at is null`. */
export type IndexDeclaration = { name: string; table: string; on: string }
/** What a file in db/migrations may export beside `up`. */
export type Declaring = { indexes?: readonly IndexDeclaration[]; retiredIndexes?: readonly string[] }
export type DeclaredIndexes = { wanted: IndexDeclaration[]; retired: string[] }

/** Differs from the lock of the steps: whoever waits for that one has a snapshot, for which PostgreSQL would wait in turn. */
const lockId = '4611686018427387848'
const lockPauseMs = 500
/** When the first report of a build comes, and then each other one. */
const firstReportMs = 1000
const progressIntervalMs = 10_000
/** How long a change of the catalogue waits for the running writers, while the next ones wait behind it. */
const catalogueLockMs = 1000
/** Deadlock detected, and lock not available: a later attempt may succeed. */
const lockFailures = ['40P01', '55P03']
const mostAttempts = 20
const nameLimit = 63

/** Reads what the steps declare, in their order. A later step can retire the index of an earlier one. */
export function declaredIndexes(steps: Readonly<Record<string, Declaring>>): DeclaredIndexes {
  const wanted = new Map<string, IndexDeclaration>()
  const retired = new Set<string>()
  for (const step of Object.keys(steps).sort()) {
    const { indexes = [], retiredIndexes = [] } = steps[step] as Declaring
    for (const index of indexes) {
      if (!/^[a-z][a-z0-9_]{0,38}$/.test(index.name)) throw new Error(`${step}: ${index.name} is no name for an index`)
      if (wanted.has(index.name) || retired.has(index.name)) throw new Error(`${step}: ${index.name} was used before`)
      wanted.set(index.name, index)
    }
    for (const name of retiredIndexes) {
      if (!wanted.delete(name)) throw new Error(`${step}: no earlier step declares the index ${name}`)
      retired.add(name)
    }
  }
  return { wanted: [...wanted.values()], retired: [...retired] }
}

/**
 * Builds the declared indexes that are missing, and removes the retired ones. Resolves when all of them are there.
 *
 * Writers are not blocked. The catalogue of PostgreSQL says what is left to do, so a run that was killed is continued by the
 * next one: an index that PostgreSQL left unfinished (invalid) is removed and built again. One process builds at a time, and
 * the others wait for it. PostgreSQL goes on with an index whose client was killed, and the next run waits for that too.
 */
export async function buildIndexes(
  ownerUrl: string,
  { wanted, retired }: DeclaredIndexes,
  progress: (line: string) => void
): Promise<void> {
  if (wanted.length === 0 && retired.length === 0) return
  await withOwner(ownerUrl, async (client) => {
    await acquireLock(client, progress)
    for (const name of retired) await again(() => retire(client, name, progress))
    for (const index of wanted) {
      try {
        await buildOne(ownerUrl, client, index, progress)
      } catch (err) {
        throw new Error(`the index ${index.name} could not be built, and the next run tries again`, { cause: err })
      }
    }
  })
}

/** Asks again and again, because a statement that waits holds a snapshot, for which the other process would wait in turn. */
async function acquireLock(client: pg.Client, progress: (line: string) => void): Promise<void> {
  for (let attempt = 1; ; attempt++) {
    const { rows } = await client.query<{ locked: boolean }>(`select pg_try_advisory_lock(${lockId}) as locked`)
    if (rows[0]?.locked) return
    if (attempt === 1) progress('waiting for another process that builds indexes')
    await sleep(lockPauseMs)
  }
}

async function again<T>(work: () => Promise<T>): Promise<T> {
  for (let attempt = 1; ; attempt++) {
    try {
      return await work()
    } catch (err) {
      if (attempt === mostAttempts || !lockFailures.includes((err as { code?: string }).code ?? '')) throw err
      await sleep(attempt * lockPauseMs)
    }
  }
}

type Relation = { kind: string; valid: boolean | null; size: string }

async function find(client: pg.Client, name: string): Promise<Relation | undefined> {
  const { rows } = await client.query<Relation>(
    `select c.relkind as kind, i.indisvalid as valid, pg_size_pretty(pg_total_relation_size(c.oid)) as size
     from pg_class c left join pg_index i on i.indexrelid = c.oid
     where c.relname = $1 and c.relnamespace = 'public'::regnamespace`,
    [name]
  )
  return rows[0]
}

async function retire(client: pg.Client, name: string, progress: (line: string) => void): Promise<void> {
  const index = await find(client, name)
  if (!index) return
  progress(`removing the index ${name}`)
  // PostgreSQL removes an index of a partitioned table in a transaction only, which takes a moment
  if (index.kind === 'I') await inOneMoment(client, `drop index ${name}`)
  else await client.query(`drop index concurrently ${name}`)
}

/** Changes the catalogue. Gives up when it would have to wait, because writers would wait behind it. */
async function inOneMoment(client: pg.Client, statement: string): Promise<void> {
  await client.query(`set lock_timeout = ${catalogueLockMs}`)
  try {
    await client.query(statement)
  } finally {
    await client.query('set lock_timeout = 0')
  }
}

async function buildOne(
  ownerUrl: string,
  client: pg.Client,
  index: IndexDeclaration,
  progress: (line: string) => void
): Promise<void> {
  const table = await find(client, index.table)
  if (!table) throw new Error(`there is no table ${index.table}`)
  const build = (part: IndexDeclaration) => again(() => buildOnTable(ownerUrl, client, part, progress))
  if (table.kind !== 'p') return build(index)

  const found = await find(client, index.name)
  if (found?.valid) return
  // later partitions get the index as they are made
  if (!found) await again(() => inOneMoment(client, `create index ${index.name} on only ${index.table} ${index.on}`))
  for (const partition of await partitionsWithout(client, index)) {
    const name = `${partition}_${index.name}`
    if (name.length > nameLimit) throw new Error(`the name ${name} is too long`)
    await build({ ...index, name, table: partition })
    await again(() => inOneMoment(client, `alter index ${index.name} attach partition ${name}`))
  }
}

/** The partitions that have no part of this index yet. */
async function partitionsWithout(client: pg.Client, { name, table }: IndexDeclaration): Promise<string[]> {
  const { rows } = await client.query<{ partition: string }>(
    `select c.relname as partition from pg_inherits h join pg_class c on c.oid = h.inhrelid
     where h.inhparent = $1::regclass and not exists (
       select from pg_inherits a join pg_index i on i.indexrelid = a.inhrelid
       where a.inhparent = $2::regclass and i.indrelid = c.oid)
     order by c.relname`,
    [table, name]
  )
  return rows.map(({ partition }) => partition)
}

async function buildOnTable(
  ownerUrl: string,
  client: pg.Client,
  { name, table, on }: IndexDeclaration,
  progress: (line: string) => void
): Promise<void> {
  const found = await find(client, name)
  if (found?.valid) return
  if (found) {
    progress(`removing what is left of the index ${name}`)
    await client.query(`drop index concurrently ${name}`)
  }
  const size = (await find(client, table))?.size
  progress(`building the index ${name}: ${table} has ${size}, and can be written meanwhile`)
  const stop = new AbortController()
  const reports = reportProgress(ownerUrl, client, name, progress, stop.signal)
  try {
    await client.query(`create index concurrently ${name} on ${table} ${on}`)
  } catch (err) {
    // what PostgreSQL leaves costs every writer time; the next run removes it where this connection cannot
    await client.query(`drop index concurrently if exists ${name}`).catch(() => {})
    throw err
  } finally {
    stop.abort()
    await reports
  }
  progress(`built the index ${name}`)
}

type Report = { phase: string; percent: number | null; waits_for: number }

/** Reports what PostgreSQL does, from a second connection. A report that fails stops the reports only. */
async function reportProgress(
  ownerUrl: string,
  client: pg.Client,
  name: string,
  progress: (line: string) => void,
  signal: AbortSignal
): Promise<void> {
  const pid = (client as unknown as { processID: number }).processID
  try {
    await sleep(firstReportMs, undefined, { signal })
    await withOwner(ownerUrl, async (watcher) => {
      for (;;) {
        const { rows } = await watcher.query<Report>(
          `select phase, current_locker_pid as waits_for,
             (100 * greatest(blocks_done::float8 / nullif(blocks_total, 0), tuples_done::float8 / nullif(tuples_total, 0)))::integer as percent
           from pg_stat_progress_create_index where pid = $1`,
          [pid]
        )
        const [report] = rows
        if (report) {
          const part = report.percent === null ? '' : `, ${report.percent} %`
          const waits = report.waits_for > 0 ? `, for the transaction of process ${report.waits_for} to end` : ''
          progress(`building the index ${name}: ${report.phase}${part}${waits}`)
        }
        await sleep(progressIntervalMs, undefined, { signal })
      }
    })
  } catch {
    // the index is built, or this connection has broken
  }
}
