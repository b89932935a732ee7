import fp from 'fastify-plugin'
import type { Rate } from '../../src/config/value-readers.ts'
import { after } from '../../src/limits/after.ts'
import { createQuotas, type Quotas } from '../../src/limits/quotas.ts'
import type { Counted } from '../../src/limits/rate-headers.ts'

/** Counts one request of a key. Undefined where the rate switches the limit off; a promise only where the store is asked. */
export type CountRequest = (key: string, rate: Rate) => Counted | undefined | Promise<Counted>

declare module 'fastify' {
  interface FastifyInstance {
    /** A counter of its own for one limit, which remembers at most `max` keys. The name stands in headers and metrics. */
    createCounter(name: string, max: number): CountRequest
  }
}

/** Counters of requests, with their metrics. All processes count together through Redis, and each for itself while there is none. */
export default fp(
  async (app) => {
    const counters: { limit: string; known(): number; refused: number }[] = []
    app.decorate('createCounter', (name: string, max: number): CountRequest => {
      // made at the first use: its memory is reserved at once, which takes a start 15 ms for the largest ones
      let quotas: Quotas | undefined
      const stats = { limit: name, known: () => quotas?.size() ?? 0, refused: 0 }
      counters.push(stats)
      return (key, rate) => {
        if (rate.max === 0) return undefined
        quotas ??= createQuotas({ name: `${name} `, store: app.shared.quotas, max })
        return after(quotas.count(key, rate), (verdict) => {
          if (!verdict.allowed) stats.refused++
          return { name, rate, verdict }
        })
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
