import type pg from 'pg'
import type { TimeOuts } from './connection-settings.ts'
import { classifyFailure, isStalePlan } from './failures.ts'
import { type Done, GateQuery, type GateSettings, type QueryConfig } from './gate-query.ts'

/** One statement behind its settings on a connection of its own. `carried`: see GateQuery. */
export async function queryOnPool(
  pool: pg.Pool,
  settings: GateSettings,
  config: QueryConfig,
  carried: TimeOuts | undefined
): Promise<unknown[]> {
  const client = await pool.connect()
  let broken = false
  try {
    return await new Promise<unknown[]>((resolve, reject) => {
      const done: Done = (err, rows) => (err ? reject(err) : resolve(rows))
      client.query(new GateQuery(settings, config, done, carried) as unknown as pg.Submittable)
    })
  } catch (err) {
    broken = classifyFailure(err) === 'connection' || isStalePlan(err)
    throw err
  } finally {
    client.release(broken)
  }
}
