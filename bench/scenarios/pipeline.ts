import { join } from 'node:path'
import type { GateSettings, QueryCallback, QueryConfig } from '../../db/gate/gate-query.ts'
import type { Bench, Scenario } from '../bench.ts'
import { productReads } from '../contenders.ts'
import type { Dataset } from '../database.ts'
import { comparePair } from '../pairs.ts'
import { usageOf } from '../processes.ts'
import { copyProduct, root, startProduct } from '../servers.ts'

/**
 * `pipeline: true` of pg can take the place of db/gate/wire.ts when its CPU time per request is at most a tenth higher.
 * docs/architecture.md says what came out.
 */
export const pipeline: Scenario = {
  name: 'pipeline',
  about: 'GET /users/me by the pipeline of pg, against the same by db/gate/wire.ts; and the reads alone, without HTTP',
  inQuick: false,
  async run(bench) {
    const dataset = await bench.thousand()
    const copy = copyProduct({ file: { path: 'db/gate/wire.ts', replacement: 'bench/peers/pg-pipeline.ts' } })
    const [theirs, ours] = await Promise.all([
      startProduct(bench.database, dataset, { READ_MEMORY: 'off' }, copy),
      startProduct(bench.database, dataset, { READ_MEMORY: 'off' })
    ])
    for (const connections of [1, 64]) {
      const reads = [productReads(theirs, dataset, 'the pipeline of pg'), productReads(ours, dataset)] as const
      const pair = await comparePair(bench.conditions(connections), ...reads)
      bench.pair(`pipeline/${connections}`, pair)
    }
    await Promise.all([theirs.stop(), ours.stop()])
    await compareReads(bench, dataset, copy)
  }
}

type Pipeline = {
  query(settings: GateSettings, config: QueryConfig, done: QueryCallback): void
  close(): Promise<void>
}

/** Opens the two pipelined connections of the sources in `folder`. */
async function openPipeline(folder: string, { urls }: Dataset): Promise<Pipeline> {
  const { createPipeline } = await import(join(folder, 'db', 'gate', 'pipeline.ts'))
  return createPipeline(urls.app, 2, (err: Error) => {
    throw err
  })
}

const rounds = 50
const readsOfRound = { 1: 1_000, 64: 3_000 }

/**
 * Measures the CPU time of reads in this process and in PostgreSQL, in short rounds by turns. Other load on the machine
 * affects both alike.
 */
async function compareReads(bench: Bench, dataset: Dataset, copy: string): Promise<void> {
  const [theirs, ours] = await Promise.all([openPipeline(copy, dataset), openPipeline(root, dataset)])
  for (const each of [theirs, ours]) await readMany(each, dataset, 20_000, 64)
  for (const callers of [1, 64] as const) {
    const used = { pg: { node: 0, database: 0 }, ours: { node: 0, database: 0 } }
    for (let round = 0; round < rounds; round++) {
      const turns = [[theirs, used.pg] as const, [ours, used.ours] as const]
      for (const [each, sum] of round % 2 === 0 ? turns : turns.reverse()) {
        const before = { node: process.cpuUsage(), database: usageOf(bench.database.pid).cpu_us }
        await readMany(each, dataset, readsOfRound[callers], callers)
        const { user, system } = process.cpuUsage(before.node)
        sum.node += user + system
        sum.database += usageOf(bench.database.pid).cpu_us - before.database
      }
    }
    for (const [name, { node, database }] of Object.entries(used)) {
      const reads = rounds * readsOfRound[callers]
      const detail = `of which ${(database / reads).toFixed(1)} in PostgreSQL`
      bench.figure({ name: `pipeline/read/${callers}/${name}`, value: (node + database) / reads, unit: 'µs', detail })
    }
  }
  await Promise.all([theirs.close(), ours.close()])
}

const text = `select u.id, u.email, u.name, m.role, u.created_at from users u join memberships m on m.user_id = u.id
  where m.tenant_id = $1 and u.id = $2`

/** Reads people of all agencies, with so many callers at once. */
async function readMany(pipeline: Pipeline, { users }: Dataset, count: number, callers: number): Promise<void> {
  let left = count
  const readOne = ({ tenant_id, user_id }: Dataset['users'][number]) =>
    new Promise<void>((resolve, reject) => {
      const config = { name: 'bench_me', text, values: [tenant_id, user_id] }
      pipeline.query({ tenant_id, user_id, request: '' }, config, (err, rows) => {
        if (err || rows.length !== 1) reject(err ?? new Error(`${rows.length} rows`))
        else resolve()
      })
    })
  async function call(): Promise<void> {
    while (left-- > 0) await readOne(users[(Math.max(left, 0) * 7919) % users.length] as Dataset['users'][number])
  }
  await Promise.all(Array.from({ length: callers }, call))
}
