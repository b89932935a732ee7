import { randomUUID } from 'node:crypto'
import type { FastifyRedis } from '@fastify/redis'
import fp from 'fastify-plugin'
import type { RedisOptions } from 'ioredis'
import { createCircuitBreaker } from '../../src/limits/circuit-breaker.ts'
import type { QuotaStore } from '../../src/limits/leased-quotas.ts'
import { createRedisQuotaStore } from '../../src/limits/redis-quota-store.ts'

declare module 'fastify' {
  interface FastifyInstance {
    /** What the processes share through Redis. All of it may be lost, and no decision relies on it alone. */
    shared: {
      /** The store of the shared rate limits. Undefined without REDIS_URL: then each process counts alone. */
      quotas: QuotaStore | undefined
      /**
       * Marks an id as used for some seconds. Resolves to false when any process has marked it before. Rejects while Redis
       * does not answer. Undefined without REDIS_URL.
       */
      markUsed: ((id: string, seconds: number) => Promise<boolean>) | undefined
      /** Calls the listeners of all other processes. Delivery is not guaranteed. Never throws. */
      announce(topic: string): void
      onAnnounced(topic: string, listener: () => void): void
      /** Calls the listener whenever Redis is reached again. What was stored before may be lost then. */
      onConnected(listener: () => void): void
      /** Rejects when Redis does not answer. Undefined without REDIS_URL. */
      check: (() => Promise<unknown>) | undefined
    }
  }
}

const prefix = 'aggios:'
export const commandTimeoutMs = 100
export const connectTimeoutMs = 1000
const maxReconnectMs = 2000
export const maxFailures = 3
export const cooldownMs = 1000

/**
 * Connects to Redis when REDIS_URL is set. The process starts and serves without Redis too: commands are never queued,
 * fail after a tenth of a second, and after three failures in a row are not sent for a second.
 */
export default fp(
  async (app) => {
    const { redisUrl, nodeEnv, webConcurrency } = app.config
    const listeners = new Map<string, (() => void)[]>()
    const onAnnounced = (topic: string, listener: () => void) => {
      listeners.set(topic, [...(listeners.get(topic) ?? []), listener])
    }
    const notify = (topic: string) => {
      for (const listener of listeners.get(topic) ?? []) listener()
    }
    if (redisUrl === undefined) {
      // with several workers, the primary logs this once
      if (nodeEnv === 'production' && webConcurrency === 1) {
        app.log.warn('there is no REDIS_URL: limits are counted by each process for itself')
      }
      const none = { quotas: undefined, markUsed: undefined, check: undefined }
      app.decorate('shared', { ...none, announce() {}, onAnnounced, onConnected() {} })
      return
    }

    // loaded only when there is a Redis, which makes a start without one faster
    const [{ Redis }, { default: fastifyRedis }] = await Promise.all([import('ioredis'), import('@fastify/redis')])
    const breaker = createCircuitBreaker({ failures: maxFailures, cooldownMs })
    const attempt = <T>(work: () => Promise<T>) => breaker.run(() => within(commandTimeoutMs, work()))
    const options = {
      lazyConnect: true,
      enableOfflineQueue: false,
      autoResendUnfulfilledCommands: false,
      maxRetriesPerRequest: 1,
      connectTimeout: connectTimeoutMs,
      retryStrategy: (times) => Math.min(maxReconnectMs, 50 * 2 ** times) * (0.5 + Math.random() / 2),
      // the server was a primary and is a replica now: connect again, because the name may lead to the new primary
      reconnectOnError: (err) => err.message.startsWith('READONLY'),
      // both send commands that the user of REDIS_URL needs no permission for otherwise
      enableReadyCheck: false,
      disableClientInfo: true
    } satisfies RedisOptions
    const client = new Redis(redisUrl, options)
    /** The content of each announcement is who has made it. */
    const self = randomUUID()
    const subscriber = client.duplicate({ autoResubscribe: false })
    let lost = false
    client.on('error', (err) => {
      if (!lost) app.log.warn({ err }, 'Redis is away: limits are counted by each process for itself')
      lost = true
    })
    client.on('ready', () => {
      if (lost) app.log.info('Redis is back')
      lost = false
    })
    // the client's listener has logged the failure of this server
    subscriber.on('error', () => {})
    subscriber.on('ready', () => {
      subscriber
        .subscribe(...[...listeners.keys()].map((topic) => prefix + topic))
        .catch(() => subscriber.disconnect(true))
    })
    subscriber.on('message', (channel, from) => {
      if (from !== self) notify(channel.slice(prefix.length))
    })

    app.secrets.follow(['redisUrl'], async ({ redisUrl: url = '' }) => {
      if (placeOf(url) !== placeOf(app.config.redisUrl ?? '')) {
        throw new Error('REDIS_URL: only its user and its password can change while the process runs')
      }
      const trial = new Redis(url, { ...options, retryStrategy: () => null })
      trial.on('error', () => {})
      try {
        await within(connectTimeoutMs, trial.connect())
        await within(connectTimeoutMs, trial.ping())
      } finally {
        trial.disconnect()
      }
      const { username, password } = trial.options
      return () => {
        for (const each of [client, subscriber]) Object.assign(each.options, { username, password })
        // the open connection changes its user and stays, so that no command fails; one that is made later uses the options
        if (client.status === 'ready') client.auth(username ?? 'default', password ?? '').catch(() => {})
        // a connection that listens takes no other command; what is announced meanwhile is found by polling
        if (subscriber.status === 'ready') subscriber.disconnect(true)
      }
    })

    let closed = false
    app.addHook('onClose', async () => {
      closed = true
      client.disconnect()
      subscriber.disconnect()
    })
    // connect before the first request, because requests that are counted earlier are not in the shared count
    await within(connectTimeoutMs, client.connect()).catch(() => {})
    if (client.status === 'ready') await app.register(fastifyRedis, { client })
    // the plugin would wait for Redis until the start times out, or fail the start. The client goes on connecting by
    // itself
    else app.decorate('redis', client as FastifyRedis)

    const { redis } = app
    app.decorate('shared', {
      quotas: createRedisQuotaStore(redis, { prefix: `${prefix}quota:`, attempt }),
      async markUsed(id: string, seconds: number) {
        return (await attempt(() => redis.set(`${prefix}used:${id}`, '', 'EX', seconds, 'NX'))) === 'OK'
      },
      announce(topic: string) {
        attempt(() => redis.publish(prefix + topic, self)).catch(() => {})
      },
      onAnnounced,
      onConnected: (listener: () => void) => void client.on('ready', listener),
      check: () => attempt(() => redis.ping())
    })

    app.addHook('onReady', async () => {
      if (!closed) await within(connectTimeoutMs, subscriber.connect()).catch(() => {})
    })
  },
  { name: 'redis', dependencies: ['config'] }
)

/** The server and the database of a URL, without the credentials. */
function placeOf(url: string): string {
  const place = new URL(url)
  place.username = ''
  place.password = ''
  return place.href
}

/**
 * Rejects when the work takes longer. The rejection comes after the event loop has read the bytes that have arrived by
 * then, because a busy event loop runs timers first.
 */
async function within<T>(ms: number, work: Promise<T>): Promise<T> {
  let timer: NodeJS.Timeout | undefined
  const late = new Promise<never>((_, reject) => {
    timer = setTimeout(() => setImmediate(() => reject(new Error('Redis did not answer in time'))), ms)
  })
  try {
    return await Promise.race([work, late])
  } finally {
    clearTimeout(timer)
  }
}
