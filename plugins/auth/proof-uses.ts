import fp from 'fastify-plugin'
import { nonceSeconds } from '../../src/auth/dpop/nonces.ts'
import type { Proof } from '../../src/auth/dpop/proofs.ts'
import { createProofUses, type ProofUse } from '../../src/auth/dpop/uses.ts'
import { clockToleranceSeconds } from '../../src/auth/token-life.ts'

declare module 'fastify' {
  interface FastifyInstance {
    /** Uses a proof up, in all processes that share a Redis. A promise only when Redis is asked. Never rejects. */
    useProof(proof: Proof): ProofUse | Promise<ProofUse>
  }
}

/** The proofs that one process remembers, of some 100 bytes each. */
export const maxProofUses = 100_000

/**
 * Lets each proof be used once (RFC 9449, 11.1). Each process remembers what it has seen, and Redis what any of them has.
 * While Redis does not answer, a proof is good once in each process, until its nonce is too old.
 */
export default fp(
  async (app) => {
    const { markUsed } = app.shared
    const uses = createProofUses(maxProofUses)
    app.metrics.gauge('aggios_dpop_proofs', 'Proofs of keys that are remembered as used', uses.size)

    app.decorate('useProof', ({ id, second }: Proof) => {
      const use = uses.use(id, second)
      if (use !== 'first' || !markUsed) return use
      // for as long as any process takes the nonce
      return markUsed(id, nonceSeconds + clockToleranceSeconds).then(
        (isFirst) => (isFirst ? 'first' : 'repeated'),
        () => 'first' as const
      )
    })
  },
  { name: 'proof-uses', dependencies: ['metrics', 'redis'] }
)
