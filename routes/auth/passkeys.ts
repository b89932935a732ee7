import type { FastifyPluginAsyncTypebox } from '@fastify/type-provider-typebox'
import type { FastifyInstance, FastifyRequest } from 'fastify'
import { queryIn } from '../../db/gate/gate.ts'
import { recordRefusedSignIn } from '../../db/queries/audit.ts'
import { findTenantLastUsed } from '../../db/queries/directory.ts'
import { openSession } from '../../db/queries/sessions.ts'
import { usePasskey } from '../../db/queries/sign-in/passkeys.ts'
import { revocationSeconds } from '../../src/auth/token-life.ts'
import { invalidCredentials, providerRequired, tenantSuspended } from '../../src/http/problems.ts'
import { normalizeSlug } from '../../src/tenancy/slugs.ts'
import { PasskeyRequestOptions, TokenReply } from '../schemas.ts'
import { PasskeySignIn } from './schemas.ts'

/** Sign-in by a passkey alone. */
const passkeys: FastifyPluginAsyncTypebox = async (app) => {
  const tags = ['auth']

  app.post(
    '/passkeys/options',
    {
      config: { access: 'public', throttled: true },
      schema: {
        operationId: 'startPasskeySignIn',
        summary: 'Begin to sign in with a passkey',
        description:
          'What `navigator.credentials.get` needs. It asks for no address and names no passkey, so it tells nothing about anybody. `POST /api/v1/auth/passkeys` takes what it returns, within five minutes.',
        tags,
        response: { 200: PasskeyRequestOptions }
      }
    },
    (request) => app.passkeys.offerAssertion(request, 'sign_in', nobody)
  )

  app.post(
    '/passkeys',
    {
      config: {
        access: 'public',
        throttled: true,
        takesProof: true,
        problems: ['invalid_credentials', 'invalid_challenge', 'provider_required', 'tenant_suspended']
      },
      schema: {
        operationId: 'signInWithPasskey',
        summary: 'Sign in with a passkey',
        description:
          'Signs in to the agency of the host, else to `tenant`, else to the agency used last. The page must be one of that agency. The person was verified by the device, so no second factor is asked for. An unknown passkey and a wrong signature get the same answer.',
        tags,
        body: PasskeySignIn,
        response: { 200: TokenReply }
      }
    },
    (request) => signInWithPasskey(app, request)
  )
}

export default passkeys

/** Nobody has said yet who wants to sign in. What is signed says where: the page must be one of the agency. */
const nobody = { user_id: null, context: null }

/**
 * Signs in with a passkey, which verifies the person, so it counts as both factors.
 *
 * An unknown passkey, one that proves nothing for the tenant, a disabled person and a non-member get the same answer.
 * Attempts are counted by address only: a signature can't be guessed, and whoever knows the id of a passkey must not be
 * able to keep its owner out.
 */
async function signInWithPasskey(app: FastifyInstance, request: FastifyRequest<{ Body: PasskeySignIn }>) {
  const { passkey, tenant: slug } = request.body
  const answer = app.passkeys.requireAnswer(passkey, { purpose: 'sign_in', ...nobody })
  const owner = await app.passkeys.findOwner(request, answer)
  const named = request.tenant ?? (slug === undefined ? undefined : await app.tenants.find(normalizeSlug(slug)))
  if (!owner || (slug !== undefined && !named)) throw invalidCredentials()
  const { user_id, password_version } = owner

  const lastUsed = { tenant_id: null, user_id }
  const tenantId = named?.id ?? (await request.tenantQuery(findTenantLastUsed, {}, lastUsed))[0]?.id
  const refuse = async () => {
    const refused = { email: null, by: 'passkey' }
    if (named) await request.tenantQuery(recordRefusedSignIn, refused, { tenant_id: named.id, user_id: null })
    return invalidCredentials()
  }
  const tenant = named ?? (tenantId === undefined ? undefined : await app.tenants.findById(tenantId))
  const proof = await app.passkeys.prove(tenant, owner, answer)
  if (!proof || tenantId === undefined) throw await refuse()

  const subject = { tenant_id: tenantId, user_id }
  const key_thumbprint = request.keyThumbprint
  const admission = await request.withTenant(async (trx) => {
    const mfa_at = await usePasskey(trx, proof, { actor_id: user_id })
    if (!mfa_at) return undefined
    const [opened] = await queryIn(trx, openSession, {
      ...{ ...subject, password_version, session_seconds: app.config.sessionMaxAge },
      ...{ token_seconds: revocationSeconds(app.config), action: 'session.opened' },
      ...{ authenticated_at: null, mfa_at, provider_id: null, by: 'passkey', key_thumbprint }
    })
    return opened
  }, subject)
  if (admission?.outcome === 'suspended') throw tenantSuspended()
  if (admission?.outcome === 'provider_required') {
    throw providerRequired({ extensions: { provider: admission.provider } })
  }
  if (admission?.outcome !== 'opened') throw await refuse()
  const { email, role, session_id: sid } = admission
  return app.tokens.issue({ ...subject, email, role, sid, key_thumbprint }, 0)
}
