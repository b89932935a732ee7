import type { FastifyInstance, FastifyRequest } from 'fastify'
import { queryIn } from '../../db/gate/gate.ts'
import { systemScope } from '../../db/gate/gate-query.ts'
import { openSession } from '../../db/queries/sessions.ts'
import { noteSessionOfCode, touchIdentity, useOnce } from '../../db/queries/sign-in/identities.ts'
import { factorsOf } from '../../db/queries/sign-in/second-factors.ts'
import { type FlowCode, isVerifierOf, markSeconds } from '../../src/auth/oauth-flows.ts'
import { revocationSeconds } from '../../src/auth/token-life.ts'
import { invalidSignInCode, providerRequired, tenantMismatch, tenantSuspended } from '../../src/http/problems.ts'
import { acceptThroughProvider } from './invited.ts'
import { endReplayed } from './replays.ts'
import type { CodeExchange } from './schemas.ts'

type ExchangeRequest = FastifyRequest<{ Body: CodeExchange }>

/**
 * Exchanges the code of a sign-in for tokens. The code is good for the client that began only, because no other one has
 * the verifier. Of several requests, in whichever processes, one succeeds; the use and the session are one transaction.
 *
 * A second request with the verifier ends the session of the first one: see `endReplayed`.
 *
 * A second factor is demanded as after a password: throws `mfa_required`. Throws `provider_required` where the tenant demands
 * another provider. The code of somebody with an invitation accepts it: see `acceptThroughProvider`.
 */
export async function exchangeCode(app: FastifyInstance, request: ExchangeRequest) {
  const code = app.oauth.codes.open(request.body.code)
  if (!code || code.purpose === 'link') throw invalidSignInCode()
  if (request.tenant && request.tenant.id !== code.tenant_id) throw tenantMismatch()
  await requireVerifier(request, code)
  if (code.purpose === 'invitation') return acceptThroughProvider(app, request, code)

  const { id, tenant_id, user_id, password_version, identity_id, provider: by, provider_id } = code
  const subject = { tenant_id, user_id }
  const key_thumbprint = request.keyThumbprint
  const admission = await request.withTenant(async (trx) => {
    const [mark] = await queryIn(trx, useOnce, { id, seconds: markSeconds })
    if (!mark?.used) return 'used'
    if (!(await touchIdentity(trx, identity_id, null))) return undefined
    const [opened] = await queryIn(trx, openSession, {
      ...{ ...subject, password_version, by, provider_id, action: 'session.opened' },
      ...{ session_seconds: app.config.sessionMaxAge, token_seconds: revocationSeconds(app.config) },
      ...{ authenticated_at: null, mfa_at: null, key_thumbprint }
    })
    if (opened?.outcome === 'opened') await noteSessionOfCode(trx, id, opened.session_id)
    return opened
  }, subject)
  if (admission === 'used') {
    await endReplayed(app, request, code)
    throw invalidSignInCode()
  }
  if (admission?.outcome === 'suspended') throw tenantSuspended()
  if (admission?.outcome === 'provider_required') {
    throw providerRequired({ extensions: { provider: admission.provider } })
  }
  if (admission?.outcome === 'mfa_required' || admission?.outcome === 'enrollment_required') {
    const row = await app.secondFactors.find(request, subject)
    const waiting = { ...subject, id, password_version, by, provider_id, key_thumbprint }
    throw app.secondFactors.demand(admission.outcome, waiting, row && factorsOf(row))
  }
  if (admission?.outcome !== 'opened') throw invalidSignInCode()
  const { email, role, session_id: sid } = admission
  return app.tokens.issue({ ...subject, email, role, sid, key_thumbprint }, 0)
}

/** Throws `invalid_sign_in_code` for a wrong verifier, and the code can't be used any more: somebody has stolen it. */
export async function requireVerifier(request: ExchangeRequest, { id, code_challenge }: FlowCode): Promise<void> {
  if (isVerifierOf(code_challenge, request.body.code_verifier)) return
  await request.tenantQuery(useOnce, { id, seconds: markSeconds }, systemScope)
  throw invalidSignInCode()
}
