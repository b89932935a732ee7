import rateLimit, { normalizeIP } from '@fastify/rate-limit'
import type { FastifyReply, FastifyRequest } from 'fastify'
import fp from 'fastify-plugin'
import { LRUCache } from 'lru-cache'
import { rateLimited } from '../src/errors.ts'

declare module 'fastify' {
  interface FastifyInstance {
    throttle: {
      /** Counts an attempt from the request's address. Throws `rate_limited`. */
      address(request: FastifyRequest, reply: FastifyReply): Promise<void>
      /** Counts an attempt on one account from anywhere. Throws `rate_limited`, but not for an address that is known. */
      account(request: FastifyRequest, reply: FastifyReply, account: string): Promise<void>
      /** This address has shown that it belongs to the account: attempts from elsewhere no longer lock it out. */
      know(request: FastifyRequest, account: string): void
    }
  }
  interface FastifyRequest {
    throttleKey: string
  }
  interface FastifyContextConfig {
    /** Attempts are counted by address, before the body is read. */
    throttled?: boolean
  }
}

const cacheSize = 20_000

/**
 * Bounds guessing: attempts by address (IPv6 by /64), and by account, so that one account can't be tried from many
 * addresses. In memory, by process.
 */
export default fp(
  async (app) => {
    const { max, window_ms } = app.config.rateLimitAuth
    await app.register(rateLimit, { global: false, cache: cacheSize })
    app.decorateRequest('throttleKey', '')
    const seconds = window_ms / 1000
    const byAddress = app.createRateLimit({ max, timeWindow: window_ms })
    const byKey = (request: FastifyRequest) => request.throttleKey
    const byAccount = app.createRateLimit({ max, timeWindow: window_ms, keyGenerator: byKey })
    const byAccountAtHome = app.createRateLimit({ max, timeWindow: window_ms, keyGenerator: byKey })
    const known = new LRUCache<string, true>({ max: cacheSize })

    async function count(limit: typeof byAddress, name: string, request: FastifyRequest, reply: FastifyReply) {
      const result = await limit(request)
      if (result.isAllowed) return
      append(reply, 'ratelimit-policy', `"${name}";q=${max};w=${seconds}`)
      append(reply, 'ratelimit', `"${name}";r=${result.remaining};t=${result.ttlInSeconds}`)
      if (result.isExceeded) {
        throw rateLimited({ headers: { 'retry-after': String(Math.max(1, result.ttlInSeconds)) } })
      }
    }

    app.decorate('throttle', {
      async address(request: FastifyRequest, reply: FastifyReply) {
        if (max > 0) await count(byAddress, 'address', request, reply)
      },
      async account(request: FastifyRequest, reply: FastifyReply, account: string) {
        if (max === 0) return
        const home = homeOf(request, account)
        const atHome = known.has(home)
        request.throttleKey = atHome ? home : account
        await count(atHome ? byAccountAtHome : byAccount, 'account', request, reply)
      },
      know(request: FastifyRequest, account: string) {
        known.set(homeOf(request, account), true)
      }
    })

    app.addHook('onRoute', (route) => {
      if (!route.config?.throttled) return
      route.onRequest = [...[route.onRequest ?? []].flat(), app.throttle.address]
    })
  },
  { name: 'throttle', dependencies: ['config', 'authentication'] }
)

/** A network and the account it is known for. A device moves within its own /64 as it likes. */
function homeOf(request: FastifyRequest, account: string): string {
  return `${normalizeIP(request.ip, 64)} ${account}`
}

function append(reply: FastifyReply, name: string, value: string): void {
  const before = reply.getHeader(name)
  reply.header(name, before === undefined ? value : `${before}, ${value}`)
}
