import type { FastifyReply, FastifyRequest } from 'fastify'
import fp from 'fastify-plugin'
import { createProofNonces, nonceRenewalSeconds } from '../../src/auth/dpop/nonces.ts'
import { createProofReader } from '../../src/auth/dpop/proofs.ts'
import { tokenIn } from '../../src/auth/token-cache.ts'
import { invalidDpopProof, type Problem, useDpopNonce } from '../../src/http/problems.ts'
import { createKeyRing } from '../../src/keys.ts'
import { after } from '../../src/limits/after.ts'

declare module 'fastify' {
  interface FastifyRequest {
    /**
     * The thumbprint of the key that has signed the proof of this request: of every request with a token that needs one, and of
     * routes with `takesProof`. Null without a proof. A session that the request opens is bound to this key.
     */
    keyThumbprint: string | null
  }
  interface FastifyContextConfig {
    /** The route reads the proof of a request without a token too: it opens, renews or ends sessions. */
    takesProof?: true
  }
}

/** The keys that are remembered, of some 1 KB each. */
export const rememberedKeys = 5000

/**
 * Checks the proofs of possession of requests (DPoP, RFC 9449). A request without a proof, and with a token that needs none,
 * costs nothing.
 *
 * The proof of a token is a fact about that token, and is there before requests are counted: whoever has stolen a token
 * counts for their own address, and not for the person. The proof of a request without a token is checked after the guard,
 * so that nobody over a limit has signatures checked.
 */
export default fp(
  async (app) => {
    const { jwtSecret, nodeEnv } = app.config
    const nonces = createProofNonces(createKeyRing(jwtSecret, 'dpop nonce'))
    const reader = createProofReader(nonces, { keys: rememberedKeys })
    const outcomes = { accepted: 0, refused: 0, outdated: 0 }
    app.metrics.counter('aggios_dpop_proofs_total', 'Proofs of keys that were checked', () =>
      Object.entries(outcomes).map(([result, value]) => ({ labels: { result }, value }))
    )

    /** In production a proxy ends TLS, so clients see `https`, whether or not the proxy says so. */
    const originOf = (request: FastifyRequest) =>
      nodeEnv === 'production' ? `https://${request.headers.host}` : request.origin

    function refuse(detail: string): Problem {
      outcomes.refused++
      return invalidDpopProof({ detail })
    }

    function demandNonce(): Problem {
      outcomes.outdated++
      return useDpopNonce({ headers: { 'dpop-nonce': nonces.issue() } })
    }

    /** Uses up the proof of a request, and keeps its key. Returns the problem if there is one. */
    function check(
      request: FastifyRequest,
      reply: FastifyReply,
      token: string | undefined,
      key?: string
    ): Problem | undefined | Promise<Problem | undefined> {
      const header = request.headers.dpop
      if (typeof header !== 'string') return refuse('the token needs a proof in the DPoP header')
      const { method, originalUrl: url } = request
      const proof = reader.read(header, { method, origin: originOf(request), url, token }, key)
      if ('fault' in proof) return proof.fault === 'nonce' ? demandNonce() : refuse(proof.detail)
      return after(app.useProof(proof), (use) => {
        if (use === 'repeated') return refuse('the proof was used before')
        if (use === 'outdated') return demandNonce()
        outcomes.accepted++
        if (proof.second + nonceRenewalSeconds <= Date.now() / 1000) reply.header('dpop-nonce', nonces.issue())
        request.keyThumbprint = proof.key_thumbprint
        return undefined
      })
    }

    app.decorateRequest('keyThumbprint', null)

    app.addHook('onRequest', (request, reply, done) => {
      const { bearer } = request
      const key = bearer?.claims?.cnf?.jkt
      // a problem of the token itself is shown before one of its proof
      if (!bearer || key === undefined || bearer.problem) return done()
      const checked = check(request, reply, tokenIn(request.headers.authorization ?? ''), key)
      if (!(checked instanceof Promise)) {
        bearer.problem = checked
        return done()
      }
      checked.then((problem) => {
        bearer.problem = problem
        done()
      }, done)
    })

    app.addHook('onRoute', (route) => {
      if (!route.config?.takesProof) return
      const hook = async (request: FastifyRequest, reply: FastifyReply) => {
        const { headers, keyThumbprint } = request
        if (headers.dpop === undefined || keyThumbprint !== null) return
        const { authorization = '' } = headers
        const token = /^dpop /i.test(authorization) ? tokenIn(authorization) : undefined
        const problem = await check(request, reply, token)
        if (problem) throw problem
      }
      // after the guard
      route.onRequest = [...[route.onRequest ?? []].flat(), hook]
    })
  },
  { name: 'proofs', dependencies: ['bearer', 'proof-uses', 'config', 'metrics'] }
)
