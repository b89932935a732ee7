import { type ChildProcess, spawn } from 'node:child_process'
import { once } from 'node:events'
import { join } from 'node:path'
import { setTimeout as sleep } from 'node:timers/promises'
import type { Bench, Scenario } from '../bench.ts'
import { productReads } from '../contenders.ts'
import { measure } from '../pairs.ts'
import { startProduct } from '../servers.ts'
import { median } from '../statistics.ts'
import { signIns, underSignIns } from './sessions.ts'

type Library = 'argon2' | 'node-rs'
type Hashed = { perSecond: number; cpuMs: number }

/** Hashes in a process of its own while `work` runs. */
async function whileHashing(library: Library, niceness: number, work: () => Promise<void>): Promise<Hashed> {
  const file = join(import.meta.dirname, '..', 'hash-worker.ts')
  const child = spawn(process.execPath, [file, library, String(niceness)], { stdio: ['ignore', 'pipe', 'inherit'] })
  const ended = once(child, 'close')
  let text = ''
  child.stdout.setEncoding('utf8').on('data', (chunk: string) => {
    text += chunk
  })
  await firstLine(child)
  await work()
  child.kill('SIGTERM')
  await ended
  return JSON.parse(text.trim().split('\n').at(-1) as string)
}

const firstLine = (child: ChildProcess & { stdout: NodeJS.ReadableStream }) => once(child.stdout, 'data')

/** What both libraries cost, in turns; the hashes are interchangeable. */
async function compareLibraries(bench: Bench): Promise<void> {
  const { seconds, pairs } = bench.conditions()
  const found: Record<Library, Hashed[]> = { argon2: [], 'node-rs': [] }
  for (let turn = 0; turn < pairs; turn++) {
    for (const library of ['argon2', 'node-rs'] as const) {
      found[library].push(await whileHashing(library, 0, () => sleep(seconds * 1000)))
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

export const hashing: Scenario = {
  name: 'hashing',
  about: 'two libraries, and reads while hashing goes on in the process, beside it, and beside it at a lower priority',
  inQuick: false,
  async run(bench) {
    await compareLibraries(bench)
    const dataset = await bench.thousand()
    const product = await startProduct(bench.database, dataset)
    const reads = () => productReads(product, dataset)
    const shipped = await underSignIns(bench, product, reads, signIns(dataset))
    bench.figure({
      name: 'hashing/in-process/p50',
      value: shipped.p50,
      unit: 'ratio',
      detail: 'as shipped: 50 sign-ins, two hashes at once'
    })
    bench.figure({ name: 'hashing/in-process/p99', value: shipped.p99, unit: 'ratio' })
    const arrangements = [
      { name: 'beside', library: 'argon2', niceness: 0 },
      { name: 'beside-niced', library: 'argon2', niceness: 10 },
      { name: 'beside-niced-node-rs', library: 'node-rs', niceness: 10 }
    ] as const
    for (const { name, library, niceness } of arrangements) {
      const ratios: { p50: number; p99: number }[] = []
      for (let turn = 0; turn < bench.conditions().pairs; turn++) {
        const idle = await measure(bench.conditions(2), reads())
        await whileHashing(library, niceness, async () => {
          const busy = await measure(bench.conditions(2), reads())
          ratios.push({ p50: busy.p50 / idle.p50, p99: busy.p99 / idle.p99 })
        })
      }
      bench.figure({ name: `hashing/${name}/p50`, value: median(ratios.map(({ p50 }) => p50)), unit: 'ratio' })
      bench.figure({ name: `hashing/${name}/p99`, value: median(ratios.map(({ p99 }) => p99)), unit: 'ratio' })
    }
    await product.stop()
  }
}
