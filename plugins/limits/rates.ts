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
    /**
     * The problem when the sender exceeds a rate limit or has too many concurrent requests. The guard refuses with it.
     */
    overLimit: Problem | undefined
    /**
     * The claims of the person, or of the API key, whose limits apply: of a valid token, or of one whose revocation could not be checked.
     */
    sender: AccessClaims | undefined
  }
  interface FastifyContextConfig {
    /** `false` exempts the route from rate limits. */
    limited?: false
    /** The route is embedded in pages, such as an image: anonymous clients may request it ten times as often. */
    embedded?: true
  }
}

export const maxKeys = 20_000
/**
 * The keys of tenants, and of people with a token. An evicted key starts with a full quota, less the count that Redis
 * has.
 */
export const maxSenders = 150_000
/**
 * CORS preflights and images in pages carry no token, so they get counters of their own, with a limit so many times as
 * large.
 */
const pageFactor = 10

/**
 * Rate limits. Requests with a valid token count for the person, in all of their tenants together, or for the API key, and
 * for the tenant.
 * They do not count for the address, so that an office behind one address can work. A tenant's quota can't be used up
 * without a token of that tenant.
 *
 * All other requests count for their address (IPv6 by /64). There each public route has a quota of its own, so that
 * other requests from the same address don't keep people from signing in.
 */
export default fp(
  async (app) => {
    const { rateLimit, rateLimitKey, rateLimitTenant } = app.config
    const pageRate = { ...rateLimit, max: rateLimit.max * pageFactor }
    const countAnonymous = app.createCounter('anonymous', maxKeys)
    const countPreflight = app.createCounter('preflight', maxKeys)
    const countUser = app.createCounter('user', maxSenders)
    const countKey = app.createCounter('key', maxSenders)
    const countTenant = app.createCounter('tenant', maxSenders)

    function countRequest(request: FastifyRequest): Counted[] | Promise<Counted[]> {
      if (request.sender) return countSender(request, request.sender)
      const { method, network, routeOptions } = request
      if (method === 'OPTIONS') return after(countPreflight(network, pageRate), listed)
      const { access, embedded } = routeOptions.config ?? {}
      const key = access === 'public' ? `${routeOptions.url} ${network}` : network
      return after(countAnonymous(key, embedded ? pageRate : rateLimit), listed)
    }

    function countSender(
      { tenant }: FastifyRequest,
      { tenant_id, user_id, key }: AccessClaims
    ): Counted[] | Promise<Counted[]> {
      return after(key ? countKey(user_id, rateLimitKey) : countUser(user_id, rateLimit), (user) => {
        // a request over the person's limit does not count for the tenant
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
        // scripts can't read the headers of a preflight
        if (request.sender || request.method !== 'OPTIONS') addHeaders(reply, counted)
        done()
      }
      const counted = countRequest(request)
      if (counted instanceof Promise) counted.then(settle, done)
      else settle(counted)
    })
  },
  { name: 'rates', dependencies: ['addresses', 'counters', 'tenants', 'hosts', 'bearer'] }
)

/**
 * Who the request counts for: undefined when it counts for its address. An API key that may not be used from there counts for
 * nobody, so that a stolen one can not use up the quota of its owner.
 */
function findSender({ bearer, address }: FastifyRequest): AccessClaims | undefined {
  if (bearer?.problem && bearer.problem.kind.status !== 503) return undefined
  const allowsFrom = bearer?.claims?.key?.allowsFrom
  return allowsFrom && !allowsFrom(address ?? '') ? undefined : bearer?.claims
}

function rateOf({ requests, window_seconds }: PlanLimits): Rate | undefined {
  if (requests === null || window_seconds === null) return undefined
  return { max: requests, window_ms: window_seconds * 1000 }
}

const listed = (counted: Counted | undefined): Counted[] => (counted ? [counted] : [])

function addHeaders(reply: FastifyReply, counted: Counted[]): void {
  if (counted.length === 0) return
  const { policy, state } = rateHeaders(counted)
  reply.header('ratelimit-policy', policy)
  reply.header('ratelimit', state)
}
