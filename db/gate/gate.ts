import { setTimeout as sleep } from 'node:timers/promises'
import { CompiledQuery, type Kysely, type Transaction as KyselyTransaction, sql } from 'kysely'
import { createKeyedSemaphore } from '../../src/limits/keyed-semaphore.ts'
import type { Timeouts } from './connection-settings.ts'
import { type ConnectionPool, queryOnPool } from './connections.ts'
import { createErrorCounts } from './error-counts.ts'
import { classifyFailure, isStalePlan } from './failures.ts'
import { type GateSettings, gateStatement, type QueryConfig, type Scope } from './gate-query.ts'
import { type Pipeline, PipelineFull } from './pipeline.ts'
import { type Statement, valuesOf } from './statement.ts'
import type { TenantTables } from './tables.ts'

/**
 * A transaction that sees one tenant's rows. Only the gate creates it, so a query that takes one can't bypass the gate.
 */
export type TenantTransaction = KyselyTransaction<TenantTables>

/** `connects`: how many times the connection was opened. */
export type PipelineStats = { in_flight: number; connected: boolean; connects: number }

/**
 * The only access to the tenants' tables: `query` for one statement, `transaction` for several. Both set the same
 * transaction-local settings, on which row security depends.
 *
 * One tenant, and one user, use at most half of the pool at a time.
 */
export type TenantGate = {
  /**
   * Runs one statement, together with its settings, in one network flush. Resolves to its rows.
   *
   * Keyed reads share a few pipelined connections (a pool connection behind a pooler) and are retried when the connection
   * breaks. Lists and writes take a connection of the pool. They are not retried, because it is unknown whether a write was
   * committed.
   */
  query<Values extends object, Row>(
    settings: GateSettings,
    statement: Statement<Values, Row>,
    values: Values
  ): Promise<Row[]>
  /**
   * Runs `work` in a transaction that sees the rows of one tenant only.
   *
   * The settings are local to the transaction, so a pooled connection never keeps them for the next request. Without
   * them every policy compares against NULL and matches nothing.
   *
   * Keep `work` to queries: it holds a connection until it settles. A rejection rolls everything back. After a
   * serialization failure, a deadlock or a stale plan `work` runs again, up to three times.
   */
  transaction<T>(settings: GateSettings, work: (trx: TenantTransaction) => Promise<T>): Promise<T>
  /**
   * The pool's connections and each pipelined one. The outer `waiting` counts keyed reads that are still in the queue.
   * `errors` counts failed statements and transactions by class, also those that a repetition made good.
   */
  stats(): {
    pool: { total: number; idle: number; waiting: number }
    pipelines: PipelineStats[]
    waiting: number
    errors: Record<string, number>
  }
}

/** Runs a statement inside a transaction of the gate, so that it sees the transaction's own changes. */
export async function queryIn<Values extends object, Row>(
  trx: TenantTransaction,
  statement: Statement<Values, Row>,
  values: Values
): Promise<Row[]> {
  const { rows } = await trx.executeQuery<Row>(CompiledQuery.raw(statement.text, valuesOf(statement, values)))
  return rows
}

/**
 * Runs `work` under another scope in the same transaction, then restores the scope `own`. Use it for a change in two tenants
 * that must be atomic. Neither scope may come from input (see `Scope`).
 *
 * After a rejection the scope is `own` again, or the transaction has failed and accepts no more statements.
 */
export async function inScope<T>(trx: TenantTransaction, scope: Scope, own: Scope, work: () => Promise<T>): Promise<T> {
  await setScope(trx, scope)
  try {
    const result = await work()
    await setScope(trx, own)
    return result
  } catch (err) {
    await setScope(trx, own).catch(() => {})
    throw err
  }
}

async function setScope(trx: TenantTransaction, { tenant_id, user_id }: Scope): Promise<void> {
  await sql`select set_config('app.tenant_id', ${tenant_id ?? ''}, true), set_config('app.user_id', ${user_id ?? ''}, true)`.execute(
    trx
  )
}

const maxAttempts = 4

/** When PostgreSQL stops, all its connections close within this time of each other. */
const disconnectWindowMs = 1000

/** How many queries of one tenant, or of one user, may wait for a connection of the pool, and for how long. */
export const maxWaitingPerKey = 256
export const semaphoreTimeoutMs = 2000

/**
 * The timeouts to set in each transaction behind a pooler that keeps no session state: for keyed reads, and for all other
 * statements. All other settings of a connection are then set with them.
 *
 * Such a pooler may also switch the server connection between flushes that were sent back to back. So there is no pipeline
 * behind a pooler.
 */
export type InlineTimeouts = { all: Timeouts; keyed: Timeouts }

export function createTenantGate(
  db: Kysely<TenantTables>,
  pool: ConnectionPool,
  pipeline: Pipeline | undefined,
  inlineTimeouts?: InlineTimeouts
): TenantGate {
  // slow queries of one tenant, or of one user in several tenants, must leave connections for the others
  const maxPerKey = Math.max(1, Math.floor(pool.options.max / 2))
  const semaphore = createKeyedSemaphore({
    concurrency: maxPerKey,
    depth: maxWaitingPerKey,
    timeoutMs: semaphoreTimeoutMs
  })

  const errors = createErrorCounts()

  function withinSemaphore<T>({ tenant_id, user_id }: GateSettings, work: () => Promise<T>): Promise<T> {
    // the user's key first: a query that waits for its user must not occupy a place of its tenant
    if (user_id !== null) return semaphore.run(tenant_id === null ? [user_id] : [user_id, tenant_id], work)
    return tenant_id === null ? work() : semaphore.run([tenant_id], work)
  }

  function onPool(settings: GateSettings, config: QueryConfig, timeouts: Timeouts | undefined): Promise<unknown[]> {
    return withinSemaphore(settings, () => queryOnPool(pool, settings, config, timeouts))
  }

  /**
   * Runs a keyed read on the pipeline. Retries when the connection breaks, and once more when the next connection breaks
   * within `disconnectWindowMs` of the first.
   */
  function keyedRead(settings: GateSettings, config: QueryConfig): Promise<unknown[]> {
    if (!pipeline) return keyedReadOnPool(settings, config)
    return new Promise((resolve, reject) => {
      let losses = 0
      let firstAt = 0
      const answer = (err: Error | null, rows: unknown[]) => {
        if (!err) return resolve(rows)
        if (err instanceof PipelineFull) return resolve(keyedReadOnPool(settings, config))
        errors.count(err)
        if (classifyFailure(err) !== 'connection') return reject(err)
        losses++
        if (losses === 1) firstAt = performance.now()
        else if (losses > 2 || performance.now() - firstAt > disconnectWindowMs) return reject(err)
        pipeline.retryQuery(settings, config, answer)
      }
      pipeline.query(settings, config, answer)
    })
  }

  /**
   * Runs a keyed read on the pool: behind a pooler, or when the pipeline is full. The retry is unnamed, because after a
   * schema change the next connection may hold a stale plan as well.
   */
  async function keyedReadOnPool(settings: GateSettings, config: QueryConfig): Promise<unknown[]> {
    try {
      return await onPool(settings, config, inlineTimeouts?.keyed)
    } catch (err) {
      errors.count(err)
      if (classifyFailure(err) !== 'connection' && !isStalePlan(err)) throw err
      return onPool(settings, { ...config, name: '' }, inlineTimeouts?.keyed)
    }
  }

  /**
   * Runs a write or a list on the pool. Retried after a stale plan only, which PostgreSQL refuses before it runs
   * anything.
   */
  async function queryOnOwnConnection(settings: GateSettings, config: QueryConfig) {
    try {
      return await onPool(settings, config, inlineTimeouts?.all)
    } catch (err) {
      errors.count(err)
      if (!isStalePlan(err)) throw err
      return onPool(settings, { ...config, name: '' }, inlineTimeouts?.all)
    }
  }

  /** Behind a pooler the default isolation level of a connection is unknown, so the transaction sets it. */
  function startTransaction() {
    const transaction = db.transaction()
    return inlineTimeouts ? transaction.setIsolationLevel('read committed') : transaction
  }

  return {
    query<Values extends object, Row>(settings: GateSettings, statement: Statement<Values, Row>, values: Values) {
      const { name, text, writes, slow } = statement
      const config = { name, text, values: valuesOf(statement, values), writes }
      const rows = writes || slow ? queryOnOwnConnection(settings, config) : keyedRead(settings, config)
      return rows as Promise<Row[]>
    },

    async transaction(settings, work) {
      for (let attempt = 1; ; attempt++) {
        try {
          return await withinSemaphore(settings, () =>
            startTransaction().execute(async (trx) => {
              const { text, values } = gateStatement(settings, inlineTimeouts?.all)
              await trx.executeQuery(CompiledQuery.raw(text, values))
              return work(trx)
            })
          )
        } catch (err) {
          errors.count(err)
          const isTransient = classifyFailure(err) === 'conflict' || isStalePlan(err)
          if (attempt === maxAttempts || !isTransient) throw err
          await sleep(Math.random() * 20 * 2 ** attempt)
        }
      }
    },

    stats: () => ({
      pool: { total: pool.totalCount, idle: pool.idleCount, waiting: pool.waitingCount },
      pipelines: pipeline?.stats() ?? [],
      waiting: pipeline?.waiting() ?? 0,
      errors: Object.fromEntries(errors.byClass())
    })
  }
}
