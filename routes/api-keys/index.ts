import type { FastifyPluginAsyncTypebox } from '@fastify/type-provider-typebox'
import { v7 as uuidv7 } from 'uuid'
import { recordAudit } from '../../db/queries/audit.ts'
import { isFresh } from '../../db/queries/sessions.ts'
import { roleTooLow } from '../../src/auth/admission.ts'
import { createSecret, digestOf, formatKey } from '../../src/auth/api-keys/key-format.ts'
import { permissionTable } from '../../src/auth/api-keys/permissions.ts'
import { mayManage } from '../../src/auth/roles.ts'
import { isRange } from '../../src/http/addresses.ts'
import { invalidMembers } from '../../src/http/field-errors.ts'
import { conflict, notFound, reauthenticationRequired } from '../../src/http/problems.ts'
import { maxUuid } from '../../src/uuids.ts'
import { NoContent, PageQuery } from '../schemas.ts'
import { deleteKey, insertKey, listKeys, lockAuthorRole, maxKeys, readKey, rotateKey } from './queries.ts'
import { ApiKey, ApiKeyId, ApiKeyInput, ApiKeyPage, CreatedApiKey, overlapSeconds, Rotation } from './schemas.ts'

/** The API keys of an agency: a way in for programs. No key may make, change or end one. */
const apiKeys: FastifyPluginAsyncTypebox = async (app) => {
  const tags = ['keys']
  const access = 'admin'
  const permission = 'never'
  const fresh = 'Needs a sign-in within the last five minutes.'

  app.get(
    '',
    {
      config: { access, permission, problems: ['invalid_cursor'] },
      schema: {
        operationId: 'listApiKeys',
        summary: 'The API keys of the agency',
        description: 'The newest first, those that have expired too. The keys themselves are not shown.',
        tags,
        querystring: PageQuery,
        response: { 200: ApiKeyPage }
      }
    },
    async (request, reply) => {
      const { limit = 25, cursor } = request.query
      const { tenant_id } = request.user
      const scope = `api keys ${tenant_id}`
      const [before_id = maxUuid] = app.cursors.require(scope, cursor)
      const rows = await request.tenantQuery(listKeys, { tenant_id, before_id, limit: limit + 1 })
      reply.header('cache-control', 'private, no-cache')
      return app.cursors.page(scope, rows, limit, ({ id }) => [id])
    }
  )

  app.post(
    '',
    {
      config: { access, permission, throttled: true, problems: ['conflict', 'reauthentication_required'] },
      schema: {
        operationId: 'createApiKey',
        summary: 'Make an API key',
        description: `The reply shows the key, once. Send it as \`Authorization: Bearer\`, or get a short-lived token for it at \`POST /api/v1/auth/token\`. The role and the permissions of the key must both allow what it does. The key ends when its author is no admin or owner any more. An agency has at most ${maxKeys} keys; those that have expired make room. ${fresh}`,
        tags,
        body: ApiKeyInput,
        response: { 201: CreatedApiKey }
      }
    },
    async (request, reply) => {
      requireValid(request.body)
      const { name, role, permissions, cidrs = [], expires_at } = request.body
      const { tenant_id } = request.user
      const [id, secret] = [uuidv7(), createSecret()]
      const outcome = await request.withTenant(async (trx) => {
        if (!(await isFresh(trx, request.user))) return 'stale'
        const author = await lockAuthorRole(trx)
        if (!author || !mayManage(author, 'admin')) return 'demoted'
        const expiry = expires_at === undefined ? null : new Date(expires_at)
        const input = { id, name, role, permissions, cidrs, expires_at: expiry, digest: digestOf(secret) }
        const key = await insertKey(trx, tenant_id, input)
        if (key === 'full') return key
        const after = { name, role, permissions, cidrs: key.cidrs, expires_at: key.expires_at }
        await recordAudit(trx, { action: 'api_key.created', target_id: id, detail: { after } })
        return key
      })
      if (outcome === 'stale') throw reauthenticationRequired()
      if (outcome === 'demoted') throw roleTooLow('admin')
      if (outcome === 'full') throw conflict({ detail: `an agency has at most ${maxKeys} API keys` })
      reply.code(201).header('cache-control', 'no-store')
      return { ...outcome, key: formatKey({ tenant_id, id, secret }) }
    }
  )

  app.get(
    '/:id',
    {
      config: { access, permission, problems: ['not_found'] },
      schema: {
        operationId: 'getApiKey',
        summary: 'An API key of the agency',
        description: 'The key itself is not shown.',
        tags,
        params: ApiKeyId,
        response: { 200: ApiKey }
      }
    },
    async (request, reply) => {
      const { tenant_id } = request.user
      const [key] = await request.tenantQuery(readKey, { tenant_id, id: request.params.id })
      if (!key) throw notFound()
      reply.header('cache-control', 'private, no-cache')
      return key
    }
  )

  app.post(
    '/:id/rotate',
    {
      config: { access, permission, throttled: true, problems: ['not_found', 'conflict', 'reauthentication_required'] },
      schema: {
        operationId: 'rotateApiKey',
        summary: 'Replace an API key',
        description: `The reply shows the new key, once. The older one stays good for \`overlap_seconds\`, and ends sooner with the right of its author; the one before it ends. Whoever rotates a key becomes its author. ${fresh}`,
        tags,
        params: ApiKeyId,
        body: Rotation,
        response: { 201: CreatedApiKey }
      }
    },
    async (request, reply) => {
      const { overlap_seconds = overlapSeconds.default } = request.body
      const { tenant_id } = request.user
      const { id } = request.params
      const secret = createSecret()
      const outcome = await request.withTenant(async (trx) => {
        if (!(await isFresh(trx, request.user))) return 'stale'
        const author = await lockAuthorRole(trx)
        if (!author || !mayManage(author, 'admin')) return 'demoted'
        const key = await rotateKey(trx, { id, digest: digestOf(secret), overlap_seconds })
        if (!key) return 'unknown'
        if (key.expired) throw conflict({ detail: 'the key has expired: make another one' })
        await recordAudit(trx, { action: 'api_key.rotated', target_id: id, detail: { overlap_seconds } })
        return key
      })
      if (outcome === 'stale') throw reauthenticationRequired()
      if (outcome === 'demoted') throw roleTooLow('admin')
      if (outcome === 'unknown') throw notFound()
      await app.revocations.readNow()
      reply.code(201).header('cache-control', 'no-store')
      return { ...outcome, key: formatKey({ tenant_id, id, secret }) }
    }
  )

  app.delete(
    '/:id',
    {
      config: { access, permission, problems: ['not_found'] },
      schema: {
        operationId: 'endApiKey',
        summary: 'End an API key',
        description: 'It and its tokens are refused within a second.',
        tags,
        params: ApiKeyId,
        response: { 204: NoContent }
      }
    },
    async (request, reply) => {
      const { id } = request.params
      const ended = await request.withTenant(async (trx) => {
        const before = await deleteKey(trx, id)
        if (before) await recordAudit(trx, { action: 'api_key.ended', target_id: id, detail: { before } })
        return before
      })
      if (!ended) throw notFound()
      await app.revocations.readNow()
      reply.code(204)
    }
  )
}

/** The last moment of the year 9999: RFC 3339 has no later one. */
const endOfTime = Date.UTC(10_000, 0) - 1

/** Throws `validation_failed` for what the schema can not say. */
function requireValid({ role, permissions, cidrs = [], expires_at }: ApiKeyInput): void {
  const errors = permissions.flatMap((name, i) => {
    const { role: lowest } = permissionTable[name]
    if (mayManage(role, lowest)) return []
    return [{ path: `/body/permissions/${i}`, message: `needs a key with the role ${lowest}` }]
  })
  for (const [i, text] of cidrs.entries()) {
    if (!isRange(text))
      errors.push({ path: `/body/cidrs/${i}`, message: 'must be an address, or a range such as 192.0.2.0/24' })
  }
  const expiry = expires_at === undefined ? Number.POSITIVE_INFINITY : Date.parse(expires_at)
  if (!(expiry > Date.now())) errors.push({ path: '/body/expires_at', message: 'must be in the future' })
  if (expires_at !== undefined && expiry > endOfTime)
    errors.push({ path: '/body/expires_at', message: 'must be before the year 10000 in UTC' })
  if (errors.length > 0) throw invalidMembers(errors)
}

export default apiKeys
