import cors from '@fastify/cors'
import type { FastifyRequest } from 'fastify'
import fp from 'fastify-plugin'
import { parseHost } from '../../src/http/hosts.ts'

const allowedHeaders =
  'Authorization, Content-Type, Idempotency-Key, If-Match, If-None-Match, If-Range, Range, Tus-Resumable, Upload-Length, Upload-Metadata, Upload-Offset, X-HTTP-Method-Override, X-Request-Id'
/** What browsers send along for tracing (W3C Trace Context and Baggage, Sentry). */
const traceHeaders = 'baggage, sentry-trace, traceparent, tracestate'
const exposedHeaders =
  'Accept-Ranges, Content-Disposition, Content-Range, ETag, Idempotency-Replayed, Location, RateLimit, RateLimit-Policy, Retry-After, Tus-Extension, Tus-Max-Size, Tus-Resumable, Tus-Version, Upload-Expires, Upload-Length, Upload-Offset, WWW-Authenticate, X-Request-Id'
const methods = 'GET, HEAD, POST, PUT, PATCH, DELETE'
const localOrigin = /^http:\/\/(?:(?:[a-z0-9-]+\.)?localhost|127\.0\.0\.1|\[::1\])(?::\d{1,5})?$/

/** Tells browsers which origins may call. Only listed ones, each echoed by itself, and no credentials mode. */
export default fp(
  async (app) => {
    const { baseDomain, corsOrigins, nodeEnv } = app.config
    const development = nodeEnv === 'development'

    /** The slug whose own web page this origin is. In production that is https on the default port and nothing else. */
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
      // as if it were not there
      if (tenant?.status === 'suspended') return false
      const slug = slugOf(origin)
      if (tenant) return slug === tenant.slug || (tenant.settings.allowed_origins ?? []).includes(origin)
      if (slug === undefined || request.hostProblem) return false
      const found = request.overLimit ? app.tenants.peek(slug) : await app.tenants.find(slug)
      return found?.status === 'active'
    }

    // its route for preflights is the plugin's own; everybody may ask what is allowed
    app.addHook('onRoute', (route) => {
      if (route.method === 'OPTIONS' && route.url === '*')
        route.config = Object.assign(route.config ?? {}, { access: 'public' as const })
    })
    await app.register(cors, {
      delegator(request, done) {
        const { origin } = request.headers
        // an OPTIONS that asks for no method is a question to the route, such as what tus it speaks
        const asks = request.headers['access-control-request-method'] !== undefined
        const options = {
          methods,
          allowedHeaders: `${allowedHeaders}, ${traceHeaders}`,
          exposedHeaders,
          maxAge: 600,
          strictPreflight: false,
          // a request that can be read in two ways gets no answer but the guard's
          preflight: asks && !request.malformed
        }
        if (origin === undefined || request.malformed) return done(null, { ...options, origin: false })
        isAllowed(origin, request).then(
          (allowed) => done(null, { ...options, origin: allowed }),
          // without a database nothing is known about the origin; the request gets its own 503 later
          () => done(null, { ...options, origin: false })
        )
      }
    })
  },
  { name: 'cors', dependencies: ['tenants'] }
)
