import type { FastifyInstance, FastifyReply, FastifyRequest } from 'fastify'
import { queryIn } from '../../db/gate/gate.ts'
import { endMyConfinedIdentity, endMyIdentity, myCredentials } from '../../db/queries/directory.ts'
import { isFresh } from '../../db/queries/sessions.ts'
import { findSessionProvider } from '../../db/queries/sign-in/identities.ts'
import { revocationSeconds } from '../../src/auth/token-life.ts'
import { invalidMembers } from '../../src/http/field-errors.ts'
import { forbidden, lastOwner, reauthenticationRequired } from '../../src/http/problems.ts'
import type { AccountEnding } from './schemas.ts'

type EndingRequest = FastifyRequest<{ Body: AccountEnding }>

/**
 * Ends the account of the signed-in person, after a proof that a stolen token does not have: the password.
 *
 * Somebody whose only way in is the own provider of the only agency they are in has no password, and may get none where the
 * agency demands its provider. For them the proof is a sign-in there within the last five minutes. The agency decides what its
 * provider says, so it could end such an account; nothing of the account is anywhere else.
 */
export async function endAccount(app: FastifyInstance, request: EndingRequest, reply: FastifyReply): Promise<void> {
  const { password } = request.body
  const token_seconds = revocationSeconds(app.config)
  if (password === undefined) {
    if (!(await isConfined(request))) {
      throw invalidMembers([{ path: '/body/password', message: 'is required' }])
    }
    const outcome = await request.withTenant(async (trx) => {
      if (!(await isFresh(trx, request.user))) return 'stale'
      const [result] = await queryIn(trx, endMyConfinedIdentity, { token_seconds })
      return result?.outcome
    })
    if (outcome === 'stale') throw reauthenticationRequired()
    if (outcome === 'last_owner') throw lastOwner()
    if (outcome !== 'ended') throw forbidden({ detail: 'sign in by your passkey, or as you do in other agencies' })
    return
  }
  await app.credentials.requirePassword(request, reply, password)
  const [result] = await request.tenantQuery(endMyIdentity, { token_seconds })
  if (result?.outcome !== 'ended') throw lastOwner()
}

/** Whether the session was opened through the agency's own provider, by somebody who has no password. */
async function isConfined(request: EndingRequest): Promise<boolean> {
  const { tenant_id, sid: session_id } = request.user
  const [session] = await request.tenantQuery(findSessionProvider, { tenant_id, session_id })
  const [credentials] = await request.tenantQuery(myCredentials, {})
  return Boolean(session?.provider_id) && credentials?.password_hash === null
}
