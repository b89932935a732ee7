import fp from 'fastify-plugin'
import { overloaded } from '../../src/http/problems.ts'
import { createPlaces } from '../../src/limits/concurrency.ts'

declare module 'fastify' {
  interface FastifyRequest {
    /** Gives back the request's places under way; null once it is over. */
    releasePlaces: (() => void) | null | undefined
  }
}

/** Requests of one person, and of one tenant, under way in this process at once. */
export const maxUnderWay = 128

/** Bounds how many requests one person, or one tenant, has under way, so that neither can take a whole process from others. */
export default fp(
  async (app) => {
    const places = createPlaces(maxUnderWay)
    app.decorateRequest('releasePlaces', undefined)
    app.addHook('onRequest', (request, _reply, done) => {
      const { sender, overLimit } = request
      const { socket } = request.raw
      // a request whose end came while its limits were asked for would never give a place back
      if (!sender || overLimit || request.releasePlaces === null || socket.destroyed) return done()
      const release = places.enter(socket, sender.user_id, sender.tenant_id)
      if (release) request.releasePlaces = release
      else request.overLimit = overloaded({ headers: { 'retry-after': '1' } })
      done()
    })
    app.addHook('onResponse', (request, _reply, done) => {
      request.releasePlaces?.()
      request.releasePlaces = null
      done()
    })
  },
  { name: 'concurrency', dependencies: ['rates'] }
)
