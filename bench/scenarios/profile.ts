import { mkdtempSync, readdirSync, readFileSync } from 'node:fs'
import { join } from 'node:path'
import type { Scenario } from '../bench.ts'
import { scratch } from '../children.ts'
import { productReads } from '../contenders.ts'
import { measure } from '../pairs.ts'
import { root, startProduct } from '../servers.ts'

type Frame = { functionName: string; url: string }
type CpuProfile = {
  nodes: { id: number; callFrame: Frame; children?: number[] }[]
  samples: number[]
  /** Microseconds from one sample to the next. */
  timeDeltas: number[]
}

/** The parts of the server. A sample belongs to the part that matches its innermost matching frame. */
const parts: [name: string, knows: (frame: Frame) => boolean][] = [
  ['write to a client', ({ functionName }) => /^write(Utf8|Latin1)String$|^writev$/.test(functionName)],
  ['write to PostgreSQL', ({ functionName }) => functionName === 'writeBuffer'],
  ['garbage collection', ({ functionName }) => functionName === '(garbage collector)'],
  ['answers from memory', ({ url }) => /\/gate\/memory\.ts$/.test(url)],
  ['PostgreSQL: batches, rows, gate', ({ url }) => /\/(db|node_modules\/pg[^/]*)\/|database\.ts$/.test(url)],
  ['JSON', ({ url }) => /fast-json-stringify|json-schema/.test(url)],
  ['who it is: bearer, revocations, guard', ({ url }) => /\/auth\/.*\.ts$/.test(url)],
  ['limits', ({ url }) => /\/limits\/.*\.ts$/.test(url)],
  ['host and tenant', ({ url }) => /\/tenancy\/|\/host-header\.ts$/.test(url)],
  ['headers and CORS', ({ url }) => /headers\.ts$|cors/.test(url)],
  ['request id, log, metrics', ({ url }) => /(metrics|request-log|app)\.ts$|pino|uuid|node:.*crypto/.test(url)],
  ['the other plugins and the route', ({ url }) => url.startsWith(`file://${root}`) && !url.includes('/node_modules/')],
  ['Fastify', ({ url }) => /node_modules\/(fastify|avvio|find-my-way)/.test(url)],
  ["Node: HTTP's heads and messages", ({ url }) => /^node:(_http|internal\/(per_context|util|timers))/.test(url)],
  ['Node: sockets, streams, events', ({ url }) => /^node:/.test(url)]
]
const rest = 'the engine, and what it calls by itself'

/** Computes each part's share of the non-idle time after `skipUs`, in percent. */
function sharesOf({ nodes, samples, timeDeltas }: CpuProfile, skipUs: number): Map<string, number> {
  const byId = new Map(nodes.map((node) => [node.id, node]))
  const parents = new Map(nodes.flatMap(({ id, children = [] }) => children.map((child) => [child, id] as const)))
  const partOf = (id: number | undefined): string => {
    for (let at = id; at !== undefined; at = parents.get(at)) {
      const frame = byId.get(at)?.callFrame as Frame
      const part = parts.find(([, knows]) => knows(frame))
      if (part) return part[0]
    }
    return rest
  }
  const known = new Map(nodes.map(({ id }) => [id, partOf(id)]))
  const shares = new Map<string, number>()
  let passed = 0
  let busy = 0
  for (const [index, id] of samples.entries()) {
    const us = timeDeltas[index] as number
    passed += us
    if (passed < skipUs || byId.get(id)?.callFrame.functionName === '(idle)') continue
    const part = known.get(id) as string
    shares.set(part, (shares.get(part) ?? 0) + us)
    busy += us
  }
  for (const [part, us] of shares) shares.set(part, (us / busy) * 100)
  return shares
}

/**
 * The time of a write includes the time in which the kernel runs the process that the write woke. CPU time would not
 * include it.
 */
export const profile: Scenario = {
  name: 'profile',
  about: 'where the time of GET /users/me goes in the server, by what is on the stack',
  inQuick: false,
  async run(bench) {
    const dataset = await bench.thousand()
    const folder = mkdtempSync(join(scratch, 'profile-'))
    const options = `--cpu-prof --cpu-prof-interval=200 --cpu-prof-dir=${folder}`
    const product = await startProduct(bench.database, dataset, { NODE_OPTIONS: options })
    const reads = productReads(product, dataset)
    const startedAt = performance.now()
    await measure(bench.conditions(), reads)
    const skipUs = (product.startedInMs + performance.now() - startedAt) * 1000
    await measure(bench.conditions(), reads)
    await product.stop()
    const [file = ''] = readdirSync(folder)
    const shares = sharesOf(JSON.parse(readFileSync(join(folder, file), 'utf8')), skipUs)
    for (const [part, share] of [...shares].sort((a, b) => b[1] - a[1])) {
      bench.figure({ name: `profile/${part}`, value: share, unit: '%' })
    }
  }
}
