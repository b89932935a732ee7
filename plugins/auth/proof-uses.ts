import fp from 'fastify-plugin'
import { nonceSeconds } from '../../src/auth/dpop/nonces.ts'
import type { Proof } from '../../src/auth/dpop/proofs.ts'
import { createProofUses, type ProofUse } from '../../src/auth/dpop/uses.ts'
import { clockToleranceSeconds } from '../../src/auth/token-life.ts'

declare module 'fastify' {
  interface FastifyInstance {
    proofUses: {
      /** Tells whether this process knows that a proof was used, and uses nothing up. */
      find(proof: Proof): ProofUse
      /** Uses a proof up, in all processes that share a Redis. A promise only when Redis is asked. Never rejects. */
      use(proof: Proof): ProofUse | Promise<ProofUse>
      /** The oldest second whose nonces are taken. It may be one to come. */
      oldestSecond(): number
    }
  }
}

/** The proofs that one process remembers, of some 100 bytes each. */
export const maxProofUses = 100_000

/**
 * Lets each proof be used once (RFC 9449, 11.1). Each process remembers what it has seen, and Redis what any of them has.
 * While Redis does not answer, a proof is good once in each process, until its nonce is too old.
 *
 * Redis may be empty when it is reached again, so the nonces from before are refused from then on, as after a start.
 */
export default fp(
  async (app) => {
    const { markUsed, onConnected } = app.shared
    const uses = createProofUses(maxProofUses)
    app.metrics.gauge('aggios_dpop_proofs', 'Proofs of keys that are remembered as used', uses.size)
    onConnected(() => uses.forgetAll())

    app.decorate('proofUses', {
      find: ({ id, second }: Proof) => uses.find(id, second),
      use({ id, second }: Proof) {
        const use = uses.use(id, second)
        if (use !== 'first' || !markUsed) return use
        // for as long as any process takes the nonce
        return markUsed(id, nonceSeconds + clockToleranceSeconds).then(
          (isFirst) => (isFirst ? 'first' : 'repeated'),
          () => 'first' as const
        )
      },
      oldestSecond: uses.oldestSecond
    })
  },
  { name: 'proof-uses', dependencies: ['metrics', 'redis'] }
)
