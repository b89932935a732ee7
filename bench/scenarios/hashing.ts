import { strictEqual } from 'node:assert/strict'
import { type ChildProcess, spawn } from 'node:child_process'
import { once } from 'node:events'
import { join } from 'node:path'
import { setTimeout as sleep } from 'node:timers/promises'
import { hash as hashByRust, verify as verifyByRust } from '@node-rs/argon2'
import argon2 from 'argon2'
import { parameters } from '../../src/auth/passwords.ts'
import type { Bench, Scenario } from '../bench.ts'
import { adopt } from '../children.ts'
import { startProduct } from '../servers.ts'
import { median } from '../statistics.ts'
import { type Latency, latencyUnder, whileSigningIn } from './sessions.ts'

type Library = 'argon2' | 'node-rs'
type Hashed = { perSecond: number; cpuMs: number }

/** Hashes in another process while `work` runs. */
async function whileHashing<T>(
  library: Library,
  niceness: number,
  work: () => Promise<T>
): Promise<{ hashed: Hashed; result: T }> {
  const file = join(import.meta.dirname, '..', 'hash-worker.ts')
  const args = [file, library, String(niceness)]
  const child = adopt(spawn(process.execPath, args, { stdio: ['ignore', 'pipe', 'inherit'] }))
  const ended = once(child, 'close')
  let text = ''
  child.stdout.setEncoding('utf8').on('data', (chunk: string) => {
    text += chunk
  })
  await firstLine(child)
  const result = await work()
  child.kill('SIGTERM')
  await ended
  return { hashed: JSON.parse(text.trim().split('\n').at(-1) as string), result }
}

const firstLine = (child: ChildProcess & { stdout: NodeJS.ReadableStream }) => once(child.stdout, 'data')

/** Checks that each library verifies the hashes of the other, so that the product could switch between them. */
async function requireInterchangeable(): Promise<void> {
  const secret = Buffer.from('a pepper')
  const { memoryCost, timeCost, parallelism } = parameters
  const byC = await argon2.hash('correct horse battery', { ...parameters, secret })
  const byRust = await hashByRust('correct horse battery', { memoryCost, timeCost, parallelism, secret })
  strictEqual(await verifyByRust(byC, 'correct horse battery', { secret }), true)
  strictEqual(await argon2.verify(byRust, 'correct horse battery', { secret }), true)
  strictEqual(await argon2.verify(byRust, 'wrong horse battery', { secret }), false)
}

/** Measures the rate and the CPU time of both libraries, in turns. */
async function compareLibraries(bench: Bench): Promise<void> {
  const { seconds, pairs } = bench.conditions()
  const found: Record<Library, Hashed[]> = { argon2: [], 'node-rs': [] }
  for (let turn = 0; turn < pairs; turn++) {
    for (const library of ['argon2', 'node-rs'] as const) {
      const { hashed } = await whileHashing(library, 0, () => sleep(seconds * 1000))
      found[library].push(hashed)
    }
  }
  for (const library of ['argon2', 'node-rs'] as const) {
    bench.figure({
      name: `hashing/${library}/cpu`,
      value: median(found[library].map((each) => each.cpuMs)),
      unit: 'ms'
    })
    bench.figure({
      name: `hashing/${library}/rate`,
      value: median(found[library].map((each) => each.perSecond)),
      unit: '/s'
    })
  }
  const ratios = found['node-rs'].map((each, turn) => each.cpuMs / (found.argon2[turn] as Hashed).cpuMs)
  bench.figure({ name: 'hashing/cpu', value: median(ratios), unit: 'ratio', detail: '@node-rs/argon2 by argon2' })
}

const arrangements = [
  { name: 'beside', library: 'argon2', niceness: 0 },
  { name: 'beside-niced', library: 'argon2', niceness: 10 },
  { name: 'beside-niced-node-rs', library: 'node-rs', niceness: 10 }
] as const

export const hashing: Scenario = {
  name: 'hashing',
  about:
    'two libraries, and reads while people sign in, and while a process hashes at the same and at a lower priority',
  inQuick: false,
  async run(bench) {
    await requireInterchangeable()
    await compareLibraries(bench)
    const dataset = await bench.thousand()
    const product = await startProduct(bench.database, dataset)
    const report = (name: string, { p50, p99 }: Latency, detail: string) => {
      bench.figure({ name: `hashing/${name}/p50`, value: p50, unit: 'ratio', detail })
      bench.figure({ name: `hashing/${name}/p99`, value: p99, unit: 'ratio' })
    }
    const shipped = await latencyUnder(bench, product, dataset, (read) => whileSigningIn(bench, product, dataset, read))
    report('sign-ins', shipped, 'as shipped: 50 callers sign in, hashed in a process of lower priority')
    for (const { name, library, niceness } of arrangements) {
      const found = await latencyUnder(bench, product, dataset, async (read) => {
        return (await whileHashing(library, niceness, read)).result
      })
      report(name, found, `two hashes at once by ${library} in another process, niceness ${niceness}`)
    }
    await product.stop()
  }
}
