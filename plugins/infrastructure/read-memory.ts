import type { FastifyRequest } from 'fastify'
import fp from 'fastify-plugin'
import type { Scope } from '../../db/gate/gate-query.ts'
import { createReadMemory, type ReadChange, type ReadMemory } from '../../db/gate/memory.ts'
import type { RememberedStatement } from '../../db/gate/statement.ts'
import { remembersReads } from '../../src/config/config.ts'
import { createHistogram } from '../../src/metrics.ts'

declare module 'fastify' {
  interface FastifyInstance {
    readMemory: Pick<ReadMemory, 'feedRead' | 'forget' | 'forgetAll' | 'stats'> & {
      /** Forgets what a transaction of this process has changed, and calls the listeners. */
      wrote(change: ReadChange): void
      /** Calls the listener after a change by this process. */
      onWrite(listener: () => void): void
      /**
       * Answers a remembered statement from memory, and else by `ask`. Memory is for requests that only read, and that do not
       * ask for the newest by Cache-Control.
       */
      read<Values extends object, Row>(
        request: FastifyRequest,
        asked: { statement: RememberedStatement<Values, Row>; scope: Scope; values: Values },
        ask: () => Promise<Row[]>
      ): Row[] | Promise<Row[]>
    }
  }
}

const ageBounds = [0.01, 0.05, 0.1, 0.25, 0.5, 0.75, 1]
const wantsNewest = /no-cache|no-store|max-age/i

/**
 * The memory of reads: the rows of remembered statements. The change feed (plugins/auth/revocations.ts) keeps it true.
 *
 * By default it is on for a process alone, and for several that hear of each other's changes by Redis.
 */
export default fp(
  async (app) => {
    const isOn = remembersReads(app.config)
    const ages = createHistogram(ageBounds)
    const age = ages.series({})
    const memory = createReadMemory({ onHit: (ms) => ages.observe(age, ms / 1000) })
    const { feedRead, forget, forgetAll, stats } = memory

    function mayAnswer({ method, headers }: FastifyRequest): boolean {
      if (method !== 'GET' && method !== 'HEAD') return false
      const directives = headers['cache-control']
      return directives === undefined || !wantsNewest.test(directives)
    }

    const listeners: (() => void)[] = []

    app.decorate('readMemory', {
      feedRead,
      forget,
      forgetAll,
      stats,
      wrote(change) {
        forget(change)
        for (const listener of listeners) listener()
      },
      onWrite: (listener) => void listeners.push(listener),
      read(request, asked, ask) {
        if (!isOn) return ask()
        const rows = mayAnswer(request) ? memory.find(asked, request.headers['if-none-match']) : undefined
        return rows ?? memory.fill(asked, ask)
      }
    })

    app.metrics.counter('aggios_remembered_reads_total', 'Remembered reads, by who answered', () => [
      { labels: { by: 'memory' }, value: stats().hits },
      { labels: { by: 'database' }, value: stats().questions }
    ])
    app.metrics.gauge('aggios_remembered_entries', 'Answers that are remembered', () => stats().entries)
    app.metrics.gauge('aggios_remembered_bytes', 'About how much memory they take', () => stats().bytes)
    app.metrics.histogram(
      'aggios_remembered_age_seconds',
      'Seconds since the change feed was read, when memory answered: the answer is at most so old',
      ages.samples
    )
  },
  { name: 'read-memory', dependencies: ['config', 'metrics'] }
)
