import type { FastifyInstance, FastifyReply, FastifyRequest } from 'fastify'
import { recordRefusedSignIn } from '../../db/queries/audit.ts'
import { findTenantLastUsed, type Identity } from '../../db/queries/directory.ts'
import { openSession, passwordOnly } from '../../db/queries/sessions.ts'
import { factorsOf } from '../../db/queries/sign-in/second-factors.ts'
import { replaceHash } from '../../db/queries/users.ts'
import { type PasswordHash, storedHash } from '../../src/auth/passwords.ts'
import { revocationSeconds } from '../../src/auth/token-life.ts'
import { invalidCredentials, notAMember, Problem, providerRequired, tenantSuspended } from '../../src/http/problems.ts'
import { normalizeEmail } from '../../src/mail/mailboxes.ts'
import { normalizeSlug } from '../../src/tenancy/slugs.ts'
import type { SignIn } from './schemas.ts'

type SignInRequest = FastifyRequest<{ Body: SignIn }>

/**
 * Signs in with e-mail and password: to the tenant of the host, else to the tenant in the body, else to the tenant used
 * last.
 *
 * An unknown address, a wrong password, a disabled person and a non-member get the same answer after the same work, so
 * that the reply time reveals nothing: one look-up, one hash, one count, and one audit row when the tenant is known.
 *
 * Throws `mfa_required`, and opens no session, for a person with a second factor, and for one without it in a tenant
 * that demands it. Throws `provider_required` where the tenant demands its own provider. Wrong passwords of before stay counted until the factor is right.
 */
export async function signIn(app: FastifyInstance, request: SignInRequest, reply: FastifyReply) {
  const { password } = request.body
  const email = normalizeEmail(request.body.email)
  const account = await app.accounts.find(request, reply, email)
  const { identity } = account

  const slug = request.body.tenant
  const named = request.tenant ?? (slug === undefined ? undefined : await app.tenants.find(normalizeSlug(slug)))
  const stored = identity && storedHash(identity)
  const correct = await app.passwords.verify(password, stored, request.fairnessKey)

  const refuse = async () => {
    await app.accounts.failed(request, email)
    if (named)
      await request.tenantQuery(recordRefusedSignIn, { email, by: null }, { tenant_id: named.id, user_id: null })
    return invalidCredentials()
  }
  if (!correct || !identity || !stored || identity.disabled_at || (slug !== undefined && !named)) throw await refuse()

  const lastUsed = { tenant_id: null, user_id: identity.id }
  const tenantId = named?.id ?? (await request.tenantQuery(findTenantLastUsed, {}, lastUsed))[0]?.id
  if (tenantId === undefined) throw notAMember()
  await renewHash(app, request, identity, stored, password)

  const subject = { tenant_id: tenantId, user_id: identity.id }
  const key_thumbprint = request.keyThumbprint
  const [admission] = await request.tenantQuery(
    openSession,
    {
      ...subject,
      session_seconds: app.config.sessionMaxAge,
      token_seconds: revocationSeconds(app.config),
      ...passwordOnly,
      key_thumbprint,
      password_version: identity.password_version,
      action: 'session.opened'
    },
    subject
  )
  if (admission?.outcome === 'suspended') throw tenantSuspended()
  if (admission?.outcome === 'provider_required')
    throw providerRequired({ extensions: { provider: admission.provider } })
  if (admission?.outcome === 'mfa_required' || admission?.outcome === 'enrollment_required') {
    const { password_version } = identity
    const row = await app.secondFactors.find(request, subject)
    throw app.secondFactors.demand(
      admission.outcome,
      { ...subject, password_version, key_thumbprint },
      row && factorsOf(row)
    )
  }
  if (admission?.outcome !== 'opened') throw await refuse()
  await app.accounts.succeeded(request, account)
  const { role, session_id: sid } = admission
  return app.tokens.issue({ ...subject, email: admission.email, role, sid, key_thumbprint }, 0)
}

/**
 * Hashes the password again when the stored hash is outdated: only a sign-in knows the password. When the hasher is
 * overloaded, the next sign-in does it.
 */
async function renewHash(
  app: FastifyInstance,
  request: FastifyRequest,
  { id, password_version }: Identity,
  stored: PasswordHash,
  password: string
): Promise<void> {
  if (!app.passwords.needsRehash(stored)) return
  try {
    const hash = await app.passwords.hash(password, request.fairnessKey)
    const scope = { tenant_id: null, user_id: id }
    await request.tenantQuery(replaceHash, { user_id: id, password_version, ...hash }, scope)
  } catch (err) {
    if (!(err instanceof Problem && err.kind.code === 'overloaded')) throw err
  }
}
