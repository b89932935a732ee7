import { undisturbed } from './disturbance.ts'
import type { HttpRequest, LoadGenerator } from './load.ts'
import { usageOf } from './processes.ts'
import type { Server } from './servers.ts'
import { median, type Spread, spreadOf } from './statistics.ts'

/** A server with what it is asked, and a check that its replies are right. */
export type Contender = {
  label: string
  server: Server
  requests: HttpRequest[]
  check(): Promise<void>
  /** That it refuses is what is measured. */
  refuses?: boolean
}

/** Rates by second, latencies in milliseconds, CPU in microseconds a request. */
export type Sample = {
  perSecond: number
  p50: number
  p99: number
  cpuUs: number
  databaseCpuUs: number
  memoryMb: number
}

export type Pair = {
  label: string
  against: string
  /** The rate of the first by that of the second. */
  ratio: Spread
  /** CPU a request, server and PostgreSQL together: on a busy machine it says more than the rate. */
  cpuRatio: Spread
  first: Sample
  second: Sample
}

export type Conditions = {
  load: LoadGenerator
  databasePid: number
  pairs: number
  seconds: number
  /** Of each measurement, where a hypervisor disturbs it. */
  tries: number
  connections: number
}

/** Measures two things, in the other order than the turn before, so that what else the machine does falls on both. */
export function measureBoth<T>(
  turn: number,
  tries: number,
  first: () => Promise<T>,
  second: () => Promise<T>
): Promise<[T, T]> {
  return undisturbed(async () => {
    if (turn % 2 === 0) return [await first(), await second()]
    const late = await second()
    return [await first(), late]
  }, tries)
}

/** Drives two servers in turns. A ratio is within its pair; of all of them the median counts. */
export async function comparePair(conditions: Conditions, first: Contender, second: Contender): Promise<Pair> {
  const samples: [Sample, Sample][] = []
  await Promise.all([first.check(), second.check()])
  for (const contender of [first, second]) await warmUp(conditions, contender)
  for (let turn = 0; turn < conditions.pairs; turn++) {
    const drive = (contender: Contender) => () => measure(conditions, contender)
    samples.push(await measureBoth(turn, conditions.tries, drive(first), drive(second)))
  }
  await Promise.all([first.check(), second.check()])
  return {
    label: first.label,
    against: second.label,
    ratio: spreadOf(samples.map(([a, b]) => a.perSecond / b.perSecond)),
    cpuRatio: spreadOf(samples.map(([a, b]) => allCpu(a) / allCpu(b))),
    first: middle(samples.map(([a]) => a)),
    second: middle(samples.map(([, b]) => b))
  }
}

const allCpu = ({ cpuUs, databaseCpuUs }: Sample) => cpuUs + databaseCpuUs

/** What a compiler at run time wants to have seen: a peer has just been started, and the product serves one after the other. */
const leastWarmUp = 5_000

/** Drives until every request has been answered, so that nothing is measured that meets a server for the first time. */
export async function warmUp({ load, connections, seconds }: Conditions, contender: Contender): Promise<void> {
  const { label, server, requests } = contender
  // each connection may have one under way that is not answered any more
  const wanted = requests.length + connections
  let total = 0
  for (let length = Math.min(2, seconds); ; ) {
    const { replies } = await load.drive({ port: server.port, requests, connections, seconds: length })
    total += replies
    if (replies >= wanted && total >= leastWarmUp) return
    if (replies === 0) throw new Error(`${label} did not answer`)
    // each drive starts at the first request again; somewhat longer than it would have taken, if the machine was not just busy
    if (replies < wanted) length = Math.min(Math.ceil((1.2 * length * wanted) / replies), 4 * length)
  }
}

/** One drive, with what it cost the server and PostgreSQL. Fails when a request was refused that should not be. */
export async function measure(
  { load, databasePid, connections, seconds }: Conditions,
  { label, server, requests, refuses = false }: Contender
): Promise<Sample> {
  const before = [usageOf(server.pid), usageOf(databasePid)] as const
  const driven = await load.drive({ port: server.port, requests, connections, seconds })
  const after = [usageOf(server.pid), usageOf(databasePid)] as const
  if (driven.refused > 0 && !refuses)
    throw new Error(`${label} refused ${driven.refused} of ${driven.replies} requests`)
  return {
    perSecond: driven.perSecond,
    p50: driven.p50,
    p99: driven.p99,
    cpuUs: (after[0].cpu_us - before[0].cpu_us) / driven.replies,
    databaseCpuUs: (after[1].cpu_us - before[1].cpu_us) / driven.replies,
    memoryMb: after[0].memory_bytes / 1024 ** 2
  }
}

export function middle(samples: readonly Sample[]): Sample {
  const of = (key: keyof Sample) => median(samples.map((sample) => sample[key]))
  return {
    perSecond: of('perSecond'),
    p50: of('p50'),
    p99: of('p99'),
    cpuUs: of('cpuUs'),
    databaseCpuUs: of('databaseCpuUs'),
    memoryMb: of('memoryMb')
  }
}
