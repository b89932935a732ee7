import type { FastifyReply, FastifyRequest } from 'fastify'
import fp from 'fastify-plugin'
import { createProofNonces, nonceRenewalSeconds } from '../../src/auth/dpop/nonces.ts'
import { createProofReader, type Proof } from '../../src/auth/dpop/proofs.ts'
import { anotherKey, boundSession, keyRefusal } from '../../src/auth/dpop/refusals.ts'
import type { ProofUse } from '../../src/auth/dpop/uses.ts'
import { tokenIn } from '../../src/auth/token-cache.ts'
import { invalidDpopProof, type Problem, useDpopNonce } from '../../src/http/problems.ts'
import { createKeyRing } from '../../src/keys.ts'
import { after } from '../../src/limits/after.ts'

declare module 'fastify' {
  interface FastifyInstance {
    proofs: {
      /**
       * Uses up the proof that was read with the token of a request, and keeps its key. Returns the problem if there is one.
       */
      spend(request: FastifyRequest, reply: FastifyReply): Problem | undefined | Promise<Problem | undefined>
      /**
       * Reads the proof of a request whose token was found in its body, and throws unless the key of that token has signed it.
       * Null: any key will do, or none. Call it only after the token was verified, and compared with the host: whoever has
       * such a token knows its agency, so the problem is shown on the host of a suspended one too.
       */
      requireKey(request: FastifyRequest, reply: FastifyReply, key_thumbprint: string | null): Promise<void>
    }
  }
  interface FastifyRequest {
    /**
     * The thumbprint of the key that has signed the proof of this request: of every request with a token that needs one, and of
     * routes with `takesProof`. Null without a proof. A session that the request opens is bound to this key.
     */
    keyThumbprint: string | null
    /** The valid proof of the request, from when it was read until it is used up. */
    unspentProof: Proof | undefined
  }
  interface FastifyContextConfig {
    /**
     * The route reads the proof of a request without a token too: it opens, renews or ends sessions. `after_token`: the handler
     * does it with `requireKey`.
     */
    takesProof?: true | 'after_token'
  }
}

/** The keys that are remembered, of some 1 KB each. */
export const rememberedKeys = 5000

/**
 * Checks the proofs of possession of requests (DPoP, RFC 9449). A request without a proof, and with a token that needs none,
 * costs nothing.
 *
 * The proof of a token is a fact about that token, and is read before requests are counted: whoever has stolen a token
 * counts for their own address, and not for the person. It is used up after that (`spent-proofs`), so that nobody over a
 * limit fills the memory of proofs. The proof of a request without a token is checked after the guard, so that nobody over a
 * limit has signatures checked. Routes that anybody may call, and that take no proof, read none.
 */
export default fp(
  async (app) => {
    const { nodeEnv } = app.config
    const nonces = app.secrets.following('jwtSecret', (secrets) =>
      createProofNonces(createKeyRing(secrets, 'dpop nonce'))
    )
    const reader = createProofReader(nonces, { keys: rememberedKeys })
    const outcomes = { accepted: 0, refused: 0, outdated: 0 }
    app.metrics.counter('aggios_dpop_proofs_total', 'Proofs of keys that were checked', () =>
      Object.entries(outcomes).map(([result, value]) => ({ labels: { result }, value }))
    )

    /** In production a proxy ends TLS, so clients see `https`, whether or not the proxy says so. */
    const originOf = (request: FastifyRequest) =>
      nodeEnv === 'production' ? `https://${request.headers.host}` : request.origin

    /** A nonce that this process takes. It may have forgotten the proofs of this very second. */
    const issueNonce = () => nonces.issue(Math.max(Date.now(), app.proofUses.oldestSecond() * 1000))

    function refuse(problem: Problem): Problem {
      outcomes.refused++
      return problem
    }

    function refuseUse(use: Exclude<ProofUse, 'first'>): Problem {
      if (use === 'repeated') return refuse(invalidDpopProof({ detail: 'the proof was used before' }))
      outcomes.outdated++
      return useDpopNonce({ headers: { 'dpop-nonce': issueNonce() } })
    }

    /** Reads the proof of a request, and keeps it. Returns the problem if there is one. */
    function read(request: FastifyRequest, token: string | undefined, key?: string): Problem | undefined {
      const header = request.headers.dpop
      if (typeof header !== 'string') return refuse(needsProof())
      const { method, originalUrl: url } = request
      const proof = reader.read(header, { method, origin: originOf(request), url, token }, key)
      if ('fault' in proof) {
        if (proof.fault === 'nonce') return refuseUse('outdated')
        const { fault, detail } = proof
        return refuse(fault === 'key' ? anotherKey(detail) : invalidDpopProof({ detail }))
      }
      // somebody who shows a used proof has none, and must not count for the person
      const use = app.proofUses.find(proof)
      if (use !== 'first') return refuseUse(use)
      request.unspentProof = proof
      return undefined
    }

    function spend(request: FastifyRequest, reply: FastifyReply): Problem | undefined | Promise<Problem | undefined> {
      const { unspentProof: proof } = request
      if (!proof) return undefined
      request.unspentProof = undefined
      return after(app.proofUses.use(proof), (use) => {
        if (use !== 'first') return refuseUse(use)
        outcomes.accepted++
        if (proof.second + nonceRenewalSeconds <= Date.now() / 1000) reply.header('dpop-nonce', issueNonce())
        request.keyThumbprint = proof.key_thumbprint
        return undefined
      })
    }

    /** Reads and uses up the proof of a request that was not read with its token. Returns the problem if there is one. */
    async function check(request: FastifyRequest, reply: FastifyReply): Promise<Problem | undefined> {
      const { headers, keyThumbprint } = request
      if (headers.dpop === undefined || keyThumbprint !== null) return undefined
      const { authorization = '' } = headers
      const token = /^dpop /i.test(authorization) ? tokenIn(authorization) : undefined
      return read(request, token) ?? (await spend(request, reply))
    }

    app.decorateRequest('keyThumbprint', null)
    app.decorateRequest('unspentProof', undefined)

    app.addHook('onRequest', (request, _reply, done) => {
      const { bearer } = request
      const key = bearer?.claims?.cnf?.jkt
      // a problem of the token itself is shown before one of its proof
      if (!bearer || key === undefined || bearer.problem) return done()
      const { access, takesProof } = request.routeOptions.config ?? {}
      if (access === 'public' && !takesProof) bearer.problem = needsProof()
      else bearer.problem = read(request, tokenIn(request.headers.authorization ?? ''), key)
      done()
    })

    app.addHook('onRoute', (route) => {
      if (route.config?.takesProof !== true) return
      const hook = async (request: FastifyRequest, reply: FastifyReply) => {
        const problem = await check(request, reply)
        if (problem) throw problem
      }
      // after the guard
      route.onRequest = [...[route.onRequest ?? []].flat(), hook]
    })

    app.decorate('proofs', {
      spend,
      async requireKey(request: FastifyRequest, reply: FastifyReply, key_thumbprint: string | null) {
        const problem = (await check(request, reply)) ?? keyProblem(key_thumbprint, request)
        if (!problem) return
        request.disguise = undefined
        throw problem
      }
    })
  },
  { name: 'proofs', dependencies: ['bearer', 'proof-uses', 'config', 'metrics'] }
)

const needsProof = () => invalidDpopProof({ detail: 'the token needs a proof in the DPoP header' })

function keyProblem(key_thumbprint: string | null, { keyThumbprint }: FastifyRequest): Problem | undefined {
  if (key_thumbprint === null || key_thumbprint === keyThumbprint) return undefined
  return keyRefusal(keyThumbprint, boundSession)
}
