import type { FastifyInstance, FastifyReply, FastifyRequest } from 'fastify'
import { type Rotation, rotateSession } from '../../db/queries/sessions.ts'
import { boundSession, keyRefusal } from '../../src/auth/dpop/refusals.ts'
import { revocationSeconds } from '../../src/auth/token-life.ts'
import {
  invalidRefreshToken,
  type Problem,
  refreshTokenReused,
  sessionRevoked,
  tenantMismatch,
  tenantSuspended
} from '../../src/http/problems.ts'
import type { Refresh } from './schemas.ts'

const refusals: Record<Exclude<Rotation['outcome'], 'rotated' | 'repeated' | 'another_key'>, () => Problem> = {
  reused: refreshTokenReused,
  revoked: sessionRevoked,
  disabled: sessionRevoked,
  unproven: () => sessionRevoked({ detail: 'this agency demands a second factor: sign in again' }),
  provider_required: () => sessionRevoked({ detail: 'this agency demands its own provider: sign in through it' }),
  suspended: tenantSuspended,
  expired: invalidRefreshToken,
  ahead: invalidRefreshToken
}

/**
 * Exchanges a refresh token for new tokens. A forged token is refused without a query, and ends no session. So is one of a
 * bound session without a proof of its key: whoever has stolen it can't even end the session by using it.
 *
 * Throws `refresh_token_reused`, `session_revoked`, `invalid_dpop_proof`, `tenant_suspended`, `tenant_mismatch` or `invalid_refresh_token`.
 */
export async function refresh(app: FastifyInstance, request: FastifyRequest<{ Body: Refresh }>, reply: FastifyReply) {
  const token = app.tokens.verifyRefresh(request.body.refresh_token)
  if (!token) {
    await app.attempts.countAddress(request, reply)
    throw invalidRefreshToken()
  }
  if (request.tenant && request.tenant.id !== token.tenant_id) throw tenantMismatch()
  await app.proofs.requireKey(request, reply, token.key_thumbprint)
  await app.attempts.countAccount(request, reply, `refresh ${token.family}`)

  const { keyThumbprint: key_thumbprint } = request
  const { refreshGrace, refreshTokenTtl } = app.config
  const [rotation] = await request.tenantQuery(
    rotateSession,
    {
      ...token,
      key_thumbprint,
      grace_seconds: refreshGrace,
      idle_seconds: refreshTokenTtl,
      token_seconds: revocationSeconds(app.config)
    },
    { tenant_id: token.tenant_id, user_id: null }
  )
  if (!rotation) throw invalidRefreshToken()
  const { outcome, counter, user_id, email, role } = rotation
  if (outcome === 'rotated' || outcome === 'repeated') {
    const subject = { user_id, email, tenant_id: token.tenant_id, role, sid: token.family }
    // a session without a key stays so, whatever the request proves
    return app.tokens.issue({ ...subject, key_thumbprint: rotation.key_thumbprint }, counter)
  }
  // the transaction has committed the revocation, so this process can read it now
  if (outcome === 'reused') await app.revocations.readNow()
  throw outcome === 'another_key' ? keyRefusal(key_thumbprint, boundSession) : refusals[outcome]()
}
