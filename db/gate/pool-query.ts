import type pg from 'pg'
import type { Timeouts } from './connection-settings.ts'
import { classifyFailure, isStalePlan } from './failures.ts'
import { GateQuery, type GateSettings, type QueryCallback, type QueryConfig } from './gate-query.ts'
import type { ConnectionPool } from './renewable.ts'

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
    return await new Promise<unknown[]>((resolve, reject) => {
      const done: QueryCallback = (err, rows) => (err ? reject(err) : resolve(rows))
      client.query(new GateQuery(settings, config, done, inlineTimeouts) as unknown as pg.Submittable)
    })
  } catch (err) {
    broken = classifyFailure(err) === 'connection' || isStalePlan(err)
    throw err
  } finally {
    client.release(broken)
  }
}
