import fp from 'fastify-plugin'
import { ping } from '../db/directory.ts'

export type CheckStatus = 'ok' | 'down'
type Check = { status: CheckStatus; latency_ms: number }

declare module 'fastify' {
  interface FastifyInstance {
    health: {
      /** Whether the database answers. Asked at most once a second however many want to know. */
      database(): Promise<CheckStatus>
      /** The same, and how long it took. */
      report(): Promise<Record<'database', Check>>
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
    let asked: { at: number; answer: Promise<Check> } | undefined

    async function ask(): Promise<Check> {
      const startedAt = performance.now()
      const late = new Promise<CheckStatus>((resolve) => setTimeout(resolve, patienceMs, 'down').unref())
      const answer = app.gate.query({ tenant_id: null, user_id: null, request: '' }, ping, {}).then(
        () => 'ok' as const,
        () => 'down' as const
      )
      const status = await Promise.race([answer, late])
      return { status, latency_ms: Math.round((performance.now() - startedAt) * 10) / 10 }
    }

    function lately(): Promise<Check> {
      if (!asked || Date.now() - asked.at > freshForMs) asked = { at: Date.now(), answer: ask() }
      return asked.answer
    }

    const health = {
      draining: false,
      database: async () => (await lately()).status,
      report: async () => ({ database: await lately() })
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
  { name: 'health', dependencies: ['database'] }
)
