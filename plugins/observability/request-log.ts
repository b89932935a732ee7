import type { FastifyRequest } from 'fastify'
import fp from 'fastify-plugin'

/** A part of a path that may be a token: long, of many kinds of characters, and no id. */
const likeToken = /[\w.~-]{24,}/g
/** A part of the path of a route that is no id, and longer than any name there: a key or a token in the place of an id. */
const tokenInPlaceOfId = /[\w~-]{40,}/g
const isUuid = /^[\da-f]{8}(?:-[\da-f]{4}){3}-[\da-f]{12}$/i

/**
 * The path for the log. A route with a token in its path is logged as its pattern: the token is a secret while it is
 * valid. So is what looks like one in a path that leads nowhere, such as a link that was copied with a stroke too many, and an
 * API key where its id belongs.
 */
function loggedPath({ url, is404, routeOptions }: FastifyRequest): string | undefined {
  if (routeOptions.url?.includes(':token')) return routeOptions.url
  const [path = ''] = url.split('?', 1)
  return is404
    ? path.replace(likeToken, (text) => (isUuid.test(text) ? text : '…'))
    : path.replace(tokenInPlaceOfId, '…')
}

/** The lines of a second for requests that were refused before anybody was known to have sent them. */
export const maxRefusalLines = 500

/**
 * True for a request that was refused before it reached anything: it has changed nothing, and no valid token says whose
 * it is. A flood consists of these. Requests of public routes, such as a sign-in, are not among them.
 */
function isTurnedAway({ user, is404, routeOptions }: FastifyRequest, status: number): boolean {
  return status >= 400 && status !== 500 && !user && (is404 || routeOptions.config?.access !== 'public')
}

/**
 * Logs requests: at level `info` the ones that may have changed something and the ones that were refused, at level
 * `debug` all of them. A log line for every read would cost more than the read.
 *
 * Of the requests that are turned away, `maxRefusalLines` a second have a line at `info`, so that a flood neither fills
 * the disk nor costs as much as answers. One more line says how many had none.
 */
export default fp(
  async (app) => {
    const { isLevelEnabled } = app.log as unknown as { isLevelEnabled(level: string): boolean }
    const enabled = (level: 'debug' | 'info') => isLevelEnabled.call(app.log, level)
    let refusals = 0
    let timer: NodeJS.Timeout | undefined

    function endSecond(): void {
      const left_out = refusals - maxRefusalLines
      if (left_out > 0) app.log.info({ left_out }, 'more requests were refused than have a line of their own')
      refusals = 0
      timer = undefined
    }
    app.addHook('onClose', async () => {
      clearTimeout(timer)
      endSecond()
    })

    /** Counts a line. False when the second has had all of its lines. */
    function hasLine(): boolean {
      timer ??= setTimeout(endSecond, 1000).unref()
      return ++refusals <= maxRefusalLines
    }

    app.addHook('onResponse', (request, reply, done) => {
      const quiet = reply.statusCode < 400 && (request.method === 'GET' || request.method === 'HEAD')
      const level = quiet ? 'debug' : 'info'
      const known = quiet || enabled('debug') || !isTurnedAway(request, reply.statusCode)
      if (enabled(level) && (known || hasLine())) {
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
