import { resolve } from 'node:path'
import type { Scenario } from '../bench.ts'
import { productFreshReads, productReads, productRefusals, productWrites } from '../contenders.ts'
import { comparePair } from '../pairs.ts'
import { startProduct } from '../servers.ts'
import { compareRefreshes } from './sessions.ts'

/**
 * Compares this checkout with another one, whose folder BENCH_AGAINST names: with the version before a change, say. That folder
 * needs its packages (`npm ci`). The schema must be the same.
 */
export const version: Scenario = {
  name: 'version',
  about: 'GET /users/me, a refusal, a change and refreshes of this checkout, against those of the one in BENCH_AGAINST',
  inQuick: false,
  async run(bench) {
    const folder = process.env.BENCH_AGAINST
    if (folder === undefined) return bench.skip('version', 'BENCH_AGAINST names no other checkout')
    const dataset = await bench.thousand()
    const [ours, theirs] = await Promise.all([
      startProduct(bench.database, dataset),
      startProduct(bench.database, dataset, {}, resolve(folder))
    ])
    const reads = [productReads(ours, dataset), productReads(theirs, dataset, 'the other checkout')] as const
    bench.pair('version', await comparePair(bench.conditions(), ...reads))
    const fresh = [productFreshReads(ours, dataset), productFreshReads(theirs, dataset)] as const
    bench.pair('version/database', await comparePair(bench.conditions(), ...fresh))
    const refusals = [productRefusals(ours, dataset, 'no token'), productRefusals(theirs, dataset, 'no token')] as const
    bench.pair('version/refusal', await comparePair(bench.conditions(), ...refusals))
    const writes = [productWrites(ours, dataset), productWrites(theirs, dataset)] as const
    bench.pair('version/change', await comparePair(bench.conditions(), ...writes))
    const { median, low, high } = await compareRefreshes(bench, dataset, ours, theirs)
    const detail = `${low.toFixed(2)} to ${high.toFixed(2)}`
    bench.figure({ name: 'version/refresh', value: median, unit: 'ratio', detail })
    await Promise.all([ours.stop(), theirs.stop()])
  }
}
