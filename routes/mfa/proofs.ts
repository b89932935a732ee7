import type { FastifyInstance, FastifyReply, FastifyRequest } from 'fastify'
import type { TenantTransaction } from '../../db/gate/gate.ts'
import { type PasskeyProof, usePasskey } from '../../db/queries/sign-in/passkeys.ts'
import { type FactorProof, type FactorRow, usableFactor, useFactor } from '../../db/queries/sign-in/second-factors.ts'
import type { ChallengePurpose } from '../../src/auth/passkeys/challenges.ts'
import { invalidMembers } from '../../src/http/field-errors.ts'
import type { FactorProof as FactorProofBody } from './schemas.ts'

/** A code or a passkey that was checked, and is used up by `useProof`. */
export type Proof = FactorProof | PasskeyProof
export type Person = { tenant_id: string; user_id: string; counts?: boolean }
/** A person who has a factor. */
export type Enrolled = FactorRow & { id: string }

/**
 * Checks the code or the passkey of a body, whichever it has, without using it up. `expected` is what a challenge must
 * have been made for. Attempts count for the account like wrong passwords.
 *
 * Throws `validation_failed` unless there is exactly one, `rate_limited`, `invalid_credentials` and `invalid_challenge`.
 */
export async function checkProof(
  app: FastifyInstance,
  request: FastifyRequest,
  reply: FastifyReply,
  { person, factor }: { person: Person; factor: Enrolled },
  { code, passkey }: FactorProofBody,
  expected: { purpose: ChallengePurpose; context: string }
) {
  requireOne({ code, passkey })
  if (passkey !== undefined) {
    return app.passkeys.check(request, reply, { ...person, email: factor.email }, expected, passkey)
  }
  return app.secondFactors.check(request, reply, person, usableFactor(factor), code as string)
}

/** Uses a proof up. Resolves to the moment, or to undefined when another request was first. */
export function useProof(
  trx: TenantTransaction,
  proof: Proof,
  { token, ...by }: { actor_id: string; session_id?: string; token?: string }
): Promise<Date | undefined> {
  // the challenge of a passkey has the id of the token, so it uses the token up as well
  if ('passkey_id' in proof) return usePasskey(trx, proof, by)
  return useFactor(trx, proof, { ...by, ...(token !== undefined && { token }) })
}

/** Throws `validation_failed` unless exactly one member is given. */
export function requireOne(members: Record<string, unknown>): void {
  if (Object.values(members).filter((value) => value !== undefined).length === 1) return
  throw invalidMembers([{ path: '/body', message: `must have exactly one of ${Object.keys(members).join(', ')}` }])
}
