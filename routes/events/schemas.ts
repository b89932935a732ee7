import { Type } from '@sinclair/typebox'
import { Id, Nullable, Timestamp } from '../schemas.ts'

/** Any text: what is no event of the agency gets a `reset`, however it came about. */
const LastEventId = Type.String({
  maxLength: 100,
  description:
    'The id of the last message that was received. The stream goes on behind it. Without one it begins now. A `reset` follows when the id is unknown or older than 30 days.'
})
export const EventsQuery = Type.Object(
  {
    last_event_id: Type.Optional(LastEventId),
    seconds: Type.Optional(
      Type.Integer({
        minimum: 1,
        maximum: 86_400,
        description: 'Ends the stream after so many seconds, for readers that can not read on for ever',
        examples: [5]
      })
    )
  },
  { additionalProperties: false }
)
export const EventsHeaders = Type.Object({ 'last-event-id': Type.Optional(LastEventId) })

export const StreamedEvent = Type.Object(
  {
    id: Id,
    type: Type.String({ examples: ['member.role_changed'], description: 'What has happened. New types may be added' }),
    created_at: Timestamp,
    position: Type.Integer({
      minimum: 1,
      examples: [1796054400000000],
      description: 'Grows from event to event, with gaps'
    }),
    actor_id: Nullable(
      Type.String({ format: 'uuid', description: 'The person who did it; null for the product itself' })
    ),
    target_id: Nullable(Type.String({ format: 'uuid', description: 'What it was done to' })),
    session_id: Type.Optional(
      Nullable(Type.String({ format: 'uuid', description: 'The session in which it was done. For admins' }))
    ),
    detail: Type.Optional(
      Type.Unsafe<unknown>({
        type: ['object', 'null'],
        additionalProperties: true,
        description: 'What changed: `before` and `after`. Never a secret. For admins',
        examples: [{ before: { role: 'viewer' }, after: { role: 'member' } }]
      })
    )
  },
  { title: 'StreamedEvent', description: 'The data of one message of the stream' }
)
