import type { FastifyPluginAsyncTypebox } from '@fastify/type-provider-typebox'
import { v7 as uuidv7 } from 'uuid'
import { recordAudit } from '../../db/queries/audit.ts'
import { createWebhookSecret } from '../../src/events/webhook-signatures.ts'
import { readWebhookUrl } from '../../src/events/webhook-urls.ts'
import { matchesTag } from '../../src/http/etags.ts'
import { invalidMembers } from '../../src/http/field-errors.ts'
import { conflict, notFound, preconditionFailed } from '../../src/http/problems.ts'
import { NoContent, WriteConditions } from '../schemas.ts'
import deliveries from './deliveries.ts'
import {
  deleteWebhook,
  insertWebhook,
  listWebhooks,
  lockWebhook,
  maxWebhooks,
  previousSecretHours,
  readWebhook,
  rotateWebhookSecret,
  updateWebhook,
  type WebhookRow
} from './queries.ts'
import { Webhook, WebhookId, WebhookInput, WebhookPatch, Webhooks, WebhookWithSecret } from './schemas.ts'

/** Addresses of an agency to which its events are delivered. Their deliveries are in `deliveries.ts`. */
const webhooks: FastifyPluginAsyncTypebox = async (app) => {
  const access = 'admin'
  const tags = ['webhooks']
  const development = app.config.nodeEnv === 'development'

  const present = ({ version: _, ...webhook }: WebhookRow) => webhook
  const tagOf = ({ version }: WebhookRow) => `"${version}"`
  /** What the audit log keeps: everything but the secret. */
  const audited = ({ url, description, event_types, status }: WebhookRow) => ({
    ...{ url, description, event_types, status }
  })

  /** Throws `validation_failed` for an address that nothing may be sent to. */
  function requireUrl(text: string): string {
    const read = readWebhookUrl(text, { development })
    if ('fault' in read) throw invalidMembers([{ path: '/body/url', message: read.fault }])
    return read.url
  }

  app.get(
    '',
    {
      config: { access, permission: 'webhooks:read' },
      schema: {
        operationId: 'listWebhooks',
        summary: 'The webhooks of the agency',
        description: 'The oldest first, at most twenty. Their secrets are not shown.',
        tags,
        response: { 200: Webhooks }
      }
    },
    async (request, reply) => {
      const { tenant_id } = request.user
      reply.header('cache-control', 'private, no-cache')
      return { data: (await request.tenantQuery(listWebhooks, { tenant_id })).map(present) }
    }
  )

  app.get(
    '/:id',
    {
      config: { access, permission: 'webhooks:read', problems: ['not_found'] },
      schema: {
        operationId: 'getWebhook',
        summary: 'A webhook of the agency',
        description: 'Its secret is not shown.',
        tags,
        params: WebhookId,
        response: { 200: Webhook }
      }
    },
    async (request, reply) => {
      const { tenant_id } = request.user
      const [webhook] = await request.tenantQuery(readWebhook, { tenant_id, id: request.params.id })
      if (!webhook) throw notFound()
      reply.header('cache-control', 'private, no-cache').header('etag', tagOf(webhook))
      return present(webhook)
    }
  )

  app.post(
    '',
    {
      config: { access, permission: 'never', throttled: true, problems: ['conflict'] },
      schema: {
        operationId: 'createWebhook',
        summary: 'Add a webhook',
        description: `Events from now on are sent there, each as one signed POST (Standard Webhooks), at least once. The reply is the only one with the secret. An agency has at most ${maxWebhooks} webhooks.`,
        tags,
        body: WebhookInput,
        response: { 201: WebhookWithSecret }
      }
    },
    async (request, reply) => {
      const { description = '', event_types = [] } = request.body
      const url = requireUrl(request.body.url)
      const id = uuidv7()
      const secret = createWebhookSecret()
      const values = { id, url, description, event_types, ...app.webhookSecrets.seal(id, secret) }
      const created = await request.withTenant(async (trx) => {
        const webhook = await insertWebhook(trx, request.user.tenant_id, values)
        if (!webhook) return undefined
        const detail = { after: audited(webhook) }
        await recordAudit(trx, { action: 'webhook.created', target_id: id, detail })
        return webhook
      })
      if (!created) throw conflict({ detail: `an agency has at most ${maxWebhooks} webhooks` })
      reply.code(201).header('location', `/api/v1/webhooks/${id}`).header('etag', tagOf(created))
      reply.header('cache-control', 'no-store')
      return { ...present(created), secret }
    }
  )

  app.patch(
    '/:id',
    {
      config: { access, permission: 'never', problems: ['not_found', 'precondition_failed'] },
      schema: {
        operationId: 'updateWebhook',
        summary: 'Change a webhook',
        description:
          'JSON merge patch. What waits is sent to the new address. Events that happen while it is disabled are not delivered, and can be replayed. One that is enabled again is tried at once.',
        tags,
        headers: WriteConditions,
        params: WebhookId,
        body: WebhookPatch,
        response: { 200: Webhook }
      }
    },
    async (request, reply) => {
      const { url, ...patch } = request.body
      const change = url === undefined ? patch : { ...patch, url: requireUrl(url) }
      const condition = request.headers['if-match']
      const outcome = await request.withTenant(async (trx) => {
        const before = await lockWebhook(trx, request.params.id)
        if (!before) return 'unknown'
        if (condition !== undefined && !matchesTag(condition, tagOf(before))) return 'changed'
        if (Object.keys(change).length === 0) return before
        const after = await updateWebhook(trx, before, { ...before, ...change })
        const detail = { before: audited(before), after: audited(after) }
        await recordAudit(trx, { action: 'webhook.updated', target_id: before.id, detail })
        return after
      })
      if (outcome === 'unknown') throw notFound()
      if (outcome === 'changed') throw preconditionFailed()
      app.webhooks.wake()
      reply.header('etag', tagOf(outcome))
      return present(outcome)
    }
  )

  app.delete(
    '/:id',
    {
      config: { access, permission: 'never', problems: ['not_found'] },
      schema: {
        operationId: 'deleteWebhook',
        summary: 'Remove a webhook',
        description: 'Nothing that waits is sent any more. Its deliveries are removed as well.',
        tags,
        params: WebhookId,
        response: { 204: NoContent }
      }
    },
    async (request, reply) => {
      const deleted = await request.withTenant(async (trx) => {
        const before = await deleteWebhook(trx, request.params.id)
        if (!before) return false
        const detail = { before: audited(before) }
        await recordAudit(trx, { action: 'webhook.deleted', target_id: before.id, detail })
        return true
      })
      if (!deleted) throw notFound()
      reply.code(204)
    }
  )

  app.post(
    '/:id/secret',
    {
      config: { access, permission: 'never', throttled: true, problems: ['not_found'] },
      schema: {
        operationId: 'rotateWebhookSecret',
        summary: 'Replace the secret of a webhook',
        description: `For ${previousSecretHours} hours messages are signed by both secrets, so that a receiver can change from one to the other meanwhile. A second rotation ends the first secret at once. The reply is the only one with the new secret.`,
        tags,
        params: WebhookId,
        response: { 200: WebhookWithSecret }
      }
    },
    async (request, reply) => {
      const { id } = request.params
      const secret = createWebhookSecret()
      const sealed = app.webhookSecrets.seal(id, secret)
      const rotated = await request.withTenant(async (trx) => {
        if (!(await lockWebhook(trx, id))) return undefined
        const webhook = await rotateWebhookSecret(trx, id, sealed)
        await recordAudit(trx, { action: 'webhook.secret_rotated', target_id: id })
        return webhook
      })
      if (!rotated) throw notFound()
      reply.header('etag', tagOf(rotated)).header('cache-control', 'no-store')
      return { ...present(rotated), secret }
    }
  )

  app.register(deliveries, { prefix: '/:id' })
}

export default webhooks
