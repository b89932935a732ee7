import fp from 'fastify-plugin'
import { ping } from '../db/directory.ts'

export type CheckStatus = 'ok' | 'down'

declare module 'fastify' {
  interface FastifyInstance {
    health: {
      /** Whether the database answers. Asked at most once a second however many want to know. */
      database(): Promise<CheckStatus>
      /** The same of the object store, without which all but files is served. */
      storage(): Promise<CheckStatus>
      /** Whether Redis answers, asked as often; undefined where there is none. The API serves without it. */
      redis: (() => Promise<CheckStatus>) | undefined
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
    const health = {
      draining: false,
      database: asking(() => app.gate.query({ tenant_id: null, user_id: null, request: '' }, ping, {})),
      storage: asking(() => app.objects.check()),
      redis: app.shared.check && asking(app.shared.check)
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
function asking(check: () => Promise<unknown>): () => Promise<CheckStatus> {
  let asked: { at: number; answer: Promise<CheckStatus> } | undefined
  async function ask(): Promise<CheckStatus> {
    const late = new Promise<CheckStatus>((resolve) => setTimeout(resolve, patienceMs, 'down').unref())
    const answer = check().then(
      () => 'ok' as const,
      () => 'down' as const
    )
    return Promise.race([answer, late])
  }
  return () => {
    if (!asked || Date.now() - asked.at > freshForMs) asked = { at: Date.now(), answer: ask() }
    return asked.answer
  }
}
