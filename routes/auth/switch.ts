import type { FastifyInstance, FastifyRequest } from 'fastify'
import { findOpenSession, openSession } from '../../db/queries/sessions.ts'
import { revocationSeconds } from '../../src/auth/token-life.ts'
import { notFound, sessionRevoked, tenantSuspended } from '../../src/http/problems.ts'
import { normalizeSlug } from '../../src/tenancy/slugs.ts'
import type { Switch } from './schemas.ts'

/**
 * Opens a session in another tenant of the same person. Throws `not_found` for a non-member, as for an unknown tenant.
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
  const [admission] = await request.tenantQuery(
    openSession,
    {
      ...subject,
      session_seconds: app.config.sessionMaxAge,
      token_seconds: revocationSeconds(app.config),
      password_version: open.password_version,
      action: 'session.switched'
    },
    subject
  )
  if (!admission) throw notFound()
  if (admission.outcome === 'suspended') throw tenantSuspended()
  if (admission.outcome !== 'opened') throw sessionRevoked()
  return app.tokens.issue({ ...subject, email: admission.email, role: admission.role, sid: admission.session_id }, 0)
}
