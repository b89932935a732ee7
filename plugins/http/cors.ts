import cors from '@fastify/cors'
import type { FastifyRequest } from 'fastify'
import fp from 'fastify-plugin'
import { parseHost } from '../../src/http/host-header.ts'

declare module 'fastify' {
  interface FastifyContextConfig {
    /** Browsers go there as to a page, and no script may read the reply (RFC 9700, 2.6). */
    navigation?: true
  }
}

const allowedHeaders =
  'Authorization, Cache-Control, Content-Type, DPoP, Idempotency-Key, If-Match, If-None-Match, If-Range, Last-Event-ID, Range, Tus-Resumable, Upload-Length, Upload-Metadata, Upload-Offset, X-HTTP-Method-Override, X-Request-Id'
/** The tracing headers of browsers (W3C Trace Context and Baggage, Sentry). */
const traceHeaders = 'baggage, sentry-trace, traceparent, tracestate'
const exposedHeaders =
  'Accept-Ranges, Content-Disposition, Content-Range, DPoP-Nonce, ETag, Idempotency-Replayed, Location, RateLimit, RateLimit-Policy, Retry-After, Tus-Extension, Tus-Max-Size, Tus-Resumable, Tus-Version, Upload-Expires, Upload-Length, Upload-Offset, WWW-Authenticate, X-Request-Id'
const methods = 'GET, HEAD, POST, PUT, PATCH, DELETE'
const localOrigin = /^http:\/\/(?:(?:[a-z0-9-]+\.)?localhost|127\.0\.0\.1|\[::1\])(?::\d{1,5})?$/

/** CORS: tells browsers which origins may call. A reply names the one allowed origin, and never allows credentials. */
export default fp(
  async (app) => {
    const { baseDomain, corsOrigins, nodeEnv } = app.config
    const development = nodeEnv === 'development'

    /** The slug of the tenant whose web page has this origin. In production only https on the default port counts. */
    function slugOf(origin: string): string | undefined {
      const [scheme, host, rest] = origin.split('://')
      if (rest !== undefined || !host || (scheme !== 'https' && !development)) return undefined
      if (host.includes(':') && !development) return undefined
      const name = parseHost(host, baseDomain, () => false)
      return name?.kind === 'tenant' && host === host.toLowerCase() && !host.endsWith('.') ? name.slug : undefined
    }

    async function isAllowed(origin: string, request: FastifyRequest): Promise<boolean> {
      if (corsOrigins.includes(origin) || corsOrigins.includes('*')) return true
      if (development && localOrigin.test(origin)) return true
      const { tenant } = request
      // like an unknown tenant, so that a suspended one can't be recognised
      if (tenant?.status === 'suspended') return false
      const slug = slugOf(origin)
      if (tenant) return slug === tenant.slug || (tenant.settings.allowed_origins ?? []).includes(origin)
      if (slug === undefined || request.hostProblem) return false
      const found = request.overLimit ? app.tenants.peek(slug) : await app.tenants.find(slug)
      return found?.status === 'active'
    }

    // the package adds its own route for preflights, which is public
    app.addHook('onRoute', (route) => {
      if (route.method === 'OPTIONS' && route.url === '*')
        route.config = Object.assign(route.config ?? {}, { access: 'public' as const })
    })
    await app.register(cors, {
      delegator(request, done) {
        const { origin } = request.headers
        // an OPTIONS without this header is no preflight but a request to the route, such as the one of tus for its
        // versions
        const isPreflight = request.headers['access-control-request-method'] !== undefined
        const options = {
          methods,
          allowedHeaders: `${allowedHeaders}, ${traceHeaders}`,
          exposedHeaders,
          maxAge: 600,
          strictPreflight: false,
          // the guard refuses a malformed request
          preflight: isPreflight && !request.malformed
        }
        const { navigation } = request.routeOptions.config
        if (origin === undefined || request.malformed || navigation) return done(null, { ...options, origin: false })
        isAllowed(origin, request).then(
          (allowed) => done(null, { ...options, origin: allowed }),
          // the database is away, so the origin is not allowed; the request is answered with 503 later
          () => done(null, { ...options, origin: false })
        )
      }
    })
  },
  { name: 'cors', dependencies: ['tenants'] }
)
