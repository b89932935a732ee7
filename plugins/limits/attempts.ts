import type { FastifyReply, FastifyRequest } from 'fastify'
import fp from 'fastify-plugin'
import { type Counted, findExceeded, rateHeaders } from '../../src/limits/rate-headers.ts'
import type { CountAttempt } from './counters.ts'

declare module 'fastify' {
  interface FastifyInstance {
    attempts: {
      /** Counts an attempt from the request's address. Throws `rate_limited`. */
      countAddress(request: FastifyRequest, reply: FastifyReply): Promise<void>
      /**
       * Counts an attempt on one account from anywhere. Throws `rate_limited`. Where `isKnown` says that the request comes from the
       * account's own network, which is asked only when the count is exceeded, that network has a count of its own.
       */
      countAccount(
        request: FastifyRequest,
        reply: FastifyReply,
        account: string,
        isKnown?: () => Promise<boolean>
      ): Promise<void>
      /**
       * Counts a tenant that is about to be made from the request's address. Called within the transaction, where nothing else can
       * refuse it any more; counts once even if the transaction is retried. Throws `rate_limited`.
       */
      countTenant(request: FastifyRequest, reply: FastifyReply): Promise<void>
    }
  }
  interface FastifyContextConfig {
    /**
     * The route has a limit of its own, counted before the body is read. A public route: by address, RATE_LIMIT_AUTH for all
     * such routes together. Any other: by person, so many times RATE_LIMIT_AUTH for this route (`true`: once).
     */
    throttled?: boolean | number
  }
}

export const maxKeys = 20_000
/** People behind one address who may each make as many tenants as one may. */
const foundersPerAddress = 4
const dayMs = 86_400_000

/** Counts what is dear or secret: attempts to sign in, by address and by account; tenants that are made; throttled routes. */
export default fp(
  async (app) => {
    const { rateLimitAuth, tenantsPerDay } = app.config
    const byRoute = app.createAttemptCounter('route', maxKeys)
    const byAddress = app.createAttemptCounter('address', maxKeys)
    const byAccount = app.createAttemptCounter('account', maxKeys)
    const byFounder = app.createAttemptCounter('founder', maxKeys)
    const founders = new WeakMap<FastifyRequest, Promise<void>>()

    async function count(
      request: FastifyRequest,
      reply: FastifyReply,
      counting: Counted | undefined | ReturnType<CountAttempt>,
      detail?: string
    ): Promise<void> {
      const counted = await counting
      if (!counted) return
      // behind a disguise the reply must look like one of a host where nothing is attempted
      if (!request.disguise) append(reply, counted)
      const exceeded = findExceeded([counted], detail)
      if (exceeded) throw exceeded
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
        // by network and not by address: a device moves within its own /64 as it likes
        const own = exceeded && (await isKnown()) ? byAccount(`${request.network} ${account}`, rateLimitAuth) : counted
        return count(request, reply, own)
      },
      countTenant(request: FastifyRequest, reply: FastifyReply) {
        const max = tenantsPerDay * foundersPerAddress
        const detail = `${max} agencies a day may be made from one address`
        const counted =
          founders.get(request) ?? count(request, reply, byFounder(request.network, { max, window_ms: dayMs }), detail)
        founders.set(request, counted)
        return counted
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
      // behind the guard, which says who is calling
      route.onRequest = [...[route.onRequest ?? []].flat(), hook]
    })
  },
  { name: 'attempts', dependencies: ['addresses', 'counters', 'guard'] }
)

function append(reply: FastifyReply, counted: Counted): void {
  const { policy, state } = rateHeaders([counted])
  const [policies, states] = [reply.getHeader('ratelimit-policy'), reply.getHeader('ratelimit')]
  reply.header('ratelimit-policy', policies === undefined ? policy : `${policies}, ${policy}`)
  reply.header('ratelimit', states === undefined ? state : `${states}, ${state}`)
}
