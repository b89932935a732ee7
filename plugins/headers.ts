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
type CountingSocket = { [unanswered]?: number }

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
  },
  { name: 'headers' }
)
