import { resolve } from 'node:path'
import type { Scenario } from '../bench.ts'
import { productReads } from '../contenders.ts'
import { comparePair } from '../pairs.ts'
import { startProduct } from '../servers.ts'

/**
 * Compares this checkout with another one, whose folder BENCH_AGAINST names: with the version before a change, say. That folder
 * needs its packages (`npm ci`). The schema must be the same.
 */
export const version: Scenario = {
  name: 'version',
  about: 'GET /users/me of this checkout, against that of the one in BENCH_AGAINST',
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
    const pair = await comparePair(bench.conditions(), ...reads)
    bench.pair('version', pair)
    const { median, low, high } = pair.cpuRatio
    bench.figure({
      name: 'version/cpu',
      value: median,
      unit: 'ratio',
      detail: `${low.toFixed(2)} to ${high.toFixed(2)}`
    })
    await Promise.all([ours.stop(), theirs.stop()])
  }
}
