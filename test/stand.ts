import { join } from 'node:path'
import { setTimeout as sleep } from 'node:timers/promises'
import type { Environment } from '../src/config/environment.ts'
import { type Cluster, startCluster } from './cluster.ts'
import { type FaultProxy, startFaultProxy } from './fault-proxy.ts'
import { eventually, type Owner, type Server, startServer, temporaryFolder, testEnvironment } from './harness.ts'
import { judge, openLedger, prepareAgency, startWorkload } from './oracle.ts'
import { freePort } from './ports.ts'
import { createRandom } from './random.ts'

/** The system under test: processes of the product, and a database behind a proxy that can add network faults. */
export type Stand = {
  cluster: Cluster
  proxy: FaultProxy
  servers: Server[]
  /** Ends a process with a signal, and starts it again on the same port. */
  restart(index: number, signal: NodeJS.Signals): Promise<void>
  urls(): string[]
}

export async function startStand(t: Owner, { processes = 2, env = {} as Environment } = {}): Promise<Stand> {
  const cluster = await startCluster(t)
  const proxy = await startFaultProxy(t, cluster.port)
  const app = proxy.through(cluster.url('aggios_app'))
  const database = { ...urlsOf(cluster), app, serving: app }
  const environment = testEnvironment(database, { SMTP_URL: 'smtp://127.0.0.1:9', LOG_LEVEL: 'warn', ...env })
  const start = async (port: number) => startServer(t, { ...environment, PORT: String(port) })
  const servers = await Promise.all(Array.from({ length: processes }, async () => start(await freePort())))
  return {
    cluster,
    proxy,
    servers,
    async restart(index, signal) {
      const server = servers[index] as Server
      server.child.kill(signal)
      await server.exited
      // a start may fail while the database is away, so it is repeated, as a supervisor would do
      await eventually(async () => {
        const next = await start(server.port).catch(() => undefined)
        if (next) servers[index] = next
        return next !== undefined
      }, 60_000)
    },
    urls: () => servers.map(({ url }) => url)
  }
}

export const urlsOf = ({ url }: Cluster) => ({
  postgres: url('postgres'),
  owner: url('aggios_owner'),
  backup: url('aggios_backup'),
  app: url('aggios_app')
})

/** Causes a fault, and resolves when it is repaired. */
export type Fault = (stand: Stand, random: () => number) => Promise<unknown>

async function during(stand: Stand, toxic: Parameters<FaultProxy['add']>[0], ms: number): Promise<void> {
  await stand.proxy.add(toxic)
  await sleep(ms)
  await stand.proxy.clear()
}

async function crash({ cluster }: Stand, signal: 'SIGKILL' | 'SIGQUIT', ms: number): Promise<void> {
  await cluster.kill(signal)
  await sleep(ms)
  await cluster.start()
}

export const commitAnswered = 'COMMIT\0'

export const faults = {
  'the database is killed': (stand, random) => crash(stand, 'SIGKILL', random() * 500),
  'the database is stopped at once': (stand, random) => crash(stand, 'SIGQUIT', random() * 500),
  'the database freezes': async ({ cluster }, random) => {
    cluster.freeze()
    await sleep(500 + random() * 6000)
    cluster.thaw()
  },
  'the way to the database breaks': async ({ proxy }) => proxy.reset(),
  'the way to the database is closed': (stand, random) => during(stand, { type: 'refuse' }, random() * 3000),
  'the way to the database swallows everything': (stand, random) =>
    during(stand, { type: 'blackhole' }, 500 + random() * 6000),
  'the way to the database is slow': (stand, random) =>
    during(stand, { type: 'latency', latency: random() * 100, jitter: 100 }, 3000),
  'the way to the database is narrow': (stand, random) =>
    during(stand, { type: 'bandwidth', rate: 20_000 + random() * 100_000 }, 3000),
  'answers of the database are cut': (stand, random) =>
    during(stand, { type: 'reset_after', bytes: Math.floor(random() * 4000), direction: 'downstream' }, 2000),
  'commits are not acknowledged': (stand, random) =>
    during(stand, { type: 'cut_on', pattern: commitAnswered, direction: 'downstream' }, 500 + random() * 1500),
  'a process is killed': (stand, random) => stand.restart(Math.floor(random() * stand.servers.length), 'SIGKILL'),
  'a process is told to stop': (stand, random) => stand.restart(Math.floor(random() * stand.servers.length), 'SIGTERM')
} satisfies Record<string, Fault>

export type FaultName = keyof typeof faults

export type Outcome = {
  problems: string[]
  acknowledged: number
  unknown: number
  /** The longest time from the end of a fault to the next success, and the longest time of one answer. */
  slowestRecoveryMs: number
  slowestAnswerMs: number
}

let runs = 0

/** Twice the promised time, because the machine may be busy. */
const recoveryMs = 10_000
/** Fewer acknowledged requests would show little. On a busy machine they take longer. */
const fewestAcknowledged = 21

/**
 * Runs clients while faults happen, one after the other, and judges the result. `problems` is empty if every promise
 * was kept, no client got a forbidden answer, and no process ended by itself.
 */
export async function tryFaults(
  t: Owner,
  stand: Stand,
  {
    seed,
    names,
    clients = 3,
    gapMs = 800
  }: { seed: number; names: (FaultName | Fault)[]; clients?: number; gapMs?: number }
): Promise<Outcome> {
  const random = createRandom(seed)
  const dir = temporaryFolder(t)
  const ledger = openLedger(t, join(dir, 'ledger'))
  const run = ++runs
  const [first] = stand.urls()
  if (first === undefined) throw new Error('there is no process')
  const agencies = [
    await prepareAgency(first, `acme${run}`, clients),
    await prepareAgency(first, `rival${run}`, clients)
  ]
  const workload = startWorkload({ agencies, urls: stand.urls, ledger, random })
  let slowestRecoveryMs = 0
  for (const name of names) {
    await sleep(gapMs * (0.5 + random()))
    await (typeof name === 'string' ? faults[name] : name)(stand, random)
    const mendedAt = Date.now()
    const recoveredAfter = await eventually(() => workload.lastSuccess() > mendedAt, 30_000)
    slowestRecoveryMs = Math.max(slowestRecoveryMs, recoveredAfter)
  }
  await sleep(gapMs)
  await eventually(() => workload.acknowledged() >= fewestAcknowledged, 60_000)
  await workload.settle()
  const problems = [...workload.faults]
  if (slowestRecoveryMs > recoveryMs) problems.push(`it took ${slowestRecoveryMs} ms until somebody was answered again`)
  for (const { child, output } of stand.servers) {
    if (child.exitCode !== null || child.signalCode !== null)
      problems.push(`a process has ended:\n${output().slice(-2000)}`)
  }
  problems.push(...(await judge({ postgres: stand.cluster.url('postgres') }, first, agencies, ledger.read())))
  return {
    problems,
    acknowledged: workload.acknowledged(),
    unknown: workload.unknown(),
    slowestRecoveryMs,
    slowestAnswerMs: workload.slowestAnswerMs()
  }
}
