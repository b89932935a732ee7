import jwt from '@fastify/jwt'
import { type Static, Type } from '@sinclair/typebox'
import { TypeCompiler } from '@sinclair/typebox/compiler'
import type { FastifyRequest, RouteOptions } from 'fastify'
import fp from 'fastify-plugin'
import { v4 as randomUuid } from 'uuid'
import { recordDenial } from '../../db/queries/audit.ts'
import { createKeyRing } from '../../src/auth/keys.ts'
import { createRefreshTokens, type RefreshToken } from '../../src/auth/refresh-tokens.ts'
import { type Access, allows, type Role, roles } from '../../src/auth/roles.ts'
import { createTokenCache } from '../../src/auth/token-cache.ts'
import { clockToleranceSeconds } from '../../src/auth/token-life.ts'
import { withoutStacks } from '../../src/expected-error.ts'
import {
  forbidden,
  invalidToken,
  Problem,
  tenantMismatch,
  tenantNotFound,
  tenantSuspended,
  tokenExpired,
  unauthenticated
} from '../../src/http/problems.ts'

const uuid = '^[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}$'

/** What an access token says. Every claim is demanded. */
export const AccessClaims = Type.Object({
  user_id: Type.String({ pattern: uuid }),
  email: Type.String(),
  tenant_id: Type.String({ pattern: uuid }),
  role: Type.Unsafe<Role>({ ...Type.Union(roles.map((role) => Type.Literal(role))) }),
  sid: Type.String({ pattern: uuid }),
  iss: Type.String(),
  aud: Type.String(),
  iat: Type.Integer(),
  // the last second that a date in RFC 3339 can name
  exp: Type.Integer({ maximum: 253_402_300_799 }),
  jti: Type.String({ minLength: 1 })
})
export type AccessClaims = Static<typeof AccessClaims>

/** Who a token pair is for. */
export type TokenSubject = Pick<AccessClaims, 'user_id' | 'email' | 'tenant_id' | 'role' | 'sid'>

export type TokenReply = { access_token: string; refresh_token: string; token_type: 'Bearer'; expires_in: number }

/** The claims of a token that this server signed and that has not expired, and why it is not good all the same. */
export type Bearer = { claims: AccessClaims; problem: Problem | undefined } | { claims: undefined; problem: Problem }

declare module '@fastify/jwt' {
  interface FastifyJWT {
    namespaces: string
    user: AccessClaims
  }
}

declare module 'fastify' {
  interface FastifyInstance {
    tokens: {
      /** An access token and the `counter`-th refresh token of the session. */
      issue(subject: TokenSubject, counter: number): TokenReply
      /** The content of a refresh token that this server issued, or undefined. */
      verifyRefresh(token: string): RefreshToken | undefined
      /**
       * The claims of a bearer that is good, for a route that is public and wants to know. Of whichever tenant: no host has to
       * agree. Undefined without one; throws like any route for one that is not good.
       */
      findLive(request: FastifyRequest): AccessClaims | undefined
      /** The claims of the request's bearer if this server signed it, expired and revoked or not; undefined without one. */
      findSigned(request: FastifyRequest): AccessClaims | undefined
    }
  }
  interface FastifyRequest {
    /** What came as a bearer token, read once and from memory; undefined where none did. */
    bearer: Bearer | undefined
    /** Somebody whose token is good and who was refused all the same. */
    denied: AccessClaims | undefined
  }
  interface FastifyInstance {
    /** What a suspended tenant's host answers: 403 to its members, and to everybody else that there is no such tenant. */
    refuseSuspended(request: FastifyRequest): Problem
  }
  interface FastifyContextConfig {
    /** Who may call the route. Guard, OpenAPI `security` and `x-authz` derive from this one word. */
    access?: Access
    /** Answers also where others say 404 or 421: on `any` host, or on that of a `suspended` tenant. */
    host?: 'any' | 'suspended'
  }
}

export const cachedTokens = 20_000
const maxTokenLength = 4096
const bearer = /^bearer ([A-Za-z0-9._~+/-]+=*)$/i

/**
 * Signs and verifies tokens, reads the bearer of each request, and puts a guard before every route, which decides when host and
 * limits are known too. A route that does not say who may call it stops the boot.
 */
export default fp(
  async (app) => {
    const { accessTokenTtl, baseDomain, jwtSecret } = app.config
    const keys = createKeyRing(jwtSecret, 'access token')
    const refreshTokens = createRefreshTokens(keys)
    const issuer = `https://api.${baseDomain}`
    const claimsOf = TypeCompiler.Compile(AccessClaims)
    const verified = createTokenCache<AccessClaims>(cachedTokens)
    const lookups = { hit: 0, miss: 0 }
    app.metrics.gauge('aggios_token_cache_entries', 'Access tokens that are remembered', verified.size)
    app.metrics.counter('aggios_token_cache_lookups_total', 'Access tokens that were looked up', () =>
      Object.entries(lookups).map(([result, value]) => ({ labels: { result }, value }))
    )

    for (const key of keys.byId.values()) {
      const verify = {
        algorithms: ['HS256' as const],
        allowedIss: issuer,
        allowedAud: baseDomain,
        requiredClaims: Object.keys(AccessClaims.properties),
        cache: false
      }
      const sign = { algorithm: 'HS256' as const, kid: key.id, header: { alg: 'HS256', typ: 'at+jwt' } }
      await app.register(jwt, { namespace: key.id, secret: key.secret, sign, verify })
      await app.register(jwt, {
        namespace: anyAge(key.id),
        secret: key.secret,
        sign,
        verify: { ...verify, ignoreExpiration: true }
      })
    }

    /** Throws `invalid_token` or `token_expired`. */
    function verify(token: string, { expired }: { expired: 'refused' | 'accepted' }): AccessClaims {
      const keyId = token.length <= maxTokenLength ? findKeyId(token) : undefined
      if (keyId === undefined || !keys.byId.has(keyId) || !isCanonical(token)) throw invalidToken()
      let claims: unknown
      try {
        claims = withoutStacks(() => app.jwt[expired === 'accepted' ? anyAge(keyId) : keyId]?.verify(token))
      } catch (err) {
        const { code } = err as { code?: string }
        throw code === 'FAST_JWT_EXPIRED' ? tokenExpired() : invalidToken({ cause: err })
      }
      if (!claimsOf.Check(claims) || claims.iat > Date.now() / 1000 + clockToleranceSeconds) throw invalidToken()
      // revocations live as long as tokens do now, so one that was made to live longer must not outlive them
      claims.exp = Math.min(claims.exp, claims.iat + accessTokenTtl)
      if (expired === 'refused' && claims.exp * 1000 <= Date.now()) throw tokenExpired()
      return claims
    }

    /** What is remembered of a token is found by all of it; what can change is checked again on every hit. */
    function claimsIn(authorization: string): AccessClaims | undefined {
      const known = verified.find(authorization)
      if (known) {
        lookups.hit++
        if (known.exp * 1000 <= Date.now()) throw tokenExpired()
        return known
      }
      const token = bearer.exec(authorization)?.[1]
      if (token === undefined) return undefined
      lookups.miss++
      const claims = verify(token, { expired: 'refused' })
      verified.set(token, claims)
      return claims
    }

    function readBearer(authorization: string): Bearer | undefined {
      try {
        const claims = claimsIn(authorization)
        return claims && { claims, problem: app.revocations.find(claims) }
      } catch (err) {
        if (!(err instanceof Problem)) throw err
        return { claims: undefined, problem: err }
      }
    }

    /** The claims of a bearer that is good here and now. Host and token must agree before anything is looked up. */
    function authenticate(request: FastifyRequest): AccessClaims {
      if (!request.bearer) throw unauthenticated()
      const { claims, problem } = request.bearer
      if (!claims) throw problem
      if (request.tenant && request.tenant.id !== claims.tenant_id) {
        // a token that no longer counts is nobody's attempt
        if (!problem) request.denied = claims
        throw tenantMismatch()
      }
      if (problem) throw problem
      if (request.tenant?.status === 'suspended') throw tenantSuspended()
      return claims
    }

    /** To everybody but its members a suspended tenant is not there. */
    function refuseSuspended(request: FastifyRequest): Problem {
      try {
        authenticate(request)
      } catch (err) {
        if (err instanceof Problem && err.kind.code === 'tenant_suspended') return err
      }
      // that it is there must not show in the audit log of who asked either
      request.denied = undefined
      return tenantNotFound()
    }

    function admit(request: FastifyRequest, config: RouteOptions['config']): void {
      const { access, host } = config as { access: Access; host?: 'any' | 'suspended' }
      if (request.refused) throw request.refused
      if (request.hostProblem && host !== 'any') throw request.hostProblem
      if (request.tenant?.status === 'suspended' && host === undefined) throw refuseSuspended(request)
      if (access === 'public') return
      // for a listener of its own; on the public one nobody is internal
      if (access === 'internal') throw forbidden()
      const claims = authenticate(request)
      if (!allows(access, claims.role)) {
        request.denied = claims
        throw forbidden()
      }
      request.user = claims
    }

    app.decorateRequest('bearer', undefined)
    app.addHook('onRequest', (request, _reply, done) => {
      const { authorization } = request.headers
      if (authorization !== undefined) request.bearer = readBearer(authorization)
      done()
    })

    app.decorateRequest('denied', undefined)
    async function recordAttempt(request: FastifyRequest, caller: AccessClaims): Promise<void> {
      const attempt = { session_id: caller.sid, method: request.method, route: request.routeOptions.url ?? '' }
      try {
        await request.tenantQuery(recordDenial, attempt, caller)
      } catch (err) {
        request.log.warn({ err }, 'a denied attempt could not be recorded')
      }
    }
    // not when the reply has been read: whoever goes away before leaves no less of a trace
    app.addHook('onSend', (request, reply, _payload, done) => {
      const caller = request.denied ?? (reply.statusCode === 403 ? request.user : undefined)
      if (caller) recordAttempt(request, caller)
      done()
    })

    const undeclared: string[] = []
    const configs: { route: string; config: NonNullable<RouteOptions['config']> }[] = []
    app.addHook('onRoute', (route) => {
      route.config ??= {}
      const { config } = route
      configs.push({ route: `${route.method} ${route.url}`, config })
      const guard = (request: FastifyRequest, _reply: unknown, done: (err?: Error) => void) => {
        try {
          admit(request, config)
        } catch (err) {
          return done(err as Error)
        }
        done()
      }
      route.onRequest = [guard, ...[route.onRequest ?? []].flat()]
    })
    app.addHook('onReady', async () => {
      undeclared.push(...configs.filter(({ config }) => !config.access).map(({ route }) => route))
      if (undeclared.length > 0) throw new Error(`who may call ${undeclared.join(', ')}? config.access is missing`)
    })

    app.decorate('refuseSuspended', refuseSuspended)
    app.decorate('tokens', {
      issue(subject: TokenSubject, counter: number): TokenReply {
        const issuedAt = Math.floor(Date.now() / 1000)
        const { user_id, email, tenant_id, role, sid } = subject
        const claims = {
          ...{ user_id, email, tenant_id, role, sid },
          ...{ iss: issuer, aud: baseDomain, iat: issuedAt, exp: issuedAt + accessTokenTtl, jti: randomUuid() }
        }
        return {
          access_token: (app.jwt[keys.first.id] as NonNullable<(typeof app.jwt)[string]>).sign(claims),
          refresh_token: refreshTokens.issue({ tenant_id, family: sid, counter }),
          token_type: 'Bearer',
          expires_in: accessTokenTtl
        }
      },
      verifyRefresh: refreshTokens.verify,
      findLive(request: FastifyRequest) {
        if (request.headers.authorization === undefined) return undefined
        if (!request.bearer) throw unauthenticated()
        const { claims, problem } = request.bearer
        if (problem) throw problem
        return claims
      },
      findSigned(request: FastifyRequest) {
        const { authorization } = request.headers
        if (authorization === undefined) return undefined
        const token = bearer.exec(authorization)?.[1]
        if (token === undefined) throw unauthenticated()
        return verify(token, { expired: 'accepted' })
      }
    })
  },
  { name: 'authentication', dependencies: ['revocations', 'metrics'] }
)

/** base64url has several spellings of the same bytes where they don't fill the last character; only ours is the token. */
function isCanonical(token: string): boolean {
  return token.split('.').every((part) => Buffer.from(part, 'base64url').toString('base64url') === part)
}

const anyAge = (keyId: string) => `${keyId} of any age`

/** Nothing but alg, typ and kid may stand in the header: whatever else it asks for (crit, jku, jwk, …) we would ignore. */
function findKeyId(token: string): string | undefined {
  try {
    const header = JSON.parse(Buffer.from(token.slice(0, token.indexOf('.')), 'base64url').toString())
    const { alg, typ, kid, ...others } = header
    const ours = alg === 'HS256' && typ === 'at+jwt' && typeof kid === 'string' && Object.keys(others).length === 0
    return ours ? kid : undefined
  } catch {
    return undefined
  }
}
