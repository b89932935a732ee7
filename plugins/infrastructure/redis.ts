import fastifyRedis from '@fastify/redis'
import fp from 'fastify-plugin'
import { Redis } from 'ioredis'
import { createCircuitBreaker } from '../../src/limits/circuit-breaker.ts'
import type { QuotaStore } from '../../src/limits/quotas.ts'
import { createSharedQuotas } from '../../src/limits/shared-quotas.ts'

declare module 'fastify' {
  interface FastifyInstance {
    /** What the processes have in common through Redis. Nothing of it is believed as a fact, and all of it may be lost. */
    shared: {
      /** Where requests are counted together; undefined without REDIS_URL, and each process counts for itself. */
      quotas: QuotaStore | undefined
      /** Calls the listeners of every process, this one too. Never rejects, and promises nothing. */
      announce(topic: string): void
      onAnnounced(topic: string, listener: () => void): void
      /** Rejects when Redis does not answer; undefined where there is none. */
      check: (() => Promise<unknown>) | undefined
    }
  }
}

const prefix = 'aggios:'
export const commandTimeoutMs = 100
export const connectTimeoutMs = 1000
const maxReconnectMs = 2000
export const maxFailures = 3
export const restMs = 1000

/**
 * Connects to Redis where REDIS_URL names one. The process starts and serves without it: commands are never queued, wait for
 * a tenth of a second at most, and are not tried for a moment after some have failed.
 */
export default fp(
  async (app) => {
    const { redisUrl, nodeEnv, webConcurrency } = app.config
    const listeners = new Map<string, (() => void)[]>()
    const onAnnounced = (topic: string, listener: () => void) => {
      listeners.set(topic, [...(listeners.get(topic) ?? []), listener])
    }
    const tell = (topic: string) => {
      for (const listener of listeners.get(topic) ?? []) listener()
    }
    if (redisUrl === undefined) {
      // of several workers the primary says it
      if (nodeEnv === 'production' && webConcurrency === 1) {
        app.log.warn('there is no REDIS_URL: limits are counted by each process for itself')
      }
      app.decorate('shared', { quotas: undefined, announce() {}, onAnnounced, check: undefined })
      return
    }

    const breaker = createCircuitBreaker({ failures: maxFailures, cooldownMs: restMs })
    const attempt = <T>(work: () => Promise<T>) => breaker.run(() => within(commandTimeoutMs, work()))
    const client = new Redis(redisUrl, {
      lazyConnect: true,
      enableOfflineQueue: false,
      autoResendUnfulfilledCommands: false,
      maxRetriesPerRequest: 1,
      connectTimeout: connectTimeoutMs,
      retryStrategy: (times) => Math.min(maxReconnectMs, 50 * 2 ** times) * (0.5 + Math.random() / 2),
      // a former primary: the name may lead to the new one
      reconnectOnError: (err) => err.message.startsWith('READONLY'),
      // both would need commands that the product has no use for
      enableReadyCheck: false,
      disableClientInfo: true
    })
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
    // the same server, which was complained about already
    subscriber.on('error', () => {})
    subscriber.on('ready', () => {
      subscriber
        .subscribe(...[...listeners.keys()].map((topic) => prefix + topic))
        .catch(() => subscriber.disconnect(true))
    })
    subscriber.on('message', (channel) => tell(channel.slice(prefix.length)))

    // @fastify/redis waits for a connection, and a boot must not
    client.status = 'ready'
    await app.register(fastifyRedis, { client })
    client.status = 'wait'

    app.decorate('shared', {
      quotas: createSharedQuotas(client, { prefix: `${prefix}quota:`, attempt }),
      announce(topic: string) {
        attempt(() => client.publish(prefix + topic, '')).catch(() => {})
      },
      onAnnounced,
      check: () => attempt(() => client.ping())
    })

    let closed = false
    app.addHook('onReady', async () => {
      if (closed) return
      // with a first answer where there is one: what is counted before is not counted together
      await within(connectTimeoutMs, Promise.allSettled([client.connect(), subscriber.connect()])).catch(() => {})
    })
    app.addHook('onClose', async () => {
      closed = true
      client.disconnect()
      subscriber.disconnect()
    })
  },
  { name: 'redis', dependencies: ['config'] }
)

/** Rejects after a time, but not before what has arrived by then was read: a busy event loop fires timers first. */
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
