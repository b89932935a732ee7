import type { FastifyRequest } from 'fastify'
import fp from 'fastify-plugin'

/** A part of a path that may be a token: long, of many kinds of characters, and no id. */
const likeToken = /[\w.~-]{24,}/g
const isUuid = /^[\da-f]{8}(?:-[\da-f]{4}){3}-[\da-f]{12}$/i

/**
 * The path for the log. A route with a token in its path is logged as its pattern: the token is a secret while it is
 * valid. So is what looks like one in a path that leads nowhere, such as a link that was copied with a stroke too many.
 */
function loggedPath({ url, is404, routeOptions }: FastifyRequest): string | undefined {
  if (routeOptions.url?.includes(':token')) return routeOptions.url
  const [path = ''] = url.split('?', 1)
  return is404 ? path.replace(likeToken, (text) => (isUuid.test(text) ? text : '…')) : path
}

/**
 * Logs requests: at level `info` the ones that may have changed something and the ones that were refused, at level
 * `debug` all of them. A log line for every read would cost more than the read.
 */
export default fp(
  async (app) => {
    const { isLevelEnabled } = app.log as unknown as { isLevelEnabled(level: string): boolean }
    const enabled = (level: 'debug' | 'info') => isLevelEnabled.call(app.log, level)
    app.addHook('onResponse', (request, reply, done) => {
      const quiet = reply.statusCode < 400 && (request.method === 'GET' || request.method === 'HEAD')
      const level = quiet ? 'debug' : 'info'
      if (enabled(level)) {
        request.log[level](
          {
            method: request.method,
            url: loggedPath(request),
            host: request.headers.host,
            ip: request.address,
            status: reply.statusCode,
            code: request.problemCode,
            ms: Math.round(reply.elapsedTime * 10) / 10,
            tenant_id: request.user?.tenant_id ?? request.tenant?.id,
            user_id: request.user?.user_id
          },
          'request'
        )
      }
      done()
    })
  },
  { name: 'request-log', dependencies: ['addresses', 'errors'] }
)
