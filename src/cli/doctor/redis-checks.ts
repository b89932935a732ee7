import type { Redis } from 'ioredis'
import { CannotLook, type Check, type Examination, medianMs, reasonOf } from './examination.ts'
import { findHoles } from './known-holes.ts'

/*
 * Redis, with the commands that the product's own user may run.
 */

export const redisChecks: readonly Check[] = [{ name: 'Redis', run: checkRedis }]

const connectMs = 2000

async function checkRedis(exam: Examination): Promise<void> {
  const { redisUrl } = exam.config
  if (redisUrl === undefined) return
  const client = await open(redisUrl)
  try {
    await client.connect()
    await client.ping()
  } catch (err) {
    client.disconnect()
    return exam.found('redis_unreachable', reasonOf(err))
  }
  try {
    const latency = await medianMs(() => client.ping())
    exam.learned('redis', { latency_ms: latency })
    if (latency > exam.limits.slowRedisMs) exam.found('redis_slow', `a command takes ${latency} ms`)
    await checkServer(exam, client)
    await checkStrangers(exam, redisUrl)
  } finally {
    client.disconnect()
  }
}

async function open(url: string): Promise<Redis> {
  const { Redis } = await import('ioredis')
  const client = new Redis(url, {
    lazyConnect: true,
    enableReadyCheck: false,
    disableClientInfo: true,
    connectTimeout: connectMs,
    commandTimeout: connectMs,
    maxRetriesPerRequest: 0,
    retryStrategy: () => null
  })
  client.on('error', () => {})
  return client
}

/** HELLO says version and role to every user, whatever the user may do. */
async function checkServer(exam: Examination, client: Redis): Promise<void> {
  const reply = (await client.call('HELLO').catch(() => undefined)) as unknown[] | undefined
  if (!Array.isArray(reply)) throw new CannotLook('this server does not say what it is')
  const facts = Object.fromEntries(
    Array.from({ length: reply.length / 2 }, (_, i) => [String(reply[2 * i]), String(reply[2 * i + 1])])
  )
  const { version = '', mode, role } = facts
  exam.learned('redis', { version })
  if (mode === 'cluster') exam.found('redis_unusable', 'it is a node of a Redis Cluster')
  else if (role === 'replica' || role === 'slave')
    exam.found('redis_unusable', 'it is a replica, which accepts no changes')
  // a server that is compatible with Redis has version numbers of its own
  if (facts.server !== 'redis')
    return exam.skipped('version of Redis', `nothing is known about ${facts.server} ${version}`)
  const { open: holes, unknown } = findHoles(exam.holes, 'Redis', version)
  if (holes) exam.found('redis_outdated', holes)
  if (unknown) exam.skipped('version of Redis', unknown)
}

async function checkStrangers(exam: Examination, redisUrl: string): Promise<void> {
  const url = new URL(redisUrl)
  if (url.password === '') return exam.found('redis_open', 'REDIS_URL has no password')
  Object.assign(url, { username: '', password: '' })
  const stranger = await open(url.href)
  try {
    await stranger.connect()
    await stranger.ping()
    exam.found('redis_open', 'a command without a password was answered')
  } catch {
    // refused, as it should be
  } finally {
    stranger.disconnect()
  }
}
