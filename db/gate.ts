import { setTimeout as sleep } from 'node:timers/promises'
import { CompiledQuery, type Kysely, type Transaction as KyselyTransaction, sql } from 'kysely'
import type pg from 'pg'
import { classifyFailure } from './failures.ts'
import { GateQuery, type GateSettings, gateValues } from './gate-query.ts'
import { isStalePlan, type Pipeline, PipelineFull } from './pipeline.ts'
import type { Statement } from './statement.ts'
import type { TenantTables } from './tables.ts'

/** A transaction inside the gate of one tenant. Only the gate makes one, so a query that asks for it is behind the gate. */
export type TenantTransaction = KyselyTransaction<TenantTables>

/** `connects`: how often it was opened. */
export type PipelineStats = { in_flight: number; connected: boolean; connects: number }

/** The only way to the tables of the tenants: two doors, one lock. */
export type TenantGate = {
  /**
   * One statement, together with its settings in one network flush. Resolves to its rows.
   *
   * Keyed reads share a few pipelined connections and are asked once more if the connection broke. Lists and writes take a
   * connection of their own, and a write is never repeated, because whether it was committed is not known.
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
  /** Its connections: those of the pool, and each pipelined one. */
  stats(): { pool: { total: number; idle: number; waiting: number }; pipelines: PipelineStats[] }
}

/** Runs a statement inside a transaction of the gate, so that it sees what the transaction has done and nobody else's after. */
export async function queryIn<Values extends object, Row>(
  trx: TenantTransaction,
  { text, order }: Statement<Values, Row>,
  values: Values
): Promise<Row[]> {
  const { rows } = await trx.executeQuery<Row>(
    CompiledQuery.raw(
      text,
      order.map((key) => values[key])
    )
  )
  return rows
}

const attempts = 4

type QueryConfig = { name: string; text: string; values: unknown[] }

export function createTenantGate(db: Kysely<TenantTables>, pool: pg.Pool, pipelines: readonly Pipeline[]): TenantGate {
  let turn = 0

  async function onPool(settings: GateSettings, config: QueryConfig) {
    const client = await pool.connect()
    let broken = false
    try {
      return await new Promise<pg.QueryResult>((resolve, reject) => {
        const done = (err: Error | null, result: pg.QueryResult) => (err ? reject(err) : resolve(result))
        client.query(new GateQuery(settings, config, done) as unknown as pg.Submittable)
      })
    } catch (err) {
      broken = classifyFailure(err) === 'connection' || isStalePlan(err)
      throw err
    } finally {
      client.release(broken)
    }
  }

  /** Asked once more when the answer was lost. Unnamed then: what made a name stale may still be going on. */
  async function onPipeline(settings: GateSettings, config: QueryConfig) {
    const pipeline = pipelines[turn++ % pipelines.length] as Pipeline
    try {
      return await pipeline.query(settings, config).catch((err) => {
        if (classifyFailure(err) !== 'connection' && !isStalePlan(err)) throw err
        return pipeline.query(settings, { ...config, name: '' })
      })
    } catch (err) {
      if (err instanceof PipelineFull) return onPool(settings, config)
      throw err
    }
  }

  /** For writes and lists. Not repeated, but for a stale plan, which PostgreSQL refuses before it runs anything. */
  async function ownConnection(settings: GateSettings, config: QueryConfig) {
    try {
      return await onPool(settings, config)
    } catch (err) {
      if (!isStalePlan(err)) throw err
      return onPool(settings, { ...config, name: '' })
    }
  }

  return {
    async query<Values extends object, Row>(
      settings: GateSettings,
      { name, text, order, writes, slow }: Statement<Values, Row>,
      values: Values
    ) {
      const config = { name, text, values: order.map((key) => values[key]) }
      const result = await (writes || slow ? ownConnection(settings, config) : onPipeline(settings, config))
      return result.rows as Row[]
    },

    async transaction(settings, work) {
      for (let attempt = 1; ; attempt++) {
        try {
          return await db.transaction().execute(async (trx) => {
            const [tenant, user, request] = gateValues(settings)
            await sql`select set_config('app.tenant_id', ${tenant}, true), set_config('app.user_id', ${user}, true),
              set_config('app.request', ${request}, true)`.execute(trx)
            return work(trx)
          })
        } catch (err) {
          if (attempt === attempts || classifyFailure(err) !== 'conflict') throw err
          await sleep(Math.random() * 20 * 2 ** attempt)
        }
      }
    },

    stats: () => ({
      pool: { total: pool.totalCount, idle: pool.idleCount, waiting: pool.waitingCount },
      pipelines: pipelines.map((pipeline) => {
        const { inFlight, ...others } = pipeline.stats()
        return { in_flight: inFlight, ...others }
      })
    })
  }
}
