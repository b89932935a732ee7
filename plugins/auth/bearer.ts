import type { FastifyRequest } from 'fastify'
import fp from 'fastify-plugin'
import type { Bearer } from '../../src/auth/admission.ts'
import { keyIn } from '../../src/auth/api-keys/key-format.ts'
import type { AccessClaims } from '../../src/auth/claims.ts'
import { createTokenCache, schemeOf, type TokenScheme, tokenIn } from '../../src/auth/token-cache.ts'
import { invalidToken, Problem, tokenExpired, unauthenticated } from '../../src/http/problems.ts'

declare module 'fastify' {
  interface FastifyInstance {
    bearers: {
      /**
       * The claims of a person's valid bearer token, for a public route that treats signed-in people differently. The host may
       * belong to another tenant than the token. Undefined without a token. Throws the problem of an invalid token,
       * like other routes.
       */
      findLive(request: FastifyRequest): AccessClaims | undefined
      /**
       * The claims of a person's bearer token that this server has signed, also when it has expired or is revoked. Undefined
       * without a token.
       */
      findSigned(request: FastifyRequest): AccessClaims | undefined
    }
  }
  interface FastifyRequest {
    /** The verified bearer token of the request. Undefined when the request has none. */
    bearer: PresentedToken | undefined
    /** The API key of the request, when this process does not know it: `key-lookups` asks the database. */
    unknownKey: string | undefined
  }
}

type PresentedToken = Bearer & { scheme: TokenScheme }

export const cachedTokens = 20_000

/**
 * Reads and verifies the access token of each request (RFC 6750, 2.1), also of those that send a proof with it (RFC 9449,
 * 7.1): `proofs` checks these. Refuses nothing: `src/auth/admission.ts` decides.
 *
 * An API key (`agg_…`) is a bearer token too.
 *
 * Verified tokens are cached, because verification costs more than the rest of a request. Expiry and revocation are
 * checked on every cache hit, because they can change.
 */
export default fp(
  async (app) => {
    const verified = createTokenCache<AccessClaims>(cachedTokens)
    // a token of a key that was dropped must not be remembered
    app.secrets.follow(['jwtSecret'], () => verified.clear)
    const lookups = { hit: 0, miss: 0 }
    app.metrics.gauge('aggios_token_cache_entries', 'Access tokens that are remembered', verified.size)
    app.metrics.counter('aggios_token_cache_lookups_total', 'Access tokens that were looked up', () =>
      Object.entries(lookups).map(([result, value]) => ({ labels: { result }, value }))
    )

    function claimsIn(authorization: string): AccessClaims | undefined {
      const known = verified.find(authorization)
      if (known) {
        lookups.hit++
        if (known.exp * 1000 <= Date.now()) throw tokenExpired()
        return known
      }
      const token = tokenIn(authorization)
      if (token === undefined) return undefined
      lookups.miss++
      const claims = app.tokens.verify(token, { expired: 'refused' })
      verified.set(token, claims)
      return claims
    }

    function readBearer(authorization: string): PresentedToken | undefined {
      const scheme = schemeOf(authorization)
      try {
        const claims = claimsIn(authorization)
        return claims && { scheme, claims, problem: app.revocations.find(claims) ?? schemeProblem(scheme, claims) }
      } catch (err) {
        if (!(err instanceof Problem)) throw err
        return { scheme, claims: undefined, problem: err }
      }
    }

    function readKey(request: FastifyRequest, token: string): PresentedToken {
      const known = app.apiKeys.recall(token)
      if (!known) request.unknownKey = token
      return { scheme: 'Bearer', ...(known ?? { claims: undefined, problem: invalidToken() }) }
    }

    app.decorateRequest('bearer', undefined)
    app.decorateRequest('unknownKey', undefined)
    app.addHook('onRequest', (request, _reply, done) => {
      const { authorization } = request.headers
      if (authorization !== undefined) {
        const key = keyIn(authorization)
        request.bearer = key === undefined ? readBearer(authorization) : readKey(request, key)
      }
      done()
    })

    app.decorate('bearers', {
      findLive(request: FastifyRequest) {
        if (request.headers.authorization === undefined) return undefined
        if (!request.bearer) throw unauthenticated()
        const { claims, problem } = request.bearer
        if (problem) throw problem
        if (claims?.key) throw invalidToken()
        return claims
      },
      findSigned(request: FastifyRequest) {
        const { authorization } = request.headers
        if (authorization === undefined) return undefined
        const token = tokenIn(authorization)
        if (token === undefined) throw unauthenticated()
        const claims = app.tokens.verify(token, { expired: 'accepted' })
        const problem = claims.key ? invalidToken() : schemeProblem(schemeOf(authorization), claims)
        if (problem) throw problem
        return claims
      }
    })
  },
  { name: 'bearer', dependencies: ['tokens', 'api-keys', 'revocations', 'metrics'] }
)

/** The problem of a token with the scheme of the other kind of tokens. A bound token must never be enough alone. */
function schemeProblem(scheme: TokenScheme, { cnf }: AccessClaims): Problem | undefined {
  if (scheme === 'Bearer') {
    return cnf && invalidToken({ detail: 'send this token as DPoP, with a proof of its key' })
  }
  return cnf ? undefined : invalidToken({ detail: 'send this token as Bearer' })
}
