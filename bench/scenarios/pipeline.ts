import { cpSync, symlinkSync } from 'node:fs'
import { join } from 'node:path'
import type { Scenario } from '../bench.ts'
import { scratch } from '../children.ts'
import { productReads } from '../contenders.ts'
import { comparePair } from '../pairs.ts'
import { root, startProduct } from '../servers.ts'

/** Copies the product, with another file in place of one of its own. */
function copyProduct(file: string, replacement: string): string {
  const folder = join(scratch, 'product')
  for (const part of ['src', 'plugins', 'routes', 'db', 'package.json']) {
    cpSync(join(root, part), join(folder, part), { recursive: true })
  }
  cpSync(join(root, replacement), join(folder, file))
  symlinkSync(join(root, 'node_modules'), join(folder, 'node_modules'))
  return folder
}

/**
 * `pipeline: true` of pg can take the place of db/gate/wire.ts and wire-format.ts when its CPU time per request is at most
 * a tenth higher. docs/architecture.md says what came out.
 */
export const pipeline: Scenario = {
  name: 'pipeline',
  about: 'GET /users/me by the pipeline of pg, against the same by db/gate/wire.ts',
  inQuick: false,
  async run(bench) {
    const dataset = await bench.thousand()
    const copy = copyProduct('db/gate/wire.ts', 'bench/peers/pg-pipeline.ts')
    const [theirs, ours] = await Promise.all([
      startProduct(bench.database, dataset, {}, copy),
      startProduct(bench.database, dataset)
    ])
    for (const connections of [1, 64]) {
      const reads = [productReads(theirs, dataset, 'the pipeline of pg'), productReads(ours, dataset)] as const
      const pair = await comparePair(bench.conditions(connections), ...reads)
      bench.pair(`pipeline/${connections}`, pair)
      bench.figure({ name: `pipeline/${connections}/cpu`, value: pair.cpuRatio.median, unit: 'ratio' })
    }
    await Promise.all([theirs.stop(), ours.stop()])
  }
}
