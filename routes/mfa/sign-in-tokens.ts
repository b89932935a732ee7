import type { FastifyInstance, FastifyRequest } from 'fastify'
import { queryIn, type TenantTransaction } from '../../db/gate/gate.ts'
import { noteSessionOfCode } from '../../db/queries/sign-in/identities.ts'
import { factorsOf, myFactors } from '../../db/queries/sign-in/second-factors.ts'
import { keyRefusal } from '../../src/auth/dpop/refusals.ts'
import type { MfaToken } from '../../src/auth/mfa-tokens.ts'
import {
  invalidMfaToken,
  type Problem,
  providerRequired,
  tenantMismatch,
  tenantSuspended
} from '../../src/http/problems.ts'
import type { MfaEnrollment } from './schemas.ts'

/*
 * What completes a sign-in, by a factor that there is or by a new one, asks of its token.
 */

export type MfaRequest = FastifyRequest<{ Body: MfaEnrollment }>

/** The token of a sign-in that waits for a factor. Throws `invalid_mfa_token`, `tenant_mismatch` and `invalid_dpop_proof`. */
export function requireToken(app: FastifyInstance, request: MfaRequest): MfaToken {
  const token = app.mfaTokens.verify(request.body.mfa_token)
  if (!token) throw invalidMfaToken()
  if (request.tenant && request.tenant.id !== token.tenant_id) throw tenantMismatch()
  // whoever has stolen the token must not bind the session to another key, or to none
  if (token.key_thumbprint !== null && token.key_thumbprint !== request.keyThumbprint) {
    throw keyRefusal(request.keyThumbprint, 'the sign-in began with a key: send a proof that this key has signed')
  }
  return token
}

/** The person of the token, if the password is still the one that was proved. */
export async function requirePerson(app: FastifyInstance, request: FastifyRequest, token: MfaToken) {
  const row = await app.secondFactors.find(request, token)
  if (!row || row.disabled_at || row.password_version !== token.password_version) throw invalidMfaToken()
  return row
}

/**
 * The person of a token to set up a first factor, who must have none. Throws `invalid_mfa_token` otherwise, also for a sign-in
 * through an agency's own provider: the agency must not set up what holds in all agencies of the person.
 */
export async function requireNewcomer(app: FastifyInstance, request: MfaRequest) {
  const token = requireToken(app, request)
  if (token.purpose !== 'enrollment' || token.provider_id !== null) throw invalidMfaToken()
  const row = await requirePerson(app, request, token)
  if (factorsOf(row).length > 0) throw invalidMfaToken()
  return { token, row }
}

/**
 * Throws `invalid_mfa_token`, which rolls back, unless the factor that was just stored is the only one. Call it in the
 * transaction that has stored it, which holds the lock of the person's factors: of an app and a passkey that are set up with
 * one token at the same moment, one stays.
 */
export async function requireFirst(trx: TenantTransaction): Promise<void> {
  const [row] = await queryIn(trx, myFactors, {})
  if (!row || row.passkeys + (row.confirmed ? 1 : 0) !== 1) throw invalidMfaToken()
}

/**
 * Throws `invalid_mfa_token`, which rolls back, when the token was got by the code of a provider, and the code was used again
 * meanwhile. Call it in the transaction that has opened the session: a later use of the code ends it.
 */
export async function requireUnreplayed(trx: TenantTransaction, { id, by }: MfaToken, session: string): Promise<void> {
  if (by !== null && !(await noteSessionOfCode(trx, id, session))) throw invalidMfaToken()
}

export function refusalOf(admission: { outcome: string; provider: string | null } | undefined): Problem {
  if (admission?.outcome === 'suspended') return tenantSuspended()
  if (admission?.outcome === 'provider_required') {
    return providerRequired({ extensions: { provider: admission.provider } })
  }
  return invalidMfaToken()
}
