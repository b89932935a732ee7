import type { FastifyInstance, FastifyRequest } from 'fastify'
import { findOpenSession, openSession } from '../../db/queries/sessions.ts'
import { revocationSeconds } from '../../src/auth/token-life.ts'
import { mfaRequired, notFound, providerRequired, sessionRevoked, tenantSuspended } from '../../src/http/problems.ts'
import { normalizeSlug } from '../../src/tenancy/slugs.ts'
import type { Switch } from './schemas.ts'

const prove = 'send a code or a passkey to POST /api/v1/auth/reauthenticate, then switch again'
const enroll = 'that agency demands a second factor: set one up at POST /api/v1/users/me/mfa/totp, then switch again'

/**
 * Opens a session in another tenant of the same person. Throws `not_found` for a non-member, as for an unknown tenant.
 *
 * The new session has the proofs of the present one. Throws `mfa_required` when they are not enough. The problem has no
 * token, because a bearer token alone must not lead to a session: the proof is added to the present session first.
 */
export async function switchTenant(app: FastifyInstance, request: FastifyRequest<{ Body: Switch }>) {
  const { user_id, tenant_id, sid: session_id } = request.user
  // asks the database: revocations in memory may be a second old, and the new session would outlive the revoked one
  const [open] = await request.tenantQuery(findOpenSession, {
    tenant_id,
    session_id,
    idle_seconds: app.config.refreshTokenTtl
  })
  if (!open) throw sessionRevoked()

  const target = await app.tenants.find(normalizeSlug(request.body.tenant))
  if (!target) throw notFound()
  const subject = { tenant_id: target.id, user_id }
  // of a bound session this is its own key, because its token is of no use without
  const key_thumbprint = request.keyThumbprint
  const [admission] = await request.tenantQuery(
    openSession,
    {
      ...subject,
      session_seconds: app.config.sessionMaxAge,
      token_seconds: revocationSeconds(app.config),
      ...open,
      key_thumbprint,
      action: 'session.switched'
    },
    subject
  )
  if (!admission) throw notFound()
  if (admission.outcome === 'suspended') throw tenantSuspended()
  if (admission.outcome === 'provider_required') {
    throw providerRequired({ extensions: { provider: admission.provider } })
  }
  if (admission.outcome === 'mfa_required') throw mfaRequired({ detail: prove })
  if (admission.outcome === 'enrollment_required') throw mfaRequired({ detail: enroll, extensions: { enroll: true } })
  if (admission.outcome !== 'opened') throw sessionRevoked()
  const { email, role, session_id: sid } = admission
  return app.tokens.issue({ ...subject, email, role, sid, key_thumbprint }, 0)
}
