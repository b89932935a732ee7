import type { FastifyPluginAsyncTypebox } from '@fastify/type-provider-typebox'
import type { FastifyContextConfig, FastifyReply } from 'fastify'
import type { TenantTransaction } from '../../db/gate/gate.ts'
import { recordAudit } from '../../db/queries/audit.ts'
import { invalidMembers } from '../../src/http/field-errors.ts'
import { conflict, notFound } from '../../src/http/problems.ts'
import { maxUuid } from '../../src/uuids.ts'
import {
  type DeliveryRow,
  hasWaiting,
  insertReplay,
  insertReplays,
  insertTest,
  listAttempts,
  listDeliveries,
  readDelivery
} from './delivery-queries.ts'
import { lockWebhook, readWebhook } from './queries.ts'
import {
  DeliveryId,
  DeliveryQuery,
  maxReplayed,
  WebhookDelivery,
  WebhookDeliveryPage,
  WebhookDeliveryWithAttempts,
  WebhookId,
  WebhookReplay,
  WebhookReplayInput
} from './schemas.ts'

/** What was sent to a webhook, what came of it, and sending it again. */
const deliveries: FastifyPluginAsyncTypebox = async (app) => {
  const access = 'admin'
  const tags = ['webhooks']
  const sending: FastifyContextConfig = {
    ...{ access, permission: 'webhooks:replay', throttled: true, repeatable: true },
    problems: ['not_found', 'conflict']
  }

  app.get(
    '/deliveries',
    {
      config: { access, permission: 'webhooks:read', problems: ['not_found', 'invalid_cursor'] },
      schema: {
        operationId: 'listWebhookDeliveries',
        summary: 'The deliveries of a webhook',
        description: 'The newest first, of the last thirty days.',
        tags,
        params: WebhookId,
        querystring: DeliveryQuery,
        response: { 200: WebhookDeliveryPage }
      }
    },
    async (request, reply) => {
      const { limit = 25, cursor, status = null } = request.query
      const { tenant_id } = request.user
      const { id } = request.params
      const scope = `webhook deliveries ${tenant_id} ${id} ${status}`
      const [before = maxUuid] = app.cursors.require(scope, cursor)
      const [webhook] = await request.tenantQuery(readWebhook, { tenant_id, id })
      if (!webhook) throw notFound()
      const rows = await request.tenantQuery(listDeliveries, { tenant_id, id, status, before, limit: limit + 1 })
      reply.header('cache-control', 'private, no-cache')
      const page = app.cursors.page(scope, rows, limit, (row) => [row.id])
      return { ...page, data: page.data.map(present) }
    }
  )

  app.get(
    '/deliveries/:delivery_id',
    {
      config: { access, permission: 'webhooks:read', problems: ['not_found'] },
      schema: {
        operationId: 'getWebhookDelivery',
        summary: 'A delivery of a webhook',
        description: 'With its attempts: when, for how long, the status, and the beginning of the reply.',
        tags,
        params: DeliveryId,
        response: { 200: WebhookDeliveryWithAttempts }
      }
    },
    async (request, reply) => {
      const { tenant_id } = request.user
      const [delivery] = await request.tenantQuery(readDelivery, { tenant_id, ...request.params })
      if (!delivery) throw notFound()
      const { id: delivery_id } = delivery
      const log = await request.tenantQuery(listAttempts, { tenant_id, delivery_id })
      reply.header('cache-control', 'private, no-cache')
      return { ...present(delivery), log }
    }
  )

  app.post(
    '/test',
    {
      config: sending,
      schema: {
        operationId: 'testWebhook',
        summary: 'Send a test to a webhook',
        description: 'A message of the type `webhook.test`, whatever types the webhook wants.',
        tags,
        params: WebhookId,
        response: { 202: WebhookDelivery }
      }
    },
    async (request, reply) => {
      const { id } = request.params
      reply.code(202)
      const delivery = await request.createOnce(reply, async (trx) => {
        await requireReady(trx, id)
        return accepted(reply, id, await insertTest(trx, id))
      })
      app.webhooks.wake()
      return delivery
    }
  )

  app.post(
    '/deliveries/:delivery_id/replay',
    {
      config: sending,
      schema: {
        operationId: 'replayWebhookDelivery',
        summary: 'Send a delivery again',
        description: 'As a new delivery of the same event, with the same `webhook-id`.',
        tags,
        params: DeliveryId,
        response: { 202: WebhookDelivery }
      }
    },
    async (request, reply) => {
      const { id, delivery_id } = request.params
      reply.code(202)
      const replayed = await request.createOnce(reply, async (trx) => {
        await requireReady(trx, id)
        const delivery = await insertReplay(trx, id, delivery_id)
        if (!delivery) throw notFound()
        const detail = { event_id: delivery.event_id, count: 1 }
        await recordAudit(trx, { action: 'webhook.replayed', target_id: id, detail })
        return accepted(reply, id, delivery)
      })
      app.webhooks.wake()
      return replayed
    }
  )

  app.post(
    '/replay',
    {
      config: sending,
      schema: {
        operationId: 'replayWebhook',
        summary: 'Send the events of a time again',
        description: `Those that the webhook wants, in their order, each with the same \`webhook-id\` as before. Also events that happened before there was the webhook, or while it was disabled. Events are known for thirty days. At most ${maxReplayed} at a time: \`conflict\`.`,
        tags,
        params: WebhookId,
        body: WebhookReplayInput,
        response: { 202: WebhookReplay }
      }
    },
    async (request, reply) => {
      const { id } = request.params
      const { from, to } = request.body
      if (!(Date.parse(from) < Date.parse(to)))
        throw invalidMembers([{ path: '/body/to', message: 'must be after from' }])
      reply.code(202)
      const replayed = await request.createOnce(reply, async (trx) => {
        await requireReady(trx, id)
        const count = await insertReplays(trx, id, { from, to, most: maxReplayed })
        if (count > maxReplayed) throw conflict({ detail: `there are more than ${maxReplayed} events in this time` })
        await recordAudit(trx, { action: 'webhook.replayed', target_id: id, detail: { from, to, count } })
        return { webhook_id: id, count }
      })
      app.webhooks.wake()
      return replayed
    }
  )
}

/** `due_at` of a delivery that is over says nothing. */
function present({ due_at, ...delivery }: DeliveryRow): WebhookDelivery {
  return { ...delivery, due_at: delivery.status === 'waiting' ? due_at : null }
}

/** The reply about a delivery that is under way, with the place where it can be followed. */
function accepted(reply: FastifyReply, webhookId: string, delivery: DeliveryRow): WebhookDelivery {
  reply.header('location', `/api/v1/webhooks/${webhookId}/deliveries/${delivery.id}`)
  return present(delivery)
}

/** Locks the webhook. Throws when nothing may be added to what waits for it: it does not send, or has not sent enough yet. */
async function requireReady(trx: TenantTransaction, id: string): Promise<void> {
  const webhook = await lockWebhook(trx, id)
  if (!webhook) throw notFound()
  if (webhook.status === 'disabled') throw conflict({ detail: 'the webhook is disabled: enable it first' })
  if (await hasWaiting(trx, id, maxReplayed)) {
    throw conflict({ detail: `${maxReplayed} deliveries wait for this webhook: let it take them first` })
  }
}

export default deliveries
