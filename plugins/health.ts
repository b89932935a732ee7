import fp from 'fastify-plugin'
import { ping } from '../db/directory.ts'

export type CheckStatus = 'ok' | 'down'

declare module 'fastify' {
  interface FastifyInstance {
    health: {
      /** Whether the database answers. Asked at most once a second however many want to know. */
      database(): Promise<CheckStatus>
      /** Whether Redis answers, asked as often; undefined where there is none. The API serves without it. */
      redis(): Promise<CheckStatus> | undefined
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
    async function askDatabase(): Promise<CheckStatus> {
      const late = new Promise<CheckStatus>((resolve) => setTimeout(resolve, patienceMs, 'down').unref())
      const answer = app.gate.query({ tenant_id: null, user_id: null, request: '' }, ping, {}).then(
        () => 'ok' as const,
        () => 'down' as const
      )
      return Promise.race([answer, late])
    }

    const health = {
      draining: false,
      database: remembered(askDatabase),
      redis: remembered(app.shared.check)
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
  { name: 'health', dependencies: ['database', 'redis'] }
)

/** Asks at most once in a while however many want to know. */
function remembered<T>(ask: () => T): () => T {
  let asked: { at: number; answer: T } | undefined
  return () => {
    if (!asked || Date.now() - asked.at > freshForMs) asked = { at: Date.now(), answer: ask() }
    return asked.answer
  }
}
