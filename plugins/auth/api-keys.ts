import fp from 'fastify-plugin'
import { LRUCache } from 'lru-cache'
import { findKey } from '../../db/queries/sign-in/api-keys.ts'
import type { Bearer } from '../../src/auth/admission.ts'
import { digestOf, parseKey } from '../../src/auth/api-keys/key-format.ts'
import { keyReach, keyTokenSeconds } from '../../src/auth/api-keys/key-reach.ts'
import type { AccessClaims } from '../../src/auth/claims.ts'
import { invalidToken, type Problem, tenantSuspended, tokenExpired } from '../../src/http/problems.ts'

declare module 'fastify' {
  interface FastifyInstance {
    apiKeys: {
      /** What this process knows of a key, without I/O. Undefined when the database must be asked. */
      recall(token: string): Bearer | undefined
      /** Asks the database about a key. Callers that ask about one key at the same time share the question. */
      lookUp(token: string): Promise<Bearer>
    }
  }
}

export const rememberedKeys = 20_000
export const refusedKeys = 20_000
/** How long a key is remembered that was refused, so that a client that goes on with it asks the database rarely. */
export const refusalMs = 10_000

/**
 * The memory of API keys. A key is looked up when it is first used, and then remembered for as long as a token that it could
 * get. Expiry and revocation are checked on every use, because they can change.
 *
 * What the change feed has revoked is looked up again: after a rotation with a short overlap, the older secret goes on under
 * another `sid`.
 */
export default fp(
  async (app) => {
    const known = new LRUCache<string, AccessClaims>({ max: rememberedKeys })
    const refused = new LRUCache<string, Problem>({ max: refusedKeys, ttl: refusalMs })
    const pending = new Map<string, Promise<Bearer>>()
    let lookups = 0

    function refuse(token: string, problem: Problem): Bearer {
      refused.set(token, problem)
      return { claims: undefined, problem }
    }

    async function ask(token: string): Promise<Bearer> {
      const parts = parseKey(token)
      if (!parts) return { claims: undefined, problem: invalidToken() }
      lookups++
      const { tenant_id, id, secret } = parts
      const scope = { tenant_id, user_id: null, request: '' }
      const [found] = await app.gate.query(scope, findKey, { tenant_id, id, digest: digestOf(secret) })
      if (!found) return refuse(token, invalidToken())
      const { role, permissions, cidrs, sid, seconds_left, status } = found
      if (seconds_left !== null && seconds_left <= 0) {
        return refuse(token, tokenExpired({ detail: 'this API key has expired' }))
      }
      const now = Date.now() / 1000
      const claims = {
        ...{ user_id: id, email: '', tenant_id, role, sid, iss: '', aud: '', iat: now, jti: sid },
        exp: now + Math.min(keyTokenSeconds, seconds_left ?? keyTokenSeconds),
        key: keyReach(permissions, cidrs)
      }
      if (status === 'suspended') return { claims, problem: tenantSuspended() }
      known.set(token, claims)
      return { claims, problem: app.revocations.find(claims) }
    }

    app.decorate('apiKeys', {
      recall(token: string): Bearer | undefined {
        const claims = known.get(token)
        if (claims && claims.exp * 1000 > Date.now()) {
          const problem = app.revocations.find(claims)
          if (problem?.kind.code !== 'session_revoked') return { claims, problem }
          known.delete(token)
        }
        const problem = refused.get(token)
        if (problem) return { claims: undefined, problem }
        return parseKey(token) ? undefined : { claims: undefined, problem: invalidToken() }
      },
      lookUp(token: string): Promise<Bearer> {
        const asked = pending.get(token)
        if (asked) return asked
        const asking = ask(token).finally(() => pending.delete(token))
        pending.set(token, asking)
        return asking
      }
    })
    app.metrics.gauge('aggios_api_keys', 'API keys that are remembered', () => known.size)
    app.metrics.counter('aggios_api_key_lookups_total', 'API keys that the database was asked about', () => lookups)
  },
  { name: 'api-keys', dependencies: ['database', 'revocations', 'metrics'] }
)
