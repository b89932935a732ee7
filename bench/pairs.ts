import { undisturbed } from './disturbance.ts'
import type { HttpRequest, LoadGenerator } from './load.ts'
import { usageOf } from './processes.ts'
import type { Server } from './servers.ts'
import { median, type Spread, spreadOf } from './statistics.ts'

/** A server with its load, and a check that its replies are right. */
export type Contender = {
  label: string
  server: Server
  requests: HttpRequest[]
  check(): Promise<void>
  /** True when refusals are what is measured. */
  refuses?: boolean
}

/** One measurement: rate per second, latencies in milliseconds, CPU time in microseconds per request. */
export type Sample = {
  perSecond: number
  p50: number
  p99: number
  cpuUs: number
  databaseCpuUs: number
  memoryMb: number
}

/** The comparison of two contenders. */
export type Pair = {
  label: string
  against: string
  /** The rate of the first contender divided by that of the second. */
  ratio: Spread
  /**
   * The ratio of CPU time per request, of server and PostgreSQL together. On a busy machine it is more reliable than
   * the rate.
   */
  cpuRatio: Spread
  first: Sample
  second: Sample
}

export type Conditions = {
  load: LoadGenerator
  databasePid: number
  pairs: number
  seconds: number
  /** Attempts per measurement, when a hypervisor disturbs it. */
  tries: number
  connections: number
}

/** Measures two things. The order alternates by turn, so that other load on the machine affects both. */
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

/** Measures two servers in turns. Each pair of measurements gives a ratio, and the median of the ratios counts. */
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

/**
 * Warm-up requests for the JIT compiler: a peer starts just before its comparison, while the product serves several
 * comparisons.
 */
const leastWarmUp = 5_000

/** Sends the load until every request was answered once, so that no measured request is the first of its kind. */
export async function warmUp({ load, connections, seconds }: Conditions, contender: Contender): Promise<void> {
  const { label, server, requests } = contender
  // the last request of each connection may stay unanswered
  const wanted = requests.length + connections
  let total = 0
  for (let length = Math.min(2, seconds); ; ) {
    const { replies } = await load.drive({ port: server.port, requests, connections, seconds: length })
    total += replies
    if (replies >= wanted && total >= leastWarmUp) return
    if (replies === 0) throw new Error(`${label} did not answer`)
    // each round begins with the first request, so it must last long enough for all of them, with a reserve of 20 %
    if (replies < wanted) length = Math.min(Math.ceil((1.2 * length * wanted) / replies), 4 * length)
  }
}

/**
 * Measures one load, with the CPU time of the server and of PostgreSQL. Throws when a request was refused unexpectedly.
 */
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

/** The median of each value. */
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
