import { spawn } from 'node:child_process'
import { once } from 'node:events'
import { join } from 'node:path'
import { setTimeout as sleep } from 'node:timers/promises'
import type { Bench, Scenario } from '../bench.ts'
import { runCallers } from '../callers.ts'
import { adopt } from '../children.ts'
import type { Dataset } from '../database.ts'
import { measureBoth } from '../pairs.ts'
import { usageOf } from '../processes.ts'
import { copyProduct, type Server, startProduct } from '../servers.ts'
import { median, spreadOf } from '../statistics.ts'
import { latencyUnder, signIns, whileSigningIn } from './sessions.ts'

const packages = ['node-rs', 'argon2'] as const

type Hashed = { perSecond: number; cpuMs: number }

/** Hashes with one package in a process of its own. */
async function hashFor(name: string, seconds: number): Promise<Hashed> {
  const file = join(import.meta.dirname, '..', 'hash-worker.ts')
  const child = adopt(spawn(process.execPath, [file, name], { stdio: ['ignore', 'pipe', 'inherit'] }))
  const ended = once(child, 'close')
  let text = ''
  child.stdout.setEncoding('utf8').on('data', (chunk: string) => {
    text += chunk
  })
  await once(child.stdout, 'data')
  await sleep(seconds * 1000)
  child.kill('SIGTERM')
  await ended
  return JSON.parse(text.trim().split('\n').at(-1) as string)
}

async function comparePackages(bench: Bench): Promise<void> {
  const { seconds, pairs, tries } = bench.conditions()
  const found: [Hashed, Hashed][] = []
  for (let turn = 0; turn < pairs; turn++) {
    const [fast, slow] = packages
    found.push(
      await measureBoth(
        turn,
        tries,
        () => hashFor(fast, seconds),
        () => hashFor(slow, seconds)
      )
    )
  }
  for (const [index, name] of packages.entries()) {
    const those = found.map((pair) => pair[index] as Hashed)
    bench.figure({ name: `hashing/${name}/cpu`, value: median(those.map(({ cpuMs }) => cpuMs)), unit: 'ms' })
    bench.figure({ name: `hashing/${name}/rate`, value: median(those.map(({ perSecond }) => perSecond)), unit: '/s' })
  }
  const ratio = median(found.map(([fast, slow]) => fast.cpuMs / slow.cpuMs))
  bench.figure({ name: 'hashing/cpu', value: ratio, unit: 'ratio', detail: packages.join(' by ') })
}

async function signInFor(bench: Bench, server: Server, dataset: Dataset): Promise<Hashed> {
  const used = () => usageOf(server.pid).cpu_us + usageOf(bench.database.pid).cpu_us
  const before = used()
  const { perSecond, replies } = await runCallers(server, signIns(dataset), bench.conditions().seconds)
  return { perSecond, cpuMs: (used() - before) / replies / 1000 }
}

/** Compares sign-ins with those of a server that has only the slower package. */
async function compareSignIns(bench: Bench, product: Server, slower: Server, dataset: Dataset): Promise<void> {
  const { pairs, tries } = bench.conditions()
  const found: [Hashed, Hashed][] = []
  // starts the processes that hash
  for (const server of [product, slower]) await signInFor(bench, server, dataset)
  for (let turn = 0; turn < pairs; turn++) {
    const sides = [product, slower].map((server) => () => signInFor(bench, server, dataset))
    found.push(await measureBoth(turn, tries, sides[0] as () => Promise<Hashed>, sides[1] as () => Promise<Hashed>))
  }
  const report = (name: string, { median, low, high }: ReturnType<typeof spreadOf>) =>
    bench.figure({ name, value: median, unit: 'ratio', detail: `${low.toFixed(2)} to ${high.toFixed(2)}` })
  report('hashing/sign-ins', spreadOf(found.map(([fast, slow]) => fast.perSecond / slow.perSecond)))
  report('hashing/sign-ins/cpu', spreadOf(found.map(([fast, slow]) => fast.cpuMs / slow.cpuMs)))
}

export const hashing: Scenario = {
  name: 'hashing',
  about: 'both packages, sign-ins by them, and reads while people sign in: hashed in another process, and in the same',
  inQuick: false,
  async run(bench) {
    await comparePackages(bench)
    const dataset = await bench.thousand()
    const inProcess = { path: 'src/auth/hasher.ts', replacement: 'bench/peers/hasher.ts' }
    const [product, slower, alone] = await Promise.all([
      startProduct(bench.database, dataset),
      startProduct(bench.database, dataset, {}, copyProduct({ withoutPackages: '@node-rs' })),
      startProduct(bench.database, dataset, {}, copyProduct({ file: inProcess }))
    ])
    await compareSignIns(bench, product, slower, dataset)
    for (const [name, server, detail] of [
      ['process', product, 'as shipped: hashed in a process of lower priority'],
      ['in-process', alone, 'hashed in the serving process']
    ] as const) {
      const found = await latencyUnder(bench, server, dataset, (read) => whileSigningIn(bench, server, dataset, read))
      bench.figure({ name: `hashing/${name}/p50`, value: found.p50, unit: 'ratio', detail })
      bench.figure({ name: `hashing/${name}/p99`, value: found.p99, unit: 'ratio' })
    }
    await Promise.all([product, slower, alone].map((server) => server.stop()))
  }
}
