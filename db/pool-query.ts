import type pg from 'pg'
import { classifyFailure } from './failures.ts'
import { GateQuery, type GateSettings, type QueryConfig, type TimeOuts } from './gate-query.ts'
import { isStalePlan } from './pipeline.ts'

/** One statement behind its settings on a connection of its own. `carried`: see GateQuery. */
export async function queryOnPool(
  pool: pg.Pool,
  settings: GateSettings,
  config: QueryConfig,
  carried: TimeOuts | undefined
): Promise<pg.QueryResult> {
  const client = await pool.connect()
  let broken = false
  try {
    return await new Promise<pg.QueryResult>((resolve, reject) => {
      const done = (err: Error | null, result: pg.QueryResult) => (err ? reject(err) : resolve(result))
      client.query(new GateQuery(settings, config, done, carried) as unknown as pg.Submittable)
    })
  } catch (err) {
    broken = classifyFailure(err) === 'connection' || isStalePlan(err)
    throw err
  } finally {
    client.release(broken)
  }
}
