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
       * Checks the database, the object store and Redis. Each is checked at most once a second, however often this is
       * called. Without the database nothing is served. Without one of the others, only the operations that need it
       * fail. `redis` is absent when no Redis is configured.
       */
      report(): Promise<HealthReport>
      /** True when this process has begun to shut down. */
      draining: boolean
    }
  }
}

const freshForMs = 1000
const timeoutMs = 2000

/** Reports whether the process can serve. While it shuts down, each connection closes after its reply. */
export default fp(
  async (app) => {
    const database = cachedCheck(() => app.gate.query(systemScope, ping, {}))
    const storage = cachedCheck(() => app.objects.check())
    const redis = app.shared.check && cachedCheck(app.shared.check)

    const health = {
      draining: false,
      async report(): Promise<HealthReport> {
        const checks = await Promise.all([database(), storage(), redis?.()])
        return { database: checks[0], storage: checks[1], ...(checks[2] && { redis: checks[2] }) }
      }
    }
    app.decorate('health', health)
    // in onSend, so that the connections of requests that began before the shutdown close too
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

/** Remembers the result of a check for a moment. A check that takes too long counts as `down`. */
function cachedCheck(check: () => Promise<unknown>): () => Promise<Check> {
  let last: { at: number; result: Promise<Check> } | undefined
  async function run(): Promise<Check> {
    const startedAt = performance.now()
    const late = new Promise<CheckStatus>((resolve) => setTimeout(resolve, timeoutMs, 'down').unref())
    const answer = check().then(
      () => 'ok' as const,
      () => 'down' as const
    )
    const status = await Promise.race([answer, late])
    return { status, latency_ms: Math.round((performance.now() - startedAt) * 10) / 10 }
  }
  return () => {
    if (!last || Date.now() - last.at > freshForMs) last = { at: Date.now(), result: run() }
    return last.result
  }
}
