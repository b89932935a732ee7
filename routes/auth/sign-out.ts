import type { FastifyInstance, FastifyRequest } from 'fastify'
import { endSession } from '../../db/queries/sessions.ts'
import { revocationSeconds } from '../../src/auth/token-life.ts'
import { invalidRefreshToken, tenantMismatch, unauthenticated } from '../../src/http/problems.ts'

type SignOutRequest = FastifyRequest<{ Body: { refresh_token?: string } | null }>

/** Ends the session of the refresh token or of the bearer token. An expired or revoked bearer token is accepted too. */
export async function signOut(app: FastifyInstance, request: SignOutRequest): Promise<void> {
  const session = requireSession(app, request)
  await request.tenantQuery(
    endSession,
    { ...session, token_seconds: revocationSeconds(app.config) },
    { tenant_id: session.tenant_id, user_id: null }
  )
  await app.revocations.readNow()
}

function requireSession(app: FastifyInstance, request: SignOutRequest) {
  const session = findSession(app, request)
  if (request.tenant && request.tenant.id !== session.tenant_id) throw tenantMismatch()
  return session
}

function findSession(app: FastifyInstance, request: SignOutRequest) {
  const refreshToken = request.body?.refresh_token
  if (refreshToken === undefined) {
    const claims = app.bearers.findSigned(request)
    if (!claims) throw unauthenticated()
    const live = claims.exp * 1000 > Date.now() && !app.revocations.find(claims)
    if (live && request.tenant && request.tenant.id !== claims.tenant_id) request.denied = claims
    return { tenant_id: claims.tenant_id, session_id: claims.sid }
  }
  const token = app.tokens.verifyRefresh(refreshToken)
  if (!token) throw invalidRefreshToken()
  return { tenant_id: token.tenant_id, session_id: token.family }
}
