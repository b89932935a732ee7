import type { Socket } from 'node:net'
import fp from 'fastify-plugin'

/**
 * Security headers for a JSON API: replies load nothing, and are not framed, sniffed or cached. A route may override
 * them.
 */
export const defaultHeaders = {
  'cache-control': 'no-store',
  'content-security-policy': "default-src 'none'; frame-ancestors 'none'",
  'cross-origin-resource-policy': 'same-origin',
  'referrer-policy': 'no-referrer',
  'strict-transport-security': 'max-age=63072000; includeSubDomains',
  vary: 'Origin, Authorization',
  'x-content-type-options': 'nosniff',
  'x-frame-options': 'DENY'
}

/** The requests of one connection that may be without a complete reply at once. */
const maxPipelined = 16

const unanswered = Symbol('requests without an answer')
type CountingSocket = Socket & { [unanswered]?: number }

/** Adds security headers and the request id to every reply, and bounds the pipelined requests of a connection. */
export default fp(
  async (app) => {
    // Node reads all pipelined requests, also when the client does not read the replies, and buffers these: a megabyte
    // of requests could become gigabytes of replies
    app.addHook('onResponse', (request, _reply, done) => {
      const socket = request.raw.socket as CountingSocket
      socket[unanswered] = (socket[unanswered] ?? 1) - 1
      done()
    })
    app.addHook('onRequest', (request, reply, done) => {
      const socket = request.raw.socket as CountingSocket
      socket[unanswered] = (socket[unanswered] ?? 0) + 1
      if (socket[unanswered] > maxPipelined) {
        reply.hijack()
        request.raw.socket.destroy()
        return
      }
      reply.headers(defaultHeaders).header('x-request-id', request.id)
      done()
    })

    // count by open connections: a reply to a client that has disconnected never ends
    const connections = new Set<CountingSocket>()
    let abandoned = 0
    app.server.on('connection', (socket: CountingSocket) => {
      connections.add(socket)
      socket.once('close', () => {
        connections.delete(socket)
        abandoned += socket[unanswered] ?? 0
      })
    })
    app.metrics.gauge('http_connections', 'Open connections', () => connections.size)
    app.metrics.gauge('http_requests_in_flight', 'Requests under way', () =>
      [...connections].reduce((sum, socket) => sum + (socket[unanswered] ?? 0), 0)
    )
    app.metrics.counter('http_requests_abandoned_total', 'Requests whose client went away', () => abandoned)
  },
  { name: 'headers', dependencies: ['metrics'] }
)
