import type { FastifyInstance, FastifyReply, FastifyRequest } from 'fastify'
import { confirmEarlier } from '../../db/queries/confirmation.ts'
import { endSession } from '../../db/queries/sessions.ts'
import { revocationSeconds } from '../../src/auth/token-life.ts'
import { invalidRefreshToken, tenantMismatch, unauthenticated } from '../../src/http/problems.ts'

type SignOutRequest = FastifyRequest<{ Body: { refresh_token?: string } | null }>

/**
 * Ends the session of the refresh token or of the bearer token. An expired or revoked bearer token is accepted too. The
 * tokens of a bound session need a proof of its key, so that a stolen one alone can't end it.
 */
export async function signOut(app: FastifyInstance, request: SignOutRequest, reply: FastifyReply): Promise<void> {
  const session = await requireSession(app, request, reply)
  const scope = { tenant_id: session.tenant_id, user_id: null }
  const token_seconds = revocationSeconds(app.config)
  const [ended] = await request.tenantQuery(endSession, { ...session, token_seconds, action: 'session.ended' }, scope)
  if (!ended) await request.tenantQuery(confirmEarlier, {}, scope)
  await app.revocations.readNow()
}

async function requireSession(app: FastifyInstance, request: SignOutRequest, reply: FastifyReply) {
  const { key_thumbprint, ...session } = findSession(app, request)
  if (request.tenant && request.tenant.id !== session.tenant_id) throw tenantMismatch()
  await app.proofs.requireKey(request, reply, key_thumbprint)
  return session
}

function findSession(app: FastifyInstance, request: SignOutRequest) {
  const refreshToken = request.body?.refresh_token
  if (refreshToken === undefined) {
    const claims = app.bearers.findSigned(request)
    if (!claims) throw unauthenticated()
    const key_thumbprint = claims.cnf?.jkt ?? null
    // a stolen token of a bound session writes nothing to the audit log in the person's name
    const isProven = key_thumbprint === null || key_thumbprint === request.keyThumbprint
    const live = isProven && claims.exp * 1000 > Date.now() && !app.revocations.find(claims)
    if (live && request.tenant && request.tenant.id !== claims.tenant_id) request.denied = claims
    return { tenant_id: claims.tenant_id, session_id: claims.sid, key_thumbprint }
  }
  const token = app.tokens.verifyRefresh(refreshToken)
  if (!token) throw invalidRefreshToken()
  const { tenant_id, family: session_id, key_thumbprint } = token
  return { tenant_id, session_id, key_thumbprint }
}
