import type { FastifyReply, FastifyRequest } from 'fastify'
import fp from 'fastify-plugin'
import { type Counted, findExceeded, rateHeaders } from '../../src/limits/rate-headers.ts'
import type { CountAttempt } from './counters.ts'

declare module 'fastify' {
  interface FastifyInstance {
    attempts: {
      /** Counts an attempt of the request's network. Throws `rate_limited`. */
      countAddress(request: FastifyRequest, reply: FastifyReply): Promise<void>
      /**
       * Counts an attempt on one account, from all networks together. When the limit is exceeded, `isKnown` is called:
       * if the account was used from the request's network before, that network has a count of its own. Throws
       * `rate_limited`.
       */
      countAccount(
        request: FastifyRequest,
        reply: FastifyReply,
        account: string,
        isKnown?: () => Promise<boolean>
      ): Promise<void>
      /**
       * Counts a tenant that the request creates, by the request's network. Call it within the transaction, when
       * nothing else can refuse the request. A retried transaction is counted once. Throws `rate_limited`.
       */
      countTenant(request: FastifyRequest, reply: FastifyReply): Promise<void>
      /**
       * Counts that the caller's agency demands something of its members, because all of them get a mail. Call it
       * within the transaction, when nothing else can refuse the request. A retried transaction is counted once. That a
       * demand ends is not counted, so that it never waits. Throws `rate_limited`.
       */
      countDemand(request: FastifyRequest, reply: FastifyReply): Promise<void>
    }
  }
  interface FastifyContextConfig {
    /**
     * The route has a limit of its own, which is counted before the body is read. Public routes share one count by
     * network, with the limit RATE_LIMIT_AUTH. Other routes have a count of their own by person, with so many times
     * RATE_LIMIT_AUTH (`true`: once).
     */
    throttled?: boolean | number
  }
}

export const maxKeys = 20_000
/** The people behind one address. The limit of created tenants is so many times the limit of one person. */
const foundersPerAddress = 4
/** Each may begin and end, so a member gets all these mails within the limit of twenty from one agency in a day. */
export const demandsPerDay = 10
const dayMs = 86_400_000

/**
 * Limits expensive and security-relevant attempts: sign-ins by address and by account, created tenants, demands of
 * agencies, throttled routes.
 */
export default fp(
  async (app) => {
    const { rateLimitAuth, tenantsPerDay } = app.config
    const byRoute = app.createAttemptCounter('route', maxKeys)
    const byAddress = app.createAttemptCounter('address', maxKeys)
    const byAccount = app.createAttemptCounter('account', maxKeys)
    const byFounder = app.createAttemptCounter('founder', maxKeys)
    const byAgency = app.createAttemptCounter('agency', maxKeys)
    const counts = new WeakMap<FastifyRequest, Promise<void>>()

    async function count(
      request: FastifyRequest,
      reply: FastifyReply,
      counting: Counted | undefined | ReturnType<CountAttempt>,
      detail?: string
    ): Promise<void> {
      const counted = await counting
      if (!counted) return
      // with a disguise the reply must look like the reply of an unknown host, which counts no attempts
      if (!request.disguise) appendHeaders(reply, counted)
      const exceeded = findExceeded([counted], detail)
      if (exceeded) throw exceeded
    }

    /** A transaction that is retried gets the count of its first run. */
    function countOnce(request: FastifyRequest, start: () => Promise<void>): Promise<void> {
      const counting = counts.get(request) ?? start()
      counts.set(request, counting)
      return counting
    }

    const attempts = {
      countAddress: (request: FastifyRequest, reply: FastifyReply) =>
        count(request, reply, byAddress(request.network, rateLimitAuth)),
      async countAccount(
        request: FastifyRequest,
        reply: FastifyReply,
        account: string,
        isKnown: () => Promise<boolean> = async () => false
      ) {
        const counted = await byAccount(account, rateLimitAuth)
        const exceeded = counted && !counted.verdict.allowed
        // by network, because a device may change its address within its /64
        const own = exceeded && (await isKnown()) ? byAccount(`${request.network} ${account}`, rateLimitAuth) : counted
        return count(request, reply, own)
      },
      countTenant(request: FastifyRequest, reply: FastifyReply) {
        const max = tenantsPerDay * foundersPerAddress
        const detail = `${max} agencies a day may be made from one address`
        return countOnce(request, () =>
          count(request, reply, byFounder(request.network, { max, window_ms: dayMs }), detail)
        )
      },
      countDemand(request: FastifyRequest, reply: FastifyReply) {
        const detail = `an agency may change what it demands of its members ${demandsPerDay} times a day`
        const rate = { max: demandsPerDay, window_ms: dayMs }
        return countOnce(request, () => count(request, reply, byAgency(request.user.tenant_id, rate), detail))
      }
    }
    app.decorate('attempts', attempts)

    app.addHook('onRoute', (route) => {
      const { throttled, access } = route.config ?? {}
      if (!throttled) return
      const rate = { ...rateLimitAuth, max: rateLimitAuth.max * Number(throttled) }
      const countPerson = (request: FastifyRequest, reply: FastifyReply) =>
        count(request, reply, byRoute(`${route.method} ${route.url} ${request.user.user_id}`, rate))
      const hook = access === 'public' ? attempts.countAddress : countPerson
      // after the guard, which sets the caller
      route.onRequest = [...[route.onRequest ?? []].flat(), hook]
    })
  },
  { name: 'attempts', dependencies: ['addresses', 'counters', 'guard'] }
)

/** Adds a limit to the headers that earlier hooks have set. */
function appendHeaders(reply: FastifyReply, counted: Counted): void {
  const { policy, state } = rateHeaders([counted])
  const [policies, states] = [reply.getHeader('ratelimit-policy'), reply.getHeader('ratelimit')]
  reply.header('ratelimit-policy', policies === undefined ? policy : `${policies}, ${policy}`)
  reply.header('ratelimit', states === undefined ? state : `${states}, ${state}`)
}
