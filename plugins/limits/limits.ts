import type { FastifyReply, FastifyRequest } from 'fastify'
import fp from 'fastify-plugin'
import type { PlanLimits } from '../../db/queries/plans.ts'
import type { Rate } from '../../src/config/config.ts'
import { overloaded, type Problem, rateLimited } from '../../src/http/problems.ts'
import { createConcurrencyLimiter } from '../../src/limits/concurrency-limiter.ts'
import { createQuotas, type Verdict } from '../../src/limits/quotas.ts'
import type { AccessClaims } from '../auth/authentication.ts'

declare module 'fastify' {
  interface FastifyInstance {
    limits: {
      /** Counts an attempt from the request's address. Throws `rate_limited`. */
      attempt(request: FastifyRequest, reply: FastifyReply): Promise<void>
      /**
       * Counts an attempt on one account from anywhere. Throws `rate_limited`; where `isKnown` says that the request comes from the
       * account's own network, which is asked only then, that network has a count of its own.
       */
      account(
        request: FastifyRequest,
        reply: FastifyReply,
        account: string,
        isKnown?: () => Promise<boolean>
      ): Promise<void>
      /**
       * Counts a tenant that is about to be made from the request's address: within the transaction, where nothing else refuses it
       * any more, and once however often that is run again. Throws `rate_limited`.
       */
      tenant(request: FastifyRequest, reply: FastifyReply): Promise<void>
      /** Leaves of the limits in the reply's headers only those that every request has. */
      showGeneral(request: FastifyRequest, reply: FastifyReply): void
    }
  }
  interface FastifyRequest {
    /** Set for who asks too often or has too much under way. Nothing is looked up for them, and the guard throws it. */
    refused: Problem | undefined
    /** The limits that every request has. */
    general: Counted[]
    /** Gives its place back, while it is under way; null once it is over. */
    leaves: (() => void) | null | undefined
  }
  interface FastifyContextConfig {
    /** False: never limited. */
    limited?: false
    /** Pages show it: of a stranger's requests for it ten times as many are allowed. */
    embedded?: true
    /**
     * Counted by itself too, before the body is read: on a public route by address, RATE_LIMIT_AUTH for all such routes
     * together; else by person, so many times RATE_LIMIT_AUTH for this route (`true`: once).
     */
    throttled?: boolean | number
  }
}

type Counted = { name: string; rate: Rate; verdict: Verdict }
type Outcome = { counted: Counted[]; allowed: boolean }

export const maxKeys = 20_000
/** Tenants, and people with a token: who is forgotten starts with a whole quota, but for what Redis knows. */
export const maxSenders = 150_000
/** Requests of one person, and of one tenant, under way in this process at once. */
export const maxUnderWay = 128
/**
 * A page asks once more before a call of each kind, and for each picture that it shows, and without its token: so many of these
 * may come for one other request of a stranger.
 */
const pageShare = 10
/** People behind one address who may each make as many tenants as one may. */
const foundersPerAddress = 4
const dayMs = 86_400_000

/**
 * Bounds what anybody may ask for. Requests with a good token count for their person, in whichever of their tenants, and for
 * the tenant, and for no address, so that an office behind one address can work; all others for their address (IPv6 by /64),
 * before anything is looked up. Of these each public route has a quota of its own: what a page shows, or somebody tries, keeps
 * nobody beside them from signing in. Nobody can use up a tenant's quota without a token of it. Attempts to sign in are counted by
 * address and by account besides.
 *
 * All processes count together through Redis, and each for itself while there is none.
 */
export default fp(
  async (app) => {
    const { rateLimit, rateLimitTenant, rateLimitAuth, tenantsPerDay } = app.config
    const ofPages = { ...rateLimit, max: rateLimit.max * pageShare }
    const store = app.shared.quotas
    const counters: { limit: string; known(): number; refused: number }[] = []
    const counter = (name: string, max: number) => {
      const quotas = createQuotas({ name: `${name} `, store, max })
      const stats = { limit: name, known: quotas.size, refused: 0 }
      counters.push(stats)
      return (key: string, rate: Rate): Counted | undefined | Promise<Counted> => {
        if (rate.max === 0) return undefined
        return after(quotas.count(key, rate), (verdict) => {
          if (!verdict.allowed) stats.refused++
          return { name, rate, verdict }
        })
      }
    }
    const byStranger = counter('anonymous', maxKeys)
    const byPreflight = counter('preflight', maxKeys)
    const byUser = counter('user', maxSenders)
    const byTenant = counter('tenant', maxSenders)
    const byRoute = counter('route', maxKeys)
    const byAddress = counter('address', maxKeys)
    const byAccount = counter('account', maxKeys)
    const byFounder = counter('founder', maxKeys)
    const foundings = new WeakMap<FastifyRequest, Promise<void>>()
    app.metrics.gauge('aggios_limit_keys', 'Who is counted here, by limit', () =>
      counters.map(({ limit, known }) => ({ labels: { limit }, value: known() }))
    )
    app.metrics.counter('aggios_limit_refused_total', 'Requests and attempts over a limit', () =>
      counters.map(({ limit, refused }) => ({ labels: { limit }, value: refused }))
    )
    const places = createConcurrencyLimiter(maxUnderWay)

    // == every request ===============================================================================================

    function countGeneral(request: FastifyRequest): Outcome | Promise<Outcome> {
      const claims = knownSender(request)
      if (claims) return countSender(claims)
      const { method, network, routeOptions } = request
      if (method === 'OPTIONS')
        return after(byPreflight(network, ofPages), (counted) => ({ ...outcomeOf(counted), counted: [] }))
      const { access, embedded } = routeOptions.config ?? {}
      const key = access === 'public' ? `${routeOptions.url} ${network}` : network
      return after(byStranger(key, embedded ? ofPages : rateLimit), (counted) => outcomeOf(counted))
    }

    function countSender(claims: AccessClaims): Outcome | Promise<Outcome> {
      const { tenant_id, user_id } = claims
      return after(byUser(user_id, rateLimit), (user) => {
        // who is over their own limit costs their agency nothing
        if (user && !user.verdict.allowed) return outcomeOf(user)
        return after(app.tenants.limitsOf(tenant_id), (plan) =>
          after(byTenant(tenant_id, rateOf(plan) ?? rateLimitTenant), (tenant) => outcomeOf(tenant, user))
        )
      })
    }

    /** The share of a process that one person, or one agency, can't take from others. */
    function enter(request: FastifyRequest, { user_id, tenant_id }: AccessClaims): Problem | undefined {
      const { socket } = request.raw
      // whoever has gone while limits were asked will not be seen to leave
      if (request.leaves === null || socket.destroyed) return undefined
      const leave = places.acquire(socket, user_id, tenant_id)
      if (!leave) return overloaded({ headers: { 'retry-after': '1' } })
      request.leaves = leave
      return undefined
    }

    app.decorateRequest('refused', undefined)
    app.decorateRequest('general')
    app.decorateRequest('leaves', undefined)
    app.addHook('onRequest', (request, reply, done) => {
      if (request.routeOptions.config?.limited === false) return done()
      const settle = ({ counted, allowed }: Outcome) => {
        request.general = counted
        show(reply, counted)
        const claims = knownSender(request)
        request.refused = allowed ? claims && enter(request, claims) : tooMany(counted)
        done()
      }
      const outcome = countGeneral(request)
      if (outcome instanceof Promise) outcome.then(settle, done)
      else settle(outcome)
    })
    app.addHook('onResponse', (request, _reply, done) => {
      request.leaves?.()
      request.leaves = null
      done()
    })

    // == attempts ====================================================================================================

    async function countAttempt(
      reply: FastifyReply,
      counting: ReturnType<typeof byAddress> | Counted,
      detail?: string
    ): Promise<void> {
      const counted = await counting
      if (!counted) return
      show(reply, [counted], { append: true })
      if (!counted.verdict.allowed) throw tooMany([counted], detail)
    }

    const limits = {
      attempt: (request: FastifyRequest, reply: FastifyReply) =>
        countAttempt(reply, byAddress(request.network, rateLimitAuth)),
      async account(
        request: FastifyRequest,
        reply: FastifyReply,
        account: string,
        isKnown: () => Promise<boolean> = async () => false
      ) {
        const counted = await byAccount(account, rateLimitAuth)
        const spent = counted && !counted.verdict.allowed
        return countAttempt(
          reply,
          spent && (await isKnown()) ? byAccount(homeOf(request, account), rateLimitAuth) : counted
        )
      },
      tenant(request: FastifyRequest, reply: FastifyReply) {
        const max = tenantsPerDay * foundersPerAddress
        const detail = `${max} agencies a day may be made from one address`
        const counted =
          foundings.get(request) ?? countAttempt(reply, byFounder(request.network, { max, window_ms: dayMs }), detail)
        foundings.set(request, counted)
        return counted
      },
      showGeneral(request: FastifyRequest, reply: FastifyReply) {
        reply.removeHeader('ratelimit').removeHeader('ratelimit-policy')
        show(reply, request.general ?? [])
      }
    }
    app.decorate('limits', limits)

    app.addHook('onRoute', (route) => {
      const { throttled, access } = route.config ?? {}
      if (!throttled) return
      const rate = { ...rateLimitAuth, max: rateLimitAuth.max * Number(throttled) }
      const attempt = ({ user }: FastifyRequest, reply: FastifyReply) =>
        countAttempt(reply, byRoute(`${route.method} ${route.url} ${user.user_id}`, rate))
      route.onRequest = [...[route.onRequest ?? []].flat(), access === 'public' ? limits.attempt : attempt]
    })
  },
  { name: 'limits', dependencies: ['addresses', 'metrics', 'redis', 'tenants', 'authentication'] }
)

/** Whose the request is, if its token is good or nothing could be found out about that. */
function knownSender({ bearer }: FastifyRequest): AccessClaims | undefined {
  return bearer?.problem && bearer.problem.kind.status !== 503 ? undefined : bearer?.claims
}

function rateOf({ requests, window_seconds }: PlanLimits): Rate | undefined {
  if (requests === null || window_seconds === null) return undefined
  return { max: requests, window_ms: window_seconds * 1000 }
}

/** A network and the account it is known for. A device moves within its own /64 as it likes. */
function homeOf(request: FastifyRequest, account: string): string {
  return `${request.network} ${account}`
}

function outcomeOf(...each: (Counted | undefined)[]): Outcome {
  const counted = each.filter((one) => one !== undefined)
  return { counted, allowed: counted.every(({ verdict }) => verdict.allowed) }
}

const secondsUntil = ({ verdict }: Counted) => Math.ceil(verdict.ends_in_ms / 1000)

function tooMany(counted: Counted[], detail?: string): Problem {
  const spent = counted.filter(({ verdict }) => !verdict.allowed)
  const headers = { 'retry-after': String(Math.max(1, ...spent.map(secondsUntil))) }
  return rateLimited(detail === undefined ? { headers } : { detail, headers })
}

/** The limits as structured fields, as the IETF's draft has them. */
function show(reply: FastifyReply, counted: Counted[], { append = false } = {}): void {
  if (counted.length === 0) return
  const policy = counted.map(({ name, rate }) => `"${name}";q=${rate.max};w=${rate.window_ms / 1000}`).join(', ')
  const state = counted
    .map((one) => `"${one.name}";r=${Math.max(0, one.verdict.remaining)};t=${secondsUntil(one)}`)
    .join(', ')
  const before = append ? reply.getHeader('ratelimit') : undefined
  reply.header('ratelimit-policy', before === undefined ? policy : `${reply.getHeader('ratelimit-policy')}, ${policy}`)
  reply.header('ratelimit', before === undefined ? state : `${before}, ${state}`)
}

/** Goes on at once where there is nothing to wait for: on the hot path there is not. */
function after<T, U>(value: T | Promise<T>, next: (value: T) => U | Promise<U>): U | Promise<U> {
  return value instanceof Promise ? value.then(next) : next(value)
}
