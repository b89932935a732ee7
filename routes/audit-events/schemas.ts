import { type Static, Type } from '@sinclair/typebox'
import { messageKeyword } from '../../src/http/field-errors.ts'
import { Id, Nullable, Page, PageQuery, StringEnum, Timestamp } from '../schemas.ts'

const filters = {
  action: Type.Optional(
    Type.String({
      minLength: 1,
      maxLength: 64,
      pattern: '^[a-z._]+$',
      [messageKeyword]: 'must be lower-case letters, dots and underscores',
      examples: ['member.removed']
    })
  ),
  actor_id: Type.Optional(Id),
  from: Type.Optional(
    Type.String({ format: 'date-time', description: 'At or after', examples: ['2026-11-01T00:00:00Z'] })
  ),
  to: Type.Optional(Type.String({ format: 'date-time', description: 'Before', examples: ['2026-12-01T00:00:00Z'] }))
}
export const AuditFilters = Type.Object(filters, { additionalProperties: false })
export type AuditFilters = Static<typeof AuditFilters>

export const AuditQuery = Type.Object({ ...PageQuery.properties, ...filters }, { additionalProperties: false })

export const AuditEvent = Type.Object(
  {
    id: Id,
    created_at: Timestamp,
    action: Type.String({ examples: ['member.role_changed'] }),
    actor_id: Nullable(
      Type.String({ format: 'uuid', description: 'The person or the API key that did it; null for an unknown person' })
    ),
    target_id: Nullable(Type.String({ format: 'uuid' })),
    session_id: Nullable(Type.String({ format: 'uuid' })),
    ip: Nullable(Type.String({ examples: ['203.0.113.7'] })),
    user_agent: Nullable(Type.String()),
    request_id: Nullable(Type.String()),
    detail: Type.Unsafe<unknown>({
      type: ['object', 'null'],
      additionalProperties: true,
      description: 'What changed: `before` and `after`. Never a secret.',
      examples: [{ before: { role: 'viewer' }, after: { role: 'member' } }]
    })
  },
  { title: 'AuditEvent', description: 'Something that happened in the agency. Events are never changed.' }
)
export const AuditEventPage = Page(AuditEvent, 'AuditEventPage')

export const VerificationQuery = Type.Object({ cursor: PageQuery.properties.cursor }, { additionalProperties: false })

export const AuditVerification = Type.Object(
  {
    status: StringEnum(['intact', 'broken'], { examples: ['intact'] }),
    sealed_events: Type.Integer({ minimum: 0, examples: [1204] }),
    head: Nullable(
      Type.String({ description: 'Digest of the last intact segment; compare it with the one in the log' })
    ),
    broken: Type.Unsafe<{ segment: number; id: string | null; reason: string } | null>({
      type: ['object', 'null'],
      required: ['segment', 'id', 'reason'],
      properties: {
        segment: { type: 'integer' },
        id: { type: ['string', 'null'], format: 'uuid', description: 'The first event that does not match its seal' },
        reason: { type: 'string', enum: ['changed', 'removed', 'added', 'unchained', 'unsigned'] }
      }
    }),
    signed_from: Nullable(
      Type.String({
        format: 'date-time',
        description: 'Events sealed after this time are signed by the product; null when none are. It never changes.'
      })
    ),
    kept_from: Nullable(
      Type.String({
        format: 'date-time',
        description: 'Events before this time were dropped by the retention; null for none'
      })
    ),
    next_cursor: Nullable(
      Type.String({ description: 'The cursor of the next part; null when the whole log was checked' })
    )
  },
  { title: 'AuditVerification' }
)
