import { setTimeout as sleep } from 'node:timers/promises'
import type pg from 'pg'
import { PooledConnection } from './connection.ts'
import type { Timeouts } from './connection-settings.ts'
import { classifyFailure, isStalePlan } from './failures.ts'
import { GateQuery, type GateSettings, type QueryCallback, type QueryConfig } from './gate-query.ts'
import type { Pipeline } from './pipeline.ts'

/** What the gate and Kysely use of a pool. */
export type ConnectionPool = {
  connect(): Promise<pg.PoolClient>
  query: pg.Pool['query']
  end(): Promise<void>
  readonly options: { max: number }
  readonly totalCount: number
  readonly idleCount: number
  readonly waitingCount: number
}

const pollMs = 50
/** Longer than any query or transaction may take, and than anybody waits for a connection. */
const drainMs = 30_000

/** Runs one statement, with its settings, on a connection of the pool. `inlineTimeouts`: see GateQuery. */
export async function queryOnPool(
  pool: ConnectionPool,
  settings: GateSettings,
  config: QueryConfig,
  inlineTimeouts: Timeouts | undefined
): Promise<unknown[]> {
  const client = await pool.connect()
  let broken = false
  try {
    const rows = await new Promise<unknown[]>((resolve, reject) => {
      const done: QueryCallback = (err, rows) => (err ? reject(err) : resolve(rows))
      client.query(new GateQuery(settings, config, done, inlineTimeouts) as unknown as pg.Submittable)
    })
    if (client instanceof PooledConnection) client.requireReplicated()
    return rows
  } catch (err) {
    broken = classifyFailure(err) === 'connection' || isStalePlan(err)
    throw err
  } finally {
    client.release(broken)
  }
}

/**
 * A pool whose login can be replaced. New work goes to the new pool at once. The old pool gives the queries that wait in it
 * their connections, closes each connection when its work is done, and then ends. Meanwhile there are up to twice as many
 * connections.
 */
export function createRenewablePool(first: pg.Pool) {
  let current = first
  const drains = new Set<Promise<void>>()

  /** A pool that ends serves nobody who still waits in it, so it ends when nobody does. */
  async function drain(old: pg.Pool): Promise<void> {
    const deadline = performance.now() + drainMs
    while (old.waitingCount > 0 && performance.now() < deadline) await sleep(pollMs)
    await old.end()
  }

  const pool: ConnectionPool = {
    connect: () => current.connect(),
    query: ((...given: Parameters<pg.Pool['query']>) => current.query(...given)) as pg.Pool['query'],
    async end() {
      await Promise.all([current.end(), ...drains])
    },
    get options() {
      return current.options
    },
    get totalCount() {
      return current.totalCount
    },
    get idleCount() {
      return current.idleCount
    },
    get waitingCount() {
      return current.waitingCount
    }
  }
  return Object.assign(pool, {
    renew(next: pg.Pool): void {
      const old = current
      current = next
      track(drains, drain(old))
    }
  })
}

/**
 * A pipeline whose login can be replaced. New reads go to the new one at once, and so do those whose connection breaks. The
 * old one ends when its reads are answered.
 */
export function createRenewablePipeline(first: Pipeline) {
  let current = first
  const drains = new Set<Promise<void>>()

  async function drain(old: Pipeline): Promise<void> {
    const deadline = performance.now() + drainMs
    const isBusy = () => old.waiting() > 0 || old.stats().some(({ in_flight }) => in_flight > 0)
    while (isBusy() && performance.now() < deadline) await sleep(pollMs)
    await old.close()
  }

  const pipeline: Pipeline = {
    query: (...given) => current.query(...given),
    retryQuery: (...given) => current.retryQuery(...given),
    async close() {
      await Promise.all([current.close(), ...drains])
    },
    waiting: () => current.waiting(),
    stats: () => current.stats()
  }
  return Object.assign(pipeline, {
    renew(next: Pipeline): void {
      const old = current
      current = next
      track(drains, drain(old))
    }
  })
}

function track(drains: Set<Promise<void>>, drain: Promise<void>): void {
  const tracked = drain.catch(() => {}).finally(() => drains.delete(tracked))
  drains.add(tracked)
}
