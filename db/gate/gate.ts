import { setTimeout as sleep } from 'node:timers/promises'
import { CompiledQuery, type Kysely, type Transaction as KyselyTransaction, sql } from 'kysely'
import type pg from 'pg'
import { createKeyedSemaphore } from '../../src/limits/keyed-semaphore.ts'
import type { TenantTables } from '../tables.ts'
import type { TimeOuts } from './connection-settings.ts'
import { classifyFailure, isStalePlan } from './failures.ts'
import { type GateSettings, gateStatement, type QueryConfig, type Scope } from './gate-query.ts'
import { type Pipeline, PipelineFull } from './pipeline.ts'
import { queryOnPool } from './pool-query.ts'
import { type Statement, valuesOf } from './statement.ts'

/** A transaction inside the gate of one tenant. Only the gate makes one, so a query that asks for it is behind the gate. */
export type TenantTransaction = KyselyTransaction<TenantTables>

/** `connects`: how often it was opened. */
export type PipelineStats = { in_flight: number; connected: boolean; connects: number }

/** The only way to the tables of the tenants: two doors, one lock. A tenant, and a person, hold at most half of the pool. */
export type TenantGate = {
  /**
   * One statement, together with its settings in one network flush. Resolves to its rows.
   *
   * Keyed reads share a few pipelined connections (but behind a pooler) and are asked once more if the connection broke. Lists
   * and writes take a connection of their own, and a write is never repeated, because whether it was committed is not known.
   */
  query<Values extends object, Row>(
    settings: GateSettings,
    statement: Statement<Values, Row>,
    values: Values
  ): Promise<Row[]>
  /**
   * Runs `work` in a transaction that sees the rows of one tenant only.
   *
   * The settings are local to the transaction, so a pooled connection never carries them into the next request. Without
   * them every policy compares against NULL and matches nothing.
   *
   * Keep `work` to queries: it holds a connection until it settles, a rejection rolls everything back, and after a
   * serialization failure or deadlock the whole runs again (three times at most).
   */
  transaction<T>(settings: GateSettings, work: (trx: TenantTransaction) => Promise<T>): Promise<T>
  /** Its connections: those of the pool, and each pipelined one; `waiting`: keyed reads that none of these has taken yet. */
  stats(): {
    pool: { total: number; idle: number; waiting: number }
    pipelines: PipelineStats[]
    waiting: number
  }
}

/** Runs a statement inside a transaction of the gate, so that it sees what the transaction has done and nobody else's after. */
export async function queryIn<Values extends object, Row>(
  trx: TenantTransaction,
  statement: Statement<Values, Row>,
  values: Values
): Promise<Row[]> {
  const { rows } = await trx.executeQuery<Row>(CompiledQuery.raw(statement.text, valuesOf(statement, values)))
  return rows
}

/**
 * Runs `work` in another scope of the same transaction, then goes back to `own`: for one act in two tenants that must be done or
 * left undone together. Both scopes are the server's own words, as everywhere (`Scope`).
 *
 * Also after a rejection the scope is `own` again, or the transaction has failed and takes no more statements.
 */
export async function inScope<T>(trx: TenantTransaction, scope: Scope, own: Scope, work: () => Promise<T>): Promise<T> {
  await enter(trx, scope)
  try {
    const result = await work()
    await enter(trx, own)
    return result
  } catch (err) {
    await enter(trx, own).catch(() => {})
    throw err
  }
}

async function enter(trx: TenantTransaction, { tenant_id, user_id }: Scope): Promise<void> {
  await sql`select set_config('app.tenant_id', ${tenant_id ?? ''}, true), set_config('app.user_id', ${user_id ?? ''}, true)`.execute(
    trx
  )
}

const attempts = 4

/** When PostgreSQL ends, its connections do within so long of each other. */
const togetherMs = 1000

/** How many queries of one tenant, or of one person, may wait for their share of the pool, and for how long. */
export const shareDepth = 256
export const sharePatienceMs = 2000

/**
 * Where a pooler stands between that keeps nothing on a connection, the time-outs that go along: for all, and for keyed reads. All
 * other settings of a connection go with them. It may also change the connection in the middle of a flush behind which others were sent, so there is no pipeline then.
 */
export type CarriedTimeOuts = { all: TimeOuts; keyed: TimeOuts }

export function createTenantGate(
  db: Kysely<TenantTables>,
  pool: pg.Pool,
  pipeline: Pipeline | undefined,
  carried?: CarriedTimeOuts
): TenantGate {
  // so that the slow queries of one tenant, or of one person in several of them, leave the others connections
  const width = Math.max(1, Math.floor(pool.options.max / 2))
  const shares = createKeyedSemaphore({ concurrency: width, depth: shareDepth, timeoutMs: sharePatienceMs })

  function withinShare<T>({ tenant_id, user_id }: GateSettings, work: () => Promise<T>): Promise<T> {
    // who waits for themselves holds nothing of their tenant meanwhile
    if (user_id !== null) return shares.run(tenant_id === null ? [user_id] : [user_id, tenant_id], work)
    return tenant_id === null ? work() : shares.run([tenant_id], work)
  }

  function onPool(settings: GateSettings, config: QueryConfig, timeOuts: TimeOuts | undefined): Promise<unknown[]> {
    return withinShare(settings, () => queryOnPool(pool, settings, config, timeOuts))
  }

  /** For keyed reads. Asked again when the answer was lost, and once more when the next connection ended with the first. */
  function keyedRead(settings: GateSettings, config: QueryConfig): Promise<unknown[]> {
    if (!pipeline) return keyedReadOnPool(settings, config)
    return new Promise((resolve, reject) => {
      let losses = 0
      let firstAt = 0
      const answer = (err: Error | null, rows: unknown[]) => {
        if (!err) return resolve(rows)
        if (err instanceof PipelineFull) return resolve(keyedReadOnPool(settings, config))
        if (classifyFailure(err) !== 'connection') return reject(err)
        losses++
        if (losses === 1) firstAt = performance.now()
        else if (losses > 2 || performance.now() - firstAt > togetherMs) return reject(err)
        pipeline.queryAgain(settings, config, answer)
      }
      pipeline.query(settings, config, answer)
    })
  }

  /** The same behind a pooler, and where the pipeline is full. Where one connection has a stale plan the next may have it too. */
  async function keyedReadOnPool(settings: GateSettings, config: QueryConfig): Promise<unknown[]> {
    try {
      return await onPool(settings, config, carried?.keyed)
    } catch (err) {
      if (classifyFailure(err) !== 'connection' && !isStalePlan(err)) throw err
      return onPool(settings, { ...config, name: '' }, carried?.keyed)
    }
  }

  /** For writes and lists. Not repeated, but for a stale plan, which PostgreSQL refuses before it runs anything. */
  async function ownConnection(settings: GateSettings, config: QueryConfig) {
    try {
      return await onPool(settings, config, carried?.all)
    } catch (err) {
      if (!isStalePlan(err)) throw err
      return onPool(settings, { ...config, name: '' }, carried?.all)
    }
  }

  /** Behind a pooler what a transaction is like by default is not known. */
  function begin() {
    const transaction = db.transaction()
    return carried ? transaction.setIsolationLevel('read committed') : transaction
  }

  return {
    query<Values extends object, Row>(settings: GateSettings, statement: Statement<Values, Row>, values: Values) {
      const { name, text, writes, slow } = statement
      const config = { name, text, values: valuesOf(statement, values), writes }
      const rows = writes || slow ? ownConnection(settings, config) : keyedRead(settings, config)
      return rows as Promise<Row[]>
    },

    async transaction(settings, work) {
      for (let attempt = 1; ; attempt++) {
        try {
          return await withinShare(settings, () =>
            begin().execute(async (trx) => {
              const { text, values } = gateStatement(settings, carried?.all)
              await trx.executeQuery(CompiledQuery.raw(text, values))
              return work(trx)
            })
          )
        } catch (err) {
          if (attempt === attempts || classifyFailure(err) !== 'conflict') throw err
          await sleep(Math.random() * 20 * 2 ** attempt)
        }
      }
    },

    stats: () => ({
      pool: { total: pool.totalCount, idle: pool.idleCount, waiting: pool.waitingCount },
      pipelines: pipeline?.stats() ?? [],
      waiting: pipeline?.waiting() ?? 0
    })
  }
}
