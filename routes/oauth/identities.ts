import type { FastifyInstance, FastifyRequest } from 'fastify'
import { v7 as uuidv7 } from 'uuid'
import { queryIn, type TenantTransaction } from '../../db/gate/gate.ts'
import { queueNotice } from '../../db/queries/accounts/mails.ts'
import { recordAudit } from '../../db/queries/audit.ts'
import { findOpenSession, isFresh } from '../../db/queries/sessions.ts'
import {
  isVerified,
  linkIdentity,
  type MyIdentity,
  myIdentities,
  recordIdentityEvent,
  unlinkIdentity,
  useOnce
} from '../../db/queries/sign-in/identities.ts'
import { endOtherSessions } from '../../db/queries/sign-in/second-factors.ts'
import { readTenant } from '../../db/queries/tenants.ts'
import { markSeconds } from '../../src/auth/oauth-flows.ts'
import { revocationSeconds } from '../../src/auth/token-life.ts'
import {
  conflict,
  forbidden,
  identityTaken,
  invalidSignInCode,
  lastSignInMethod,
  notFound,
  reauthenticationRequired,
  sessionRevoked
} from '../../src/http/problems.ts'
import { requireVerifier } from './exchange.ts'
import type { CodeExchange, LinkingStart } from './schemas.ts'
import { requireRedirect } from './start.ts'

/** Whoever registered the address of somebody else must not keep a way in when its owner sets a new password. */
const notVerified = 'verify your address first: POST /api/v1/auth/email/resend sends the mail'

const present = ({ agency_id, ...identity }: MyIdentity) => ({ ...identity, tenant_id: agency_id })

export async function listIdentities(request: FastifyRequest) {
  return { data: (await request.tenantQuery(myIdentities, {})).map(present) }
}

/**
 * Gives the address at which the browser of the signed-in person begins to link an identity. A navigation carries no
 * bearer token, so the address has a ticket. Nothing is linked before this session sends the code that comes back.
 */
export async function beginLinking(app: FastifyInstance, request: FastifyRequest<{ Body: LinkingStart }>) {
  const { redirect_to, code_challenge, provider: key } = request.body
  const { tenant_id, user_id, sid } = request.user
  const provider = await app.providers.find(request, key, tenant_id)
  if (!provider) throw notFound()
  const [tenant] = await request.tenantQuery(readTenant, { tenant_id })
  requireRedirect(app, tenant, { target: redirect_to, path: '/body/redirect_to', confined: false })
  const outcome = await request.withTenant(async (trx) => {
    if (!(await isFresh(trx, request.user))) return 'stale'
    return (await isVerified(trx)) ? 'allowed' : 'unverified'
  })
  if (outcome === 'stale') throw reauthenticationRequired()
  if (outcome === 'unverified') throw forbidden({ detail: notVerified })
  const flow = { id: uuidv7(), provider: key, tenant_id, redirect_to, code_challenge, link: { user_id, sid } }
  const url = new URL(`${app.config.apiUrl}/api/v1/auth/oauth/${key}/link`)
  url.searchParams.set('ticket', app.oauth.tickets.issue(flow))
  return { url: url.href }
}

/** Links the identity that a provider has named, for the session that began. */
export async function finishLinking(app: FastifyInstance, request: FastifyRequest<{ Body: CodeExchange }>) {
  const code = app.oauth.codes.open(request.body.code)
  const { tenant_id, user_id, sid: session_id } = request.user
  if (code?.purpose !== 'link' || code.session.user_id !== user_id || code.session.sid !== session_id) {
    throw invalidSignInCode()
  }
  await requireVerifier(request, code)
  const { provider, own, profile } = code
  const identity = { id: uuidv7(), provider, own, ...profile }
  const outcome = await request.withTenant(async (trx) => {
    const [mark] = await queryIn(trx, useOnce, { id: code.id, seconds: markSeconds })
    if (!mark?.used) return 'used'
    const idle_seconds = app.config.refreshTokenTtl
    const [open] = await queryIn(trx, findOpenSession, { tenant_id, session_id, idle_seconds })
    if (!open) return 'ended'
    if (!(await isVerified(trx))) return 'unverified'
    const linked = await linkIdentity(trx, identity)
    if (linked !== 'linked') return linked
    await recordChange(trx, 'user.identity_linked', request, { provider, own })
    await queueNotice(trx, 'identity_linked')
    return (await queryIn(trx, myIdentities, {})).find(({ id }) => id === identity.id)
  })
  if (outcome === 'used' || outcome === 'gone' || outcome === undefined) throw invalidSignInCode()
  if (outcome === 'ended') throw sessionRevoked()
  if (outcome === 'unverified') throw forbidden({ detail: notVerified })
  if (outcome === 'taken') throw identityTaken()
  if (outcome === 'full') {
    const there = own ? 'there is an identity at this provider' : 'there are twenty identities'
    throw conflict({ detail: `${there}: unlink one first` })
  }
  app.mail.wake()
  return present(outcome)
}

/** Unlinks an identity of the signed-in person, and ends every other session of theirs, in all agencies. */
export async function removeIdentity(app: FastifyInstance, request: FastifyRequest<{ Params: { id: string } }>) {
  const token_seconds = revocationSeconds(app.config)
  const outcome = await request.withTenant(async (trx) => {
    if (!(await isFresh(trx, request.user))) return 'stale'
    // its own agency is to have it in its audit log
    const found = (await queryIn(trx, myIdentities, {})).find(({ id }) => id === request.params.id)
    if (!found || (found.agency_id !== null && found.agency_id !== request.user.tenant_id)) return 'unknown'
    const removed = await unlinkIdentity(trx, found.id)
    if (removed.outcome !== 'unlinked') return removed.outcome
    // whoever has signed in by it must not stay in
    await endOtherSessions(trx, request.user.sid, token_seconds)
    const { provider, agency_id } = removed
    await recordChange(trx, 'user.identity_unlinked', request, { provider, own: agency_id !== null })
    await queueNotice(trx, 'identity_unlinked')
    return removed.outcome
  })
  if (outcome === 'stale') throw reauthenticationRequired()
  if (outcome === 'unknown') throw notFound()
  if (outcome === 'last') throw lastSignInMethod()
  app.mail.wake()
  await app.revocations.readNow()
}

/**
 * Each agency of the person relies on how they sign in, so each has it in its audit log. What belongs to one agency is no
 * business of the others.
 */
async function recordChange(
  trx: TenantTransaction,
  action: string,
  { user }: FastifyRequest,
  { provider, own }: { provider: string; own: boolean }
): Promise<void> {
  if (!own) return recordIdentityEvent(trx, action, provider)
  const detail = { provider }
  await recordAudit(trx, { action, target_id: user.user_id, session_id: user.sid, detail })
}
