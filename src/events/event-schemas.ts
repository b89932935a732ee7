import { type TSchema, Type } from '@sinclair/typebox'
import { type EventType, eventTypes } from './event-types.ts'
import { testType } from './webhook-messages.ts'

/*
 * What `detail` of each type of events has. Members may be added to a type later, and none is removed.
 */

const text = Type.String()
const count = Type.Integer({ minimum: 0 })
const id = Type.String({ format: 'uuid' })
const orNull = (schema: TSchema) => Type.Unsafe({ ...schema, type: [schema.type, 'null'] })
const before = (members: Record<string, TSchema>) => ({ before: Type.Object(members) })
const after = (members: Record<string, TSchema>) => ({ after: Type.Object(members) })
const both = (members: Record<string, TSchema>) => Type.Object({ ...before(members), ...after(members) })
/** Null for now: members may be added. */
const none = orNull(Type.Object({}))
const maybe = (members: Record<string, TSchema>) => orNull(Type.Partial(Type.Object(members)))

const name = { name: text }
const role = { role: text }
/** Who or what did it, when that was not the actor: an operator, or a way to sign in. */
const by = { by: text }
const provider = { provider: text }
const invitation = { email: text, ...role }
const passkey = { passkey_id: id }
const agency = { ...name, settings: Type.Object({}) }
/** Longer than any list that there is. */
const texts = Type.Array(text, { maxItems: 200 })
const webhook = { url: text, description: text, event_types: texts, status: text }
const identityProvider = {
  ...{ ...name, issuer: text, client_id: text, email_claim: text, name_claim: text },
  ...{ trust_email: Type.Boolean(), newcomer_role: orNull(text) }
}
const apiKey = { ...name, ...role, permissions: texts, cidrs: texts, expires_at: orNull(text) }
const file = { ...name, content_type: orNull(text), size: count, sha256: text, purpose: orNull(text) }

export const eventDetails: Record<EventType, TSchema> = {
  'api_key.created': Type.Object(after(apiKey)),
  // without a reason a person has ended it, or an operator, whom `by` names
  'api_key.ended': Type.Object({ ...before(name), by: Type.Optional(text), reason: Type.Optional(text) }),
  'api_key.rotated': Type.Object({ overlap_seconds: count }),
  'domain.added': Type.Object(name),
  'domain.lost': Type.Object(name),
  'domain.removed': Type.Object(name),
  'domain.verified': Type.Object(name),
  'enforcement.ended': none,
  'enforcement.started': Type.Object({ ...before({ provider_id: orNull(id) }), ...after({ provider_id: id }) }),
  'file.created': Type.Object(after(file)),
  'file.deleted': Type.Object({ ...before(name), permanent: Type.Boolean() }),
  'file.lost': none,
  'file.restored': Type.Object(after(name)),
  'identity_provider.created': Type.Object(after(identityProvider)),
  'identity_provider.deleted': Type.Object({ ...before(identityProvider), sessions_ended: count }),
  'identity_provider.updated': both(identityProvider),
  'invitation.accepted': Type.Object({ ...role, by: Type.Optional(text), address_released_by: Type.Optional(text) }),
  'invitation.created': Type.Object(after(invitation)),
  'invitation.resent': none,
  'invitation.revoked': Type.Object(before(invitation)),
  'mail.dropped': Type.Object({ ...by, kind: text }),
  'mail.retried': Type.Object({ ...by, kind: text }),
  // without a provider it was an invitation
  'member.added': Type.Object({ ...role, provider: Type.Optional(text) }),
  'member.break_glass_granted': none,
  'member.break_glass_removed': none,
  'member.removed': Type.Object(before(role)),
  'member.role_changed': both(role),
  'member.sessions_ended': Type.Object({ ended: count }),
  'session.break_glass': none,
  'session.ended': maybe({ ...by, reason: text }),
  'session.opened': maybe(by),
  'session.reauthenticated': maybe(by),
  'session.refresh_reused': none,
  'session.switched': maybe(by),
  'tenant.deleted': none,
  'tenant.exported': none,
  'tenant.imported': Type.Object({ export: text, ...by }),
  'tenant.logo_removed': none,
  'tenant.logo_set': none,
  'tenant.plan_changed': Type.Object(after({ plan: text })),
  'tenant.purged': none,
  'tenant.registered': none,
  'tenant.restored': Type.Object({ to: Type.String({ format: 'date-time' }), ...by }),
  'tenant.resumed': none,
  'tenant.suspended': none,
  'tenant.transferred': Type.Object(before(role)),
  'tenant.updated': both(agency),
  'upload.ended': Type.Object(before({ ...name, size: count })),
  'user.address_released': none,
  'user.avatar_removed': none,
  'user.avatar_set': none,
  'user.deleted': none,
  'user.disabled': Type.Object(by),
  'user.email_change_requested': Type.Object(after({ email: text })),
  'user.email_changed': both({ email: text }),
  'user.email_verified': none,
  'user.enabled': Type.Object(by),
  'user.identity_linked': Type.Object({ ...provider, by: Type.Optional(text) }),
  'user.identity_unlinked': Type.Object({ ...provider, by: Type.Optional(text) }),
  'user.mfa_enabled': none,
  'user.mfa_removed': maybe({ ...by, factor: text }),
  'user.passkey_added': Type.Object(passkey),
  'user.passkey_removed': Type.Object(passkey),
  'user.password_changed': none,
  'user.password_reset': none,
  'user.recovery_code_used': none,
  'user.recovery_codes_renewed': none,
  'user.sessions_ended': Type.Object({ ended: count }),
  'user.signed_out': Type.Object(by),
  'user.updated': both(name),
  'webhook.created': Type.Object(after(webhook)),
  'webhook.deleted': Type.Object(before(webhook)),
  'webhook.disabled': Type.Object({ url: text, reason: text }),
  'webhook.replayed': Type.Object({
    ...{ count, event_id: Type.Optional(id) },
    ...{ from: Type.Optional(text), to: Type.Optional(text) }
  }),
  'webhook.secret_rotated': none,
  'webhook.updated': both(webhook)
}

/** The body of a message of one type. It has a name, so that generated clients have its type. */
function messageSchema(type: string, detail: TSchema) {
  const members = {
    type: Type.Unsafe({ type: 'string', enum: [type] }),
    timestamp: Type.String({ format: 'date-time', description: 'When it happened' }),
    data: Type.Object({
      id: Type.String({ format: 'uuid', description: 'The same in each delivery; also sent as `webhook-id`' }),
      tenant_id: id,
      position: orNull(
        Type.Integer({ format: 'int64', description: 'Orders the events of an agency. Null in a test.' })
      ),
      actor_id: orNull(Type.String({ format: 'uuid', description: 'The person who did it; null for nobody known' })),
      target_id: orNull(id),
      session_id: orNull(id),
      detail
    })
  }
  const words = type.split(/[._]/).map((word) => word.charAt(0).toUpperCase() + word.slice(1))
  return Type.Object(members, { title: `${words.join('')}Event` })
}

/** The member `webhooks` of the OpenAPI document: the messages that a receiver gets. */
export function describeWebhooks(): Record<string, { post: object }> {
  const messages = [
    ...Object.entries(eventTypes).map(([type, { text: summary }]) => [type, summary, eventDetails[type as EventType]]),
    [testType, 'A test, which somebody has asked for', none]
  ] as [string, string, TSchema][]
  return Object.fromEntries(
    messages.map(([type, summary, detail]) => [type, { post: describe(type, summary, detail) }])
  )
}

function describe(type: string, summary: string, detail: TSchema): object {
  return {
    operationId: `on_${type.replace('.', '_')}`,
    summary,
    description:
      'A message by Standard Webhooks. Any reply of 2xx within 15 seconds takes it; everything else has it sent again.',
    tags: ['webhooks'],
    security: [],
    parameters: ['webhook-id', 'webhook-timestamp', 'webhook-signature'].map((name) => ({
      ...{ name, in: 'header', required: true, schema: { type: 'string' } }
    })),
    requestBody: { required: true, content: { 'application/json': { schema: messageSchema(type, detail) } } },
    responses: {
      '2XX': { description: 'Taken' },
      '410': { description: 'The endpoint is gone for good: the webhook is switched off' },
      default: { description: 'Not taken: it is sent again, for three days' }
    }
  }
}
