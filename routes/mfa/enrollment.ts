import type { FastifyInstance, FastifyRequest } from 'fastify'
import { v4 as randomUuid } from 'uuid'
import { queryIn } from '../../db/gate/gate.ts'
import { openSession } from '../../db/queries/sessions.ts'
import { addPasskey, maxPasskeys } from '../../db/queries/sign-in/passkeys.ts'
import { startFactor } from '../../db/queries/sign-in/second-factors.ts'
import { revocationSeconds } from '../../src/auth/token-life.ts'
import { conflict, invalidChallenge, invalidMfaToken, type Problem } from '../../src/http/problems.ts'
import { createCodes } from './factor.ts'
import type { PasskeyEnrollment } from './schemas.ts'
import { type MfaRequest, refusalOf, requireFirst, requireNewcomer, requireUnreplayed } from './sign-in-tokens.ts'

/**
 * Gives a secret to somebody whose password was right, who has no factor, and whose agency demands one. Throws
 * `invalid_mfa_token` when they have one by now.
 */
export async function enrollAtSignIn(app: FastifyInstance, request: MfaRequest) {
  const { token, row } = await requireNewcomer(app, request)
  const { stored, shown } = app.secondFactors.create(token.user_id, row.email)
  if (!(await request.withTenant((trx) => startFactor(trx, stored), token))) throw invalidMfaToken()
  return shown
}

/** What a browser needs to make the first passkey of somebody whose agency demands a factor. */
export async function offerNewPasskey(app: FastifyInstance, request: MfaRequest) {
  const { token, row } = await requireNewcomer(app, request)
  // with the id of the token, so that a sign-in uses both up
  const { id, tenant_id, user_id } = token
  return app.passkeys.offerRegistration(request, { tenant_id, user_id, context: id, id }, row)
}

/**
 * Stores the first passkey of somebody whose agency demands a factor, and opens the session that the sign-in was for, in one
 * transaction: of any number of requests with one token, in whichever processes, one succeeds. Every other session ends,
 * because it was opened without the passkey.
 *
 * Throws `invalid_mfa_token` when the sign-in has to begin anew, `invalid_challenge` and `invalid_passkey`. Nothing has changed
 * then.
 */
export async function completeWithNewPasskey(
  app: FastifyInstance,
  request: FastifyRequest<{ Body: PasskeyEnrollment }>
) {
  const { token } = await requireNewcomer(app, request)
  const { id, tenant_id, user_id, password_version, by, provider_id } = token
  const { name, passkey } = request.body
  const checked = await app.passkeys.checkRegistration({ tenant_id, user_id, context: id, id }, name, passkey)
  const { codes, recovery_codes } = createCodes(user_id)
  const person = { tenant_id, user_id }
  const key_thumbprint = request.keyThumbprint
  const token_seconds = revocationSeconds(app.config)
  const admission = await request.withTenant(async (trx) => {
    const recovery = { factor_id: randomUuid(), codes: recovery_codes }
    const added = await addPasskey(trx, checked, recovery, { actor_id: user_id, token_seconds })
    // the throws roll back
    if (!added.at) throw added.outcome === 'used' ? invalidMfaToken() : additionRefusal(added.outcome)
    await requireFirst(trx)
    const [opened] = await queryIn(trx, openSession, {
      ...{ ...person, password_version, token_seconds, session_seconds: app.config.sessionMaxAge },
      ...{ action: 'session.opened', authenticated_at: null, mfa_at: added.at, by, provider_id, key_thumbprint }
    })
    if (opened?.outcome !== 'opened') throw refusalOf(opened)
    await requireUnreplayed(trx, token, opened.session_id)
    return opened
  }, person)
  await app.revocations.readNow()
  const { email, role, session_id: sid } = admission
  return { ...app.tokens.issue({ ...person, email, role, sid, key_thumbprint }, 0), ...codes }
}

/** The problem of a passkey that was not stored. */
export function additionRefusal(outcome: 'used' | 'full' | 'taken'): Problem {
  if (outcome === 'used') return invalidChallenge()
  const full = `a person has at most ${maxPasskeys} passkeys: remove one first`
  return conflict({ detail: outcome === 'full' ? full : 'this passkey was added before' })
}
