import fp from 'fastify-plugin'
import { systemScope } from '../../db/gate/gate-query.ts'
import { ping } from '../../db/queries/directory.ts'

export type CheckStatus = 'ok' | 'down'
export type Check = { status: CheckStatus; latency_ms: number }
export type HealthReport = { database: Check; storage: Check; redis?: Check }

declare module 'fastify' {
  interface FastifyInstance {
    health: {
      /**
       * Whether what the process stands on answers, each asked at most once a second however many want to know. Without the
       * database nothing is served, without the others all but what they are for; `redis` is absent where there is none.
       */
      report(): Promise<HealthReport>
      /** Whether this process has begun to shut down. */
      draining: boolean
    }
  }
}

const freshForMs = 1000
const patienceMs = 2000

/** Knows whether the process can serve, and makes connections close after their reply once it is shutting down. */
export default fp(
  async (app) => {
    const database = asking(() => app.gate.query(systemScope, ping, {}))
    const storage = asking(() => app.objects.check())
    const redis = app.shared.check && asking(app.shared.check)

    const health = {
      draining: false,
      async report(): Promise<HealthReport> {
        const asked = await Promise.all([database(), storage(), redis?.()])
        return { database: asked[0], storage: asked[1], ...(asked[2] && { redis: asked[2] }) }
      }
    }
    app.decorate('health', health)
    // when it is sent and not when it was asked for: what is under way when the shutdown begins must close too
    app.addHook('onSend', (_request, reply, _payload, done) => {
      if (health.draining) reply.header('connection', 'close')
      done()
    })
    app.addHook('preClose', async () => {
      health.draining = true
    })
  },
  { name: 'health', dependencies: ['database', 'objects', 'redis'] }
)

/** Remembers an answer for a moment, and takes silence for one. */
function asking(check: () => Promise<unknown>): () => Promise<Check> {
  let asked: { at: number; answer: Promise<Check> } | undefined
  async function ask(): Promise<Check> {
    const startedAt = performance.now()
    const late = new Promise<CheckStatus>((resolve) => setTimeout(resolve, patienceMs, 'down').unref())
    const answer = check().then(
      () => 'ok' as const,
      () => 'down' as const
    )
    const status = await Promise.race([answer, late])
    return { status, latency_ms: Math.round((performance.now() - startedAt) * 10) / 10 }
  }
  return () => {
    if (!asked || Date.now() - asked.at > freshForMs) asked = { at: Date.now(), answer: ask() }
    return asked.answer
  }
}
