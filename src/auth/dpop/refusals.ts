import { invalidDpopProof, type Problem } from '../../http/problems.ts'

export const boundSession = 'the session is bound to a key: send a proof that this key has signed'

/** The refusal of a proof by another key. `reason` tells clients that no other proof of their key will do. */
export function anotherKey(detail: string): Problem {
  return invalidDpopProof({ detail, extensions: { reason: 'another_key' } })
}

/** The refusal of a request without a proof of one key. `signed` is the key of the proof that came, and null without one. */
export function keyRefusal(signed: string | null, detail: string): Problem {
  return signed === null ? invalidDpopProof({ detail }) : anotherKey(detail)
}
