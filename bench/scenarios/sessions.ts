import { createHmac } from 'node:crypto'
import type { Bench, Scenario } from '../bench.ts'
import { type NextRequest, postJson, requireOk, runCallers } from '../callers.ts'
import { pick, readMe, spread } from '../contenders.ts'
import { type Dataset, query, type SeededUser } from '../database.ts'
import { undisturbed } from '../disturbance.ts'
import { measureBoth } from '../pairs.ts'
import { usageOf } from '../processes.ts'
import { type Server, startPeer, startProduct } from '../servers.ts'
import { median, type Spread, spreadOf } from '../statistics.ts'

const signInCallers = 50
const refreshCallers = 64

/**
 * Callers that sign in without a pause. Many sign-ins end a person's oldest session, so these people are none of those
 * whose tokens other loads use: `pick` takes the first one of each group of people.
 */
export function signIns(dataset: Dataset): NextRequest[] {
  const others = dataset.users.filter((_, index) => index % Math.floor(dataset.users.length / spread) === 1)
  return pick(others, signInCallers).map(({ host, email }) => (last) => {
    if (last) requireOk(last)
    return postJson('/api/v1/auth/login', host, { email, password: dataset.password })
  })
}

/** Callers that refresh with the refresh token of their last reply. */
function refreshes(users: SeededUser[], path: string, first: (user: SeededUser) => string): NextRequest[] {
  return users.map((user) => (last) => {
    if (last) requireOk(last)
    const refresh_token = last ? (JSON.parse(last.body).refresh_token as string) : first(user)
    return postJson(path, user.host, { refresh_token })
  })
}

export const signIn: Scenario = {
  name: 'sign-in',
  about: 'sign-ins as fast as 50 callers get answers',
  inQuick: false,
  async run(bench) {
    const dataset = await bench.thousand()
    const product = await startProduct(bench.database, dataset)
    const before = usageOf(product.pid).cpu_us
    const called = await runCallers(product, signIns(dataset), bench.conditions().seconds * 2)
    const cpuMs = (usageOf(product.pid).cpu_us - before) / called.replies / 1000
    bench.figure({ name: 'sign-in/rate', value: called.perSecond, unit: '/s' })
    bench.figure({
      name: 'sign-in/cpu',
      value: cpuMs,
      unit: 'ms',
      detail: 'CPU of the server, nearly all of it the hash'
    })
    bench.figure({ name: 'sign-in/p50', value: called.p50, unit: 'ms' })
    await product.stop()
  }
}

/** Makes callers that refresh at the product, each with a session that was not used before. */
function freshCallers(dataset: Dataset, turns: number): () => NextRequest[] {
  const people = pick(dataset.users, refreshCallers * turns)
  return () => {
    const taken = people.splice(0, refreshCallers)
    if (taken.length < refreshCallers) throw new Error('the set of data has no more sessions')
    return refreshes(taken, '/api/v1/auth/refresh', ({ refresh_token }) => refresh_token)
  }
}

/** Compares the refreshes a second of two products, by the ratios of pairs. */
export async function compareRefreshes(bench: Bench, dataset: Dataset, first: Server, second: Server): Promise<Spread> {
  const { pairs, seconds, tries } = bench.conditions()
  const callers = freshCallers(dataset, 2 * (pairs * tries + 1))
  await resetCounters(dataset)
  const rotate = (server: Server) => () => rotated(dataset, () => runCallers(server, callers(), seconds))
  for (const server of [first, second]) await rotate(server)()
  const ratios: number[] = []
  for (let turn = 0; turn < pairs; turn++) {
    const [ours, theirs] = await measureBoth(turn, tries, rotate(first), rotate(second))
    ratios.push(ours / theirs)
  }
  return spreadOf(ratios)
}

export const refresh: Scenario = {
  name: 'refresh',
  about: 'refresh rotations against a transaction as people write it, same row security and fsync',
  inQuick: true,
  async run(bench) {
    const dataset = await bench.thousand()
    const { JWT_SECRET } = bench.database.secrets
    const [product, peer] = await Promise.all([
      startProduct(bench.database, dataset),
      startPeer('plugins', bench.database, dataset)
    ])
    // product and peer use different sessions
    const { pairs, seconds, tries } = bench.conditions()
    const people = pick(dataset.users, refreshCallers * pairs * tries * 2)
    const take = () => people.splice(0, refreshCallers)
    const rotateHere = (users: SeededUser[]) =>
      refreshes(users, '/api/v1/auth/refresh', ({ refresh_token }) => refresh_token)
    const rotateThere = (users: SeededUser[]) =>
      refreshes(users, '/refresh', ({ tenant_id, user_id, access_token }) => {
        const { sid } = JSON.parse(Buffer.from(access_token.split('.')[1] as string, 'base64url').toString())
        return sign({ tenant_id, user_id, sid, counter: 0 }, JWT_SECRET)
      })
    const rates: { ours: number; theirs: number }[] = []
    const run = (server: Server, callers: NextRequest[]) => runCallers(server, callers, seconds)
    await resetCounters(dataset)
    for (let turn = 0; turn < pairs; turn++) {
      const here = () => rotated(dataset, () => run(product, rotateHere(take())))
      const there = () => rotated(dataset, () => run(peer, rotateThere(take())))
      const [ours, theirs] = await measureBoth(turn, tries, here, there)
      rates.push({ ours, theirs })
    }
    const ratio = spreadOf(rates.map(({ ours, theirs }) => ours / theirs))
    bench.figure({
      name: 'refresh',
      value: ratio.median,
      unit: 'ratio',
      detail: `${ratio.low.toFixed(2)} to ${ratio.high.toFixed(2)}`
    })
    bench.figure({ name: 'refresh/rate', value: median(rates.map(({ ours }) => ours)), unit: '/s' })
    bench.figure({ name: 'refresh/naive', value: median(rates.map(({ theirs }) => theirs)), unit: '/s' })
    await Promise.all([product.stop(), peer.stop()])
  }
}

/** Resets all sessions to their seeded state. */
function resetCounters({ urls }: Dataset): Promise<unknown> {
  return query(
    urls.postgres,
    'update sessions set counter = 0, rotated_at = now(), revoked_at = null where counter > 0 or revoked_at is not null'
  )
}

/** Measures rotations per second. Throws when the replies and the counters in the rows disagree. */
async function rotated(
  { urls }: Dataset,
  work: () => Promise<{ replies: number; perSecond: number }>
): Promise<number> {
  const count = async () =>
    Number((await query<{ sum: string }>(urls.postgres, 'select sum(counter) from sessions'))[0]?.sum)
  const before = await count()
  const { replies, perSecond } = await work()
  const rows = (await count()) - before
  if (rows !== replies) throw new Error(`${replies} replies, but ${rows} rotations`)
  return perSecond
}

function sign(claims: object, secret: string): string {
  const encode = (part: object) => Buffer.from(JSON.stringify(part)).toString('base64url')
  const input = `${encode({ alg: 'HS256', typ: 'JWT' })}.${encode({ ...claims, iat: Math.floor(Date.now() / 1000) })}`
  return `${input}.${createHmac('sha256', secret).update(input).digest('base64url')}`
}

const readers = 8
const readPauseMs = 10

export type Latency = { p50: number; p99: number }

/**
 * Measures the latency of reads at a moderate rate. Readers without a pause would use both cores, and the result would
 * show how the scheduler shares the machine.
 */
export function readLatency(server: Server, dataset: Dataset, seconds: number): Promise<Latency> {
  const callers = pick(dataset.users, readers).map((user): NextRequest => {
    const request = readMe(user)
    return (last) => {
      if (last) requireOk(last)
      return request
    }
  })
  return runCallers(server, callers, seconds, readPauseMs)
}

/**
 * Measures the latency of reads during `work`, divided by the latency without it. Returns the medians of several pairs.
 */
export async function latencyUnder(
  bench: Bench,
  server: Server,
  dataset: Dataset,
  work: (read: () => Promise<Latency>) => Promise<Latency>
): Promise<Latency> {
  const { pairs, seconds, tries } = bench.conditions()
  const ratios: Latency[] = []
  // warms up the server
  await readLatency(server, dataset, seconds)
  for (let turn = 0; turn < pairs; turn++) {
    const compare = async (): Promise<Latency> => {
      const idle = await readLatency(server, dataset, seconds)
      const busy = await work(() => readLatency(server, dataset, seconds))
      return { p50: busy.p50 / idle.p50, p99: busy.p99 / idle.p99 }
    }
    ratios.push(await undisturbed(compare, tries))
  }
  return { p50: median(ratios.map(({ p50 }) => p50)), p99: median(ratios.map(({ p99 }) => p99)) }
}

/** Measures reads while 50 callers sign in without a pause. */
export async function whileSigningIn(
  bench: Bench,
  server: Server,
  dataset: Dataset,
  read: () => Promise<Latency>
): Promise<Latency> {
  const signing = runCallers(server, signIns(dataset), bench.conditions().seconds)
  const [latency] = await Promise.all([read(), signing])
  return latency
}

export const pressure: Scenario = {
  name: 'pressure',
  about: 'GET /users/me while 50 callers sign in, by the same without them',
  inQuick: true,
  async run(bench) {
    const dataset = await bench.thousand()
    const product = await startProduct(bench.database, dataset)
    const found = await latencyUnder(bench, product, dataset, (read) => whileSigningIn(bench, product, dataset, read))
    bench.figure({ name: 'pressure/p50', value: found.p50, unit: 'ratio' })
    bench.figure({ name: 'pressure/p99', value: found.p99, unit: 'ratio' })
    await product.stop()
  }
}
