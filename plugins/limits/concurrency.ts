import fp from 'fastify-plugin'
import { overloaded } from '../../src/http/problems.ts'
import { createConcurrencyLimiter } from '../../src/limits/concurrency-limiter.ts'

declare module 'fastify' {
  interface FastifyRequest {
    /** Frees the request's slots. Null when the request has ended. */
    releaseSlots: (() => void) | null | undefined
  }
}

/** The concurrent requests of one person, and of one tenant, in this process. */
export const maxUnderWay = 128

/**
 * Limits the concurrent requests of one person and of one tenant, so that they leave room for others in each process.
 */
export default fp(
  async (app) => {
    const limiter = createConcurrencyLimiter(maxUnderWay)
    app.decorateRequest('releaseSlots', undefined)
    app.addHook('onRequest', (request, _reply, done) => {
      const { sender, overLimit } = request
      const { socket } = request.raw
      // a request that has ended while its limits were counted would never release its slots
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
