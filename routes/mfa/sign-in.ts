import type { FastifyInstance, FastifyReply, FastifyRequest } from 'fastify'
import { queryIn, type TenantTransaction } from '../../db/gate/gate.ts'
import { recordRefusedSignIn } from '../../db/queries/audit.ts'
import { openSession } from '../../db/queries/sessions.ts'
import { enableFactor, factorsOf } from '../../db/queries/sign-in/second-factors.ts'
import { createRecoveryCodes, recoveryDigest } from '../../src/auth/one-time-codes.ts'
import { revocationSeconds } from '../../src/auth/token-life.ts'
import { conflict, invalidMfaToken, Problem } from '../../src/http/problems.ts'
import { checkProof, requireOne, useProof } from './proofs.ts'
import type { MfaSignIn } from './schemas.ts'
import {
  type MfaRequest,
  refusalOf,
  requireFirst,
  requirePerson,
  requireToken,
  requireUnreplayed
} from './sign-in-tokens.ts'

/**
 * Completes a sign-in whose password was right: with a code or a passkey of the person, or with the first code of an app
 * that is enrolled on the way. The session is one of the tenant that the sign-in chose.
 *
 * Throws `invalid_credentials` for a wrong code; the token can be used again then. Throws `invalid_mfa_token` when the
 * sign-in has to begin anew.
 */
export async function completeSignIn(
  app: FastifyInstance,
  request: FastifyRequest<{ Body: MfaSignIn }>,
  reply: FastifyReply
) {
  const token = requireToken(app, request)
  const { tenant_id, user_id, password_version, by, provider_id } = token
  const person = { tenant_id, user_id, counts: provider_id === null }
  // of a sign-in that began without a key it may be any
  const key_thumbprint = request.keyThumbprint
  const enrolls = token.purpose === 'enrollment'
  // an agency's own provider must not set up what holds in all agencies of the person
  if (enrolls && provider_id !== null) throw invalidMfaToken()
  const row = await requirePerson(app, request, token)
  if (row.id === null || factorsOf(row).length > 0 === enrolls) throw invalidMfaToken()
  const factor = { ...row, id: row.id }
  const { code, passkey } = request.body
  const given = { ...(code !== undefined && { code }), ...(passkey !== undefined && { passkey }) }

  const refused = (): Promise<unknown> =>
    request.tenantQuery(recordRefusedSignIn, { email: row.email, by: null }, person)
  const check = () => {
    if (!enrolls) {
      // the challenge was made for this token
      const expected = { purpose: 'second_factor', context: token.id } as const
      return checkProof(app, request, reply, { person, factor }, given, expected)
    }
    requireOne({ code })
    return app.secondFactors.check(request, reply, person, factor, code as string)
  }
  const { proof, account } = await check().catch(async (err: unknown) => {
    if (err instanceof Problem && err.kind.code === 'invalid_credentials') await refused()
    throw err
  })

  const codes = enrolls ? createRecoveryCodes() : undefined
  const token_seconds = revocationSeconds(app.config)
  const prove = async (trx: TenantTransaction): Promise<Date | undefined> => {
    if (!codes || 'passkey_id' in proof) return useProof(trx, proof, { actor_id: user_id, token: token.id })
    const recovery_codes = codes.map((code) => recoveryDigest(user_id, code))
    const change = { actor_id: user_id, token_seconds }
    const enabled = await enableFactor(trx, { id: proof.id, step: proof.step ?? 0, recovery_codes }, change)
    if (enabled) await requireFirst(trx)
    return enabled
  }
  const admission = await request.withTenant(async (trx) => {
    const mfa_at = await prove(trx)
    if (!mfa_at) return 'used'
    const [opened] = await queryIn(trx, openSession, {
      ...{ ...person, password_version, token_seconds, session_seconds: app.config.sessionMaxAge },
      ...{ action: 'session.opened', authenticated_at: null, mfa_at, by, provider_id, key_thumbprint }
    })
    // the throw rolls an enrollment back: its recovery codes would be lost
    if (codes && opened?.outcome !== 'opened') throw refusalOf(opened)
    if (opened?.outcome === 'opened') await requireUnreplayed(trx, token, opened.session_id)
    return opened
  }, person)
  if (admission === 'used') {
    await refused()
    throw await app.secondFactors.refuse(request, row.email)
  }
  if (admission?.outcome !== 'opened') throw refusalOf(admission)
  await app.accounts.succeeded(request, account)
  if (codes) await app.revocations.readNow()
  const { email, role, session_id: sid } = admission
  return {
    ...app.tokens.issue({ ...person, email, role, sid, key_thumbprint }, 0),
    ...(codes && { recovery_codes: codes })
  }
}

/** What a browser needs to complete a sign-in with a passkey. Throws `conflict` for somebody who has none. */
export async function offerPasskey(app: FastifyInstance, request: MfaRequest) {
  const token = requireToken(app, request)
  if (token.purpose !== 'sign_in') throw invalidMfaToken()
  const { passkeys } = await requirePerson(app, request, token)
  if (passkeys === 0) throw conflict({ detail: 'there is no passkey' })
  const { id, user_id } = token
  // with the id of the token, so that a sign-in uses both up
  return app.passkeys.offerAssertion(request, 'second_factor', { user_id, context: id, id }, token)
}
