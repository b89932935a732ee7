import type { Socket } from 'node:net'
import fp from 'fastify-plugin'

/** For a JSON API: nothing may be loaded, framed, sniffed or remembered. A route overrides what differs for it. */
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

/** Requests that one connection may have sent without having read the answers to those before. */
const maxPipelined = 16

const unanswered = Symbol('requests without an answer')
type CountingSocket = Socket & { [unanswered]?: number }

/** Security headers and the request id on every reply, and no more of them than a client reads. */
export default fp(
  async (app) => {
    // Node takes in whatever is pipelined however slow the reader, and keeps every answer: a megabyte of requests would be
    // gigabytes of replies
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

    // whoever goes away takes the reply's end along, so what is under way is what open connections wait for
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
