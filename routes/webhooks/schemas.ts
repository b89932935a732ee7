import { type Static, Type } from '@sinclair/typebox'
import { eventTypes } from '../../src/events/event-types.ts'
import { testType } from '../../src/events/webhook-messages.ts'
import { maxWebhookUrlLength } from '../../src/events/webhook-urls.ts'
import { Id, Line, Nullable, Page, PageQuery, StringEnum, Timestamp } from '../schemas.ts'

const strict = { additionalProperties: false }
const names = Object.keys(eventTypes) as (keyof typeof eventTypes)[]

export const EventTypeName = StringEnum(names, { title: 'EventType', examples: ['member.added'] })

const members = {
  url: Line({
    minLength: 1,
    maxLength: maxWebhookUrlLength,
    description:
      'An https address of the public internet, without a user, a password or a fragment. It may have a port from 1024 on. In development http to this machine is taken too.',
    examples: ['https://hooks.acme.example/aggios']
  }),
  description: Line({ maxLength: 200, examples: ['Books people in the CRM'] }),
  event_types: Type.Array(EventTypeName, {
    maxItems: names.length,
    uniqueItems: true,
    description: 'The types that are delivered. Empty: all types, also those that are added later.',
    examples: [['member.added', 'member.removed']]
  })
}

export const WebhookInput = Type.Object(
  {
    url: members.url,
    description: Type.Optional(members.description),
    event_types: Type.Optional(members.event_types)
  },
  { ...strict, title: 'WebhookInput' }
)

const status = (description: string) =>
  StringEnum(['enabled', 'disabled'], { title: 'WebhookStatus', description, examples: ['enabled'] })
const statusText = '`disabled`: nothing is delivered. What waits goes on when the webhook is enabled again.'

export const WebhookPatch = Type.Partial(Type.Object({ ...members, status: status(statusText) }), {
  ...strict,
  title: 'WebhookPatch'
})

const shown = {
  id: Id,
  ...members,
  status: status(statusText),
  disabled_reason: Nullable(
    StringEnum(['request', 'failing', 'gone'], {
      description:
        '`request`: somebody switched it off. `failing`: it only failed for three days. `gone`: it answered 410.',
      examples: ['failing']
    })
  ),
  disabled_at: Nullable(Timestamp),
  failing_since: Nullable({ ...Timestamp, description: 'The first of the attempts that have failed in a row' }),
  previous_secret_until: Nullable({ ...Timestamp, description: 'Until then the secret before signs as well' }),
  created_by: Nullable(Type.String({ format: 'uuid' })),
  created_at: Timestamp,
  updated_at: Timestamp
}

export const Webhook = Type.Object(shown, { title: 'Webhook' })
export const Webhooks = Type.Object({ data: Type.Array(Webhook, { maxItems: 20 }) }, { title: 'Webhooks' })

const secret = Type.String({
  description: 'Signs the messages, by Standard Webhooks. It is shown in this reply only.',
  examples: ['whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSwMfKQ9r8GKYo=']
})
export const WebhookWithSecret = Type.Object({ ...shown, secret }, { title: 'WebhookWithSecret' })

const deliveryStatuses = ['waiting', 'delivered', 'failed'] as const
const deliveryStatus = StringEnum(deliveryStatuses, {
  description: '`waiting`: it is due, or is tried again. `failed`: it is not tried again.',
  examples: ['delivered']
})

const delivery = {
  id: Id,
  webhook_id: Id,
  event_id: { ...Id, description: 'Sent as `webhook-id`. The same for each delivery of an event.' },
  event_type: Type.String({ description: `A type of events, or \`${testType}\``, examples: ['member.added'] }),
  cause: StringEnum(['event', 'replay', 'test'], { examples: ['event'] }),
  status: deliveryStatus,
  attempts: Type.Integer({ minimum: 0, examples: [1] }),
  due_at: Nullable({ ...Timestamp, description: 'When it is tried next; null when it is not tried again' }),
  created_at: Timestamp,
  finished_at: Nullable(Timestamp)
}

export const WebhookDelivery = Type.Object(delivery, { title: 'WebhookDelivery' })
export type WebhookDelivery = Static<typeof WebhookDelivery>
export const WebhookDeliveryPage = Page(WebhookDelivery, 'WebhookDeliveryPage')

const WebhookAttempt = Type.Object(
  {
    number: Type.Integer({ minimum: 1, examples: [1] }),
    started_at: Timestamp,
    duration_ms: Type.Integer({ minimum: 0, examples: [84] }),
    status: Nullable(Type.Integer({ description: 'The status of the reply; null without one', examples: [200] })),
    error: Nullable(
      Type.String({
        description:
          'What went wrong: `status`, `redirect`, `timeout`, `tls`, `connection`, `connection_refused`, `unknown_host`, `refused` (no address of the public internet), `failed`, or `unknown_event` (the audit log no longer has it)',
        examples: ['status']
      })
    ),
    reply: Nullable(Type.String({ description: 'The first 1,024 bytes of its body', examples: ['thank you'] }))
  },
  { title: 'WebhookAttempt' }
)

export const WebhookDeliveryWithAttempts = Type.Object(
  { ...delivery, log: Type.Array(WebhookAttempt, { maxItems: 100, description: 'The attempts, the oldest first' }) },
  { title: 'WebhookDeliveryWithAttempts' }
)

export const WebhookId = Type.Object({ id: Id })
export const DeliveryId = Type.Object({ id: Id, delivery_id: Id })
export const DeliveryQuery = Type.Object(
  { ...PageQuery.properties, status: Type.Optional(StringEnum(deliveryStatuses)) },
  { additionalProperties: false }
)

export const maxReplayed = 10_000
export const WebhookReplayInput = Type.Object(
  {
    from: Type.String({ format: 'date-time', description: 'At or after', examples: ['2026-11-21T00:00:00Z'] }),
    to: Type.String({ format: 'date-time', description: 'Before', examples: ['2026-11-22T00:00:00Z'] })
  },
  { ...strict, title: 'WebhookReplayInput' }
)
export const WebhookReplay = Type.Object(
  {
    webhook_id: Id,
    count: Type.Integer({ minimum: 0, maximum: maxReplayed, description: 'New deliveries', examples: [12] })
  },
  { title: 'WebhookReplay' }
)
