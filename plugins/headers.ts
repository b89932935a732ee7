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

/** Security headers and the request id on every reply. */
export default fp(
  async (app) => {
    app.addHook('onRequest', (request, reply, done) => {
      reply.headers(defaultHeaders).header('x-request-id', request.id)
      done()
    })
  },
  { name: 'headers' }
)
