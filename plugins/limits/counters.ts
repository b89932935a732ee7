import rateLimit, { type CreateRateLimitOptions, type FastifyRateLimitStore } from '@fastify/rate-limit'
import fp from 'fastify-plugin'
import type { Rate } from '../../src/config/value-readers.ts'
import { after } from '../../src/limits/after.ts'
import { createQuotas, type Quotas } from '../../src/limits/leased-quotas.ts'
import type { Counted } from '../../src/limits/rate-headers.ts'

/**
 * Counts one request of a key. Undefined when the rate switches the limit off. A promise only when the store is asked.
 */
export type CountRequest = (key: string, rate: Rate) => Counted | undefined | Promise<Counted>

/** Counts one attempt of a key. Resolves to undefined when the rate switches the limit off. */
export type CountAttempt = (key: string, rate: Rate) => Promise<Counted | undefined>

declare module 'fastify' {
  interface FastifyInstance {
    /**
     * Creates the counter of one limit that every request passes. It remembers at most `max` keys. The name appears in
     * headers and metrics.
     */
    createCounter(name: string, max: number): CountRequest
    /** Creates a counter for rare requests, such as sign-ins, by the limiter of @fastify/rate-limit. */
    createAttemptCounter(name: string, max: number): CountAttempt
  }
}

/**
 * Counters of requests and attempts, with their metrics. All processes count together through Redis. While Redis does
 * not answer, each process counts alone.
 *
 * Both kinds count in the same quotas (src/limits/leased-quotas.ts). @fastify/rate-limit returns a promise for each count,
 * which the limits of every request avoid.
 */
export default fp(
  async (app) => {
    const counters: { limit: string; known(): number; refused: number }[] = []

    function createLimit(name: string, max: number) {
      // made at the first use, because it reserves its memory at once: 15 ms of CPU for the largest
      let made: Quotas | undefined
      const quotas = () => {
        made ??= createQuotas({ name: `${name} `, store: app.shared.quotas, max })
        return made
      }
      const stats = { limit: name, known: () => made?.size() ?? 0, refused: 0 }
      counters.push(stats)
      return { quotas, stats }
    }

    app.decorate('createCounter', (name: string, max: number): CountRequest => {
      const { quotas, stats } = createLimit(name, max)
      return (key, rate) => {
        if (rate.max === 0) return undefined
        return after(quotas().count(key, rate), (verdict) => {
          if (!verdict.allowed) stats.refused++
          return { name, rate, verdict }
        })
      }
    })

    await app.register(rateLimit, { global: false, store: AttemptStore })

    app.decorate('createAttemptCounter', (name: string, max: number): CountAttempt => {
      const { quotas, stats } = createLimit(name, max)
      // what is counted is an attempt, in the place of the request that the package's types name
      const options = {
        quotas,
        keyGenerator: ({ key }: Attempt) => key,
        max: ({ rate }: Attempt) => rate.max,
        timeWindow: ({ rate }: Attempt) => rate.window_ms
      }
      const count = app.createRateLimit(options as unknown as CreateRateLimitOptions)
      return async (key, rate) => {
        if (rate.max === 0) return undefined
        const attempt: Attempt = { key, rate, routeOptions: {} }
        const counted = await count(attempt as never)
        if (counted.isAllowed) throw new Error('there is no list of exempt keys')
        if (counted.isExceeded) stats.refused++
        const verdict = { allowed: !counted.isExceeded, remaining: counted.remaining, ends_in_ms: counted.ttl }
        return { name, rate, verdict }
      }
    })

    app.metrics.gauge('aggios_limit_keys', 'Who is counted here, by limit', () =>
      counters.map(({ limit, known }) => ({ labels: { limit }, value: known() }))
    )
    app.metrics.counter('aggios_limit_refused_total', 'Requests and attempts over a limit', () =>
      counters.map(({ limit, refused }) => ({ labels: { limit }, value: refused }))
    )
  },
  { name: 'counters', dependencies: ['metrics', 'redis'] }
)

type Attempt = { key: string; rate: Rate; routeOptions: object }

/**
 * The quotas of a counter as a store of @fastify/rate-limit, which counts up where quotas count down. The package makes one store
 * without quotas for its global limit, which is off.
 */
class AttemptStore implements FastifyRateLimitStore {
  readonly #quotas: (() => Quotas) | undefined

  constructor(options: object) {
    this.#quotas = (options as { quotas?: () => Quotas }).quotas
  }

  incr(key: string, callback: Parameters<FastifyRateLimitStore['incr']>[1], window_ms: number, max: number): void {
    Promise.resolve((this.#quotas as () => Quotas)().count(key, { max, window_ms })).then(
      ({ allowed, remaining, ends_in_ms }) =>
        callback(null, { current: allowed ? max - remaining : max + 1, ttl: ends_in_ms }),
      callback
    )
  }

  child(options: object): AttemptStore {
    return new AttemptStore(options)
  }
}
