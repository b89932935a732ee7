import fp from 'fastify-plugin'
import { overloaded } from '../../src/http/problems.ts'
import { createConcurrencyLimiter } from '../../src/limits/concurrency-limiter.ts'

declare module 'fastify' {
  interface FastifyRequest {
    /** Frees the request's slots; null once the request is over. */
    releaseSlots: (() => void) | null | undefined
  }
}

/** Requests of one person, and of one tenant, under way in this process at once. */
export const maxUnderWay = 128

/** Bounds how many requests one person, or one tenant, has under way, so that neither can take a whole process from others. */
export default fp(
  async (app) => {
    const limiter = createConcurrencyLimiter(maxUnderWay)
    app.decorateRequest('releaseSlots', undefined)
    app.addHook('onRequest', (request, _reply, done) => {
      const { sender, overLimit } = request
      const { socket } = request.raw
      // a request whose end came while its limits were asked for would never release its slots
      if (!sender || overLimit || request.releaseSlots === null || socket.destroyed) return done()
      const release = limiter.acquire(socket, sender.user_id, sender.tenant_id)
      if (release) request.releaseSlots = release
      else request.overLimit = overloaded({ headers: { 'retry-after': '1' } })
      done()
    })
    app.addHook('onResponse', (request, _reply, done) => {
      request.releaseSlots?.()
      request.releaseSlots = null
      done()
    })
  },
  { name: 'concurrency', dependencies: ['rates'] }
)
