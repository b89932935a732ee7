import type { FastifyReply, FastifyRequest } from 'fastify'
import fp from 'fastify-plugin'
import type { PlanLimits } from '../../db/queries/plans.ts'
import type { AccessClaims } from '../../src/auth/claims.ts'
import type { Rate } from '../../src/config/value-readers.ts'
import type { Problem } from '../../src/http/problems.ts'
import { after } from '../../src/limits/after.ts'
import { type Counted, findExceeded, rateHeaders } from '../../src/limits/rate-headers.ts'

declare module 'fastify' {
  interface FastifyRequest {
    /** Set where the sender asks too often or has too much under way. The guard refuses with it. */
    overLimit: Problem | undefined
    /** The claims that the request counts for: its token is good, or it could not be found out whether it was revoked. */
    sender: AccessClaims | undefined
  }
  interface FastifyContextConfig {
    /** False: never limited. */
    limited?: false
    /** The route is embedded in pages, such as an image: a stranger may request it ten times as often. */
    embedded?: true
  }
}

export const maxKeys = 20_000
/** Tenants, and people with a token. One that is forgotten starts with a whole quota, but for what Redis knows. */
export const maxSenders = 150_000
/** CORS preflights carry no token, and images in pages neither, so they get buckets of their own, so many times as large. */
const pageFactor = 10

/**
 * Bounds how often anybody may ask. Requests with a good token count for their person, in whichever of their tenants, and for
 * the tenant, and for no address, so that an office behind one address can work. All others count for their address (IPv6 by
 * /64), and each public route has a quota of its own there: what a page shows, or somebody tries, keeps nobody behind the same
 * address from signing in. Nobody can use up a tenant's quota without a token of it.
 */
export default fp(
  async (app) => {
    const { rateLimit, rateLimitTenant } = app.config
    const pageRate = { ...rateLimit, max: rateLimit.max * pageFactor }
    const countStranger = app.createCounter('anonymous', maxKeys)
    const countPreflight = app.createCounter('preflight', maxKeys)
    const countUser = app.createCounter('user', maxSenders)
    const countTenant = app.createCounter('tenant', maxSenders)

    function countRequest(request: FastifyRequest): Counted[] | Promise<Counted[]> {
      if (request.sender) return countSender(request, request.sender)
      const { method, network, routeOptions } = request
      if (method === 'OPTIONS') return after(countPreflight(network, pageRate), listed)
      const { access, embedded } = routeOptions.config ?? {}
      const key = access === 'public' ? `${routeOptions.url} ${network}` : network
      return after(countStranger(key, embedded ? pageRate : rateLimit), listed)
    }

    function countSender(
      { tenant }: FastifyRequest,
      { tenant_id, user_id }: AccessClaims
    ): Counted[] | Promise<Counted[]> {
      return after(countUser(user_id, rateLimit), (user) => {
        // a request over the limit of its person costs their tenant nothing
        if (user && !user.verdict.allowed) return [user]
        const limits = tenant?.id === tenant_id ? tenant.limits : app.tenants.limitsOf(tenant_id)
        return after(limits, (plan) =>
          after(countTenant(tenant_id, rateOf(plan) ?? rateLimitTenant), (counted) => [
            ...listed(counted),
            ...listed(user)
          ])
        )
      })
    }

    app.decorateRequest('overLimit', undefined)
    app.decorateRequest('sender', undefined)
    app.addHook('onRequest', (request, reply, done) => {
      if (request.routeOptions.config?.limited === false) return done()
      request.sender = findSender(request)
      const settle = (counted: Counted[]) => {
        request.overLimit = findExceeded(counted)
        // no script can read the headers of a preflight
        if (request.sender || request.method !== 'OPTIONS') show(reply, counted)
        done()
      }
      const counted = countRequest(request)
      if (counted instanceof Promise) counted.then(settle, done)
      else settle(counted)
    })
  },
  { name: 'rates', dependencies: ['addresses', 'counters', 'tenants', 'hosts', 'bearer'] }
)

function findSender({ bearer }: FastifyRequest): AccessClaims | undefined {
  return bearer?.problem && bearer.problem.kind.status !== 503 ? undefined : bearer?.claims
}

function rateOf({ requests, window_seconds }: PlanLimits): Rate | undefined {
  if (requests === null || window_seconds === null) return undefined
  return { max: requests, window_ms: window_seconds * 1000 }
}

const listed = (counted: Counted | undefined): Counted[] => (counted ? [counted] : [])

function show(reply: FastifyReply, counted: Counted[]): void {
  if (counted.length === 0) return
  const { policy, state } = rateHeaders(counted)
  reply.header('ratelimit-policy', policy)
  reply.header('ratelimit', state)
}
