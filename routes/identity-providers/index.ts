import type { FastifyPluginAsyncTypebox } from '@fastify/type-provider-typebox'
import { v7 as uuidv7 } from 'uuid'
import { recordAudit } from '../../db/queries/audit.ts'
import { isFresh } from '../../db/queries/sessions.ts'
import { listProviders, type ProviderRow, readProvider } from '../../db/queries/sign-in/identity-providers.ts'
import { revocationSeconds } from '../../src/auth/token-life.ts'
import { isIssuer } from '../../src/config/value-readers.ts'
import { matchesTag } from '../../src/http/etags.ts'
import { invalidMembers } from '../../src/http/field-errors.ts'
import { conflict, notFound, preconditionFailed, reauthenticationRequired } from '../../src/http/problems.ts'
import { NoContent, WriteConditions } from '../schemas.ts'
import { deleteProvider, insertProvider, lockProvider, updateProvider } from './queries.ts'
import { IdentityProvider, IdentityProviders, ProviderId, ProviderInput, ProviderPatch } from './schemas.ts'

/**
 * The own OpenID Connect providers of an agency. Only owners see and change them, because whoever decides what a provider
 * says can sign in as every member.
 */
const identityProviders: FastifyPluginAsyncTypebox = async (app) => {
  const tags = ['tenant']
  const { apiUrl, nodeEnv } = app.config
  const fresh = 'reauthentication_required'

  const present = ({ client_secret: _, key_id: __, version: ___, ...provider }: ProviderRow) => ({
    ...provider,
    callback_url: `${apiUrl}/api/v1/auth/oauth/${provider.id}/callback`
  })
  const tagOf = ({ version }: ProviderRow) => `"${version}"`
  /** What the audit log keeps: everything but the secret. */
  const audited = ({ name, issuer, client_id, email_claim, name_claim, trust_email, newcomer_role }: ProviderRow) => ({
    ...{ name, issuer, client_id, email_claim, name_claim, trust_email, newcomer_role }
  })

  app.get(
    '',
    {
      config: { access: 'owner', permission: 'never' },
      schema: {
        operationId: 'listIdentityProviders',
        summary: 'The own sign-in providers of the agency',
        description: 'The oldest first, at most ten. The secrets are not shown.',
        tags,
        response: { 200: IdentityProviders }
      }
    },
    async (request, reply) => {
      const { tenant_id } = request.user
      reply.header('cache-control', 'private, no-cache')
      return { data: (await request.tenantQuery(listProviders, { tenant_id })).map(present) }
    }
  )

  app.get(
    '/:id',
    {
      config: { access: 'owner', permission: 'never', problems: ['not_found'] },
      schema: {
        operationId: 'getIdentityProvider',
        summary: 'A sign-in provider of the agency',
        description: 'The secret is not shown.',
        tags,
        params: ProviderId,
        response: { 200: IdentityProvider }
      }
    },
    async (request, reply) => {
      const { tenant_id } = request.user
      const [provider] = await request.tenantQuery(readProvider, { tenant_id, id: request.params.id })
      if (!provider) throw notFound()
      reply.header('cache-control', 'private, no-cache').header('etag', tagOf(provider))
      return present(provider)
    }
  )

  app.post(
    '',
    {
      config: { access: 'owner', permission: 'never', throttled: true, problems: [fresh, 'conflict'] },
      schema: {
        operationId: 'createIdentityProvider',
        summary: 'Add a sign-in provider of the agency',
        description:
          'OpenID Connect with discovery. Register `callback_url` at the provider. Its sessions are good in this agency only. Needs a sign-in within the last five minutes.',
        tags,
        body: ProviderInput,
        response: { 201: IdentityProvider }
      }
    },
    async (request, reply) => {
      const { client_secret, issuer, ...input } = request.body
      if (!isIssuer(issuer) || (nodeEnv === 'production' && !issuer.startsWith('https:'))) {
        throw invalidMembers([{ path: '/body/issuer', message: 'must be the https address of an issuer' }])
      }
      const id = uuidv7()
      const { secret, key_id } = app.providers.seal(id, client_secret)
      const standard = { email_claim: 'email', name_claim: 'name', trust_email: false, newcomer_role: null }
      const outcome = await request.withTenant(async (trx) => {
        if (!(await isFresh(trx, request.user))) return 'stale'
        const values = { ...standard, ...input, id, issuer, client_secret: secret, key_id }
        const created = await insertProvider(trx, values)
        if (!created) return 'full'
        const detail = { after: audited(created) }
        await recordAudit(trx, { action: 'identity_provider.created', target_id: id, detail })
        return created
      })
      if (outcome === 'stale') throw reauthenticationRequired()
      if (outcome === 'full') throw conflict({ detail: 'there are ten providers, or there is one of this issuer' })
      reply.code(201).header('location', `/api/v1/identity-providers/${id}`).header('etag', tagOf(outcome))
      return present(outcome)
    }
  )

  app.patch(
    '/:id',
    {
      config: { access: 'owner', permission: 'never', problems: [fresh, 'not_found', 'precondition_failed'] },
      schema: {
        operationId: 'updateIdentityProvider',
        summary: 'Change a sign-in provider of the agency',
        description:
          'JSON merge patch. The issuer stays: another one has other people. Needs a sign-in within the last five minutes.',
        tags,
        headers: WriteConditions,
        params: ProviderId,
        body: ProviderPatch,
        response: { 200: IdentityProvider }
      }
    },
    async (request, reply) => {
      const { id } = request.params
      const { client_secret, ...patch } = request.body
      const sealed = client_secret === undefined ? undefined : app.providers.seal(id, client_secret)
      const condition = request.headers['if-match']
      const outcome = await request.withTenant(async (trx) => {
        if (!(await isFresh(trx, request.user))) return 'stale'
        const before = await lockProvider(trx, id)
        if (!before) return 'unknown'
        if (condition !== undefined && !matchesTag(condition, tagOf(before))) return 'changed'
        if (Object.keys(request.body).length === 0) return before
        const secret = sealed && { client_secret: sealed.secret, key_id: sealed.key_id }
        const after = (await updateProvider(trx, id, { ...before, ...patch, ...secret })) as ProviderRow
        const detail = { before: audited(before), after: audited(after), ...(sealed && { client_secret: 'replaced' }) }
        await recordAudit(trx, { action: 'identity_provider.updated', target_id: id, detail })
        return after
      })
      if (outcome === 'stale') throw reauthenticationRequired()
      if (outcome === 'unknown') throw notFound()
      if (outcome === 'changed') throw preconditionFailed()
      reply.header('etag', tagOf(outcome))
      return present(outcome)
    }
  )

  app.delete(
    '/:id',
    {
      config: { access: 'owner', permission: 'never', problems: [fresh, 'not_found', 'conflict'] },
      schema: {
        operationId: 'deleteIdentityProvider',
        summary: 'Remove a sign-in provider of the agency',
        description:
          'Ends every session that was opened through it, and forgets the identities there. One that the agency demands stays: `conflict`. Who has no password sets one by the mail for a forgotten password. Needs a sign-in within the last five minutes.',
        tags,
        params: ProviderId,
        response: { 204: NoContent }
      }
    },
    async (request, reply) => {
      const { id } = request.params
      const outcome = await request.withTenant(async (trx) => {
        if (!(await isFresh(trx, request.user))) return 'stale'
        const before = await lockProvider(trx, id)
        if (!before) return 'unknown'
        const sessions_ended = await deleteProvider(trx, id, revocationSeconds(app.config))
        const detail = { before: audited(before), sessions_ended }
        await recordAudit(trx, { action: 'identity_provider.deleted', target_id: id, detail })
        return 'deleted'
      })
      if (outcome === 'stale') throw reauthenticationRequired()
      if (outcome === 'unknown') throw notFound()
      await app.revocations.readNow()
      reply.code(204)
    }
  )
}

export default identityProviders
