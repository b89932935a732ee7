import type { FastifyPluginAsyncTypebox } from '@fastify/type-provider-typebox'
import type { FastifyInstance, FastifyRequest } from 'fastify'
import { v4 as randomUuid } from 'uuid'
import { isFreshByFactor, markAuthenticated } from '../../db/queries/sessions.ts'
import { addPasskey, maxPasskeys, myPasskeys, removePasskey, renamePasskey } from '../../db/queries/sign-in/passkeys.ts'
import { revocationSeconds } from '../../src/auth/token-life.ts'
import { lastSignInMethod, notFound, reauthenticationRequired, sessionRevoked } from '../../src/http/problems.ts'
import { NoContent } from '../schemas.ts'
import { additionRefusal } from './enrollment.ts'
import { createCodes, requireRow } from './factor.ts'
import {
  AddedPasskey,
  Passkey,
  PasskeyCreationOptions,
  PasskeyId,
  PasskeyInput,
  PasskeyList,
  PasskeyPatch
} from './schemas.ts'

/** The passkeys of the signed-in person. */
const passkeys: FastifyPluginAsyncTypebox = async (app) => {
  const tags = ['me']
  const access = 'user'

  app.get(
    '/users/me/passkeys',
    {
      config: { access, reach: 'person' },
      schema: {
        operationId: 'listPasskeys',
        summary: 'The passkeys of the signed-in person',
        description: `The oldest first. A person has at most ${maxPasskeys}, so there is one page.`,
        tags,
        response: { 200: PasskeyList }
      }
    },
    async (request, reply) => {
      const data = await request.tenantQuery(myPasskeys, {})
      reply.header('cache-control', 'private, no-cache')
      return { data }
    }
  )

  app.post(
    '/users/me/passkeys/options',
    {
      config: { access, reach: 'person', throttled: true, problems: ['reauthentication_required'] },
      schema: {
        operationId: 'startPasskey',
        summary: 'Begin to add a passkey',
        description:
          'What `navigator.credentials.create` needs. `POST /api/v1/users/me/passkeys` takes what it returns, within five minutes and in the same session. Needs a sign-in within the last five minutes.',
        tags,
        response: { 200: PasskeyCreationOptions }
      }
    },
    async (request) => {
      if (!(await request.withTenant((trx) => isFreshByFactor(trx, request.user)))) throw reauthenticationRequired()
      const person = await requireRow(app, request)
      const { tenant_id, user_id, sid: context } = request.user
      return app.passkeys.offerRegistration(request, { tenant_id, user_id, context }, person)
    }
  )

  app.post(
    '/users/me/passkeys',
    {
      config: {
        access,
        reach: 'person',
        throttled: true,
        problems: ['invalid_passkey', 'invalid_challenge', 'reauthentication_required', 'conflict']
      },
      schema: {
        operationId: 'createPasskey',
        summary: 'Add a passkey',
        description:
          'From now on it signs in, and sign-in with the password asks for a second factor. Ends every other session, in every agency. The reply has ten recovery codes for somebody who has none, which are never shown again.',
        tags,
        body: PasskeyInput,
        response: { 201: AddedPasskey }
      }
    },
    async (request, reply) => {
      const created = await createPasskey(app, request)
      reply.code(201)
      return created
    }
  )

  app.patch(
    '/users/me/passkeys/:id',
    {
      config: { access, reach: 'person', problems: ['not_found'] },
      schema: {
        operationId: 'renamePasskey',
        summary: 'Rename a passkey',
        description: 'The name helps the person to tell passkeys apart, and nothing depends on it.',
        tags,
        params: PasskeyId,
        body: PasskeyPatch,
        response: { 200: Passkey }
      }
    },
    async (request) => {
      const { id } = request.params
      await request.withTenant((trx) => renamePasskey(trx, id, request.body.name))
      const row = (await request.tenantQuery(myPasskeys, {})).find((passkey) => passkey.id === id)
      if (!row) throw notFound()
      return row
    }
  )

  app.delete(
    '/users/me/passkeys/:id',
    {
      config: {
        access,
        reach: 'person',
        problems: ['not_found', 'last_sign_in_method', 'last_break_glass_owner', 'reauthentication_required']
      },
      schema: {
        operationId: 'deletePasskey',
        summary: 'Remove a passkey',
        description:
          'Ends every other session, in every agency. The last factor takes the recovery codes with it. The last way to sign in stays. Needs a sign-in within the last five minutes.',
        tags,
        params: PasskeyId,
        response: { 204: NoContent }
      }
    },
    async (request, reply) => {
      const { user_id, sid } = request.user
      const change = { actor_id: user_id, session_id: sid, token_seconds: revocationSeconds(app.config) }
      const outcome = await request.withTenant(async (trx) => {
        if (!(await isFreshByFactor(trx, request.user))) return 'stale'
        return removePasskey(trx, request.params.id, change)
      })
      if (outcome === 'stale') throw reauthenticationRequired()
      if (outcome === 'unknown') throw notFound()
      if (outcome === 'last') throw lastSignInMethod()
      await app.revocations.readNow()
      reply.code(204)
    }
  )
}

export default passkeys

/**
 * Stores a passkey. Every other session ends, because it was opened without it. The present one counts as opened with a
 * second factor, because the passkey has just verified the person.
 */
async function createPasskey(app: FastifyInstance, request: FastifyRequest<{ Body: PasskeyInput }>) {
  const { tenant_id, user_id, sid } = request.user
  const { name, passkey } = request.body
  const checked = await app.passkeys.checkRegistration({ tenant_id, user_id, context: sid }, name, passkey)
  const { codes, recovery_codes } = createCodes(user_id)
  const change = { actor_id: user_id, session_id: sid, token_seconds: revocationSeconds(app.config) }
  const outcome = await request.withTenant(async (trx) => {
    if (!(await isFreshByFactor(trx, request.user))) return 'stale'
    const added = await addPasskey(trx, checked, { factor_id: randomUuid(), codes: recovery_codes }, change)
    // the throw rolls back
    if (!added.at) throw additionRefusal(added.outcome)
    if (!(await markAuthenticated(trx, { ...request.user, mfa_at: added.at }))) throw sessionRevoked()
    return added
  })
  if (outcome === 'stale') throw reauthenticationRequired()
  await app.revocations.readNow()
  const { id, device_type, backed_up } = checked
  const stored = { id, name, device_type, backed_up, created_at: outcome.at, last_used_at: null }
  return { ...stored, ...(outcome.outcome === 'added_with_codes' && codes) }
}
