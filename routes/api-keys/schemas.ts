import { type Static, Type } from '@sinclair/typebox'
import { keyPattern } from '../../src/auth/api-keys/key-format.ts'
import { keyRoles, type Permission, permissions } from '../../src/auth/api-keys/permissions.ts'
import { messageKeyword } from '../../src/http/field-errors.ts'
import { Id, Name, Nullable, Page, StringEnum, Timestamp } from '../schemas.ts'

/** The networks that a key can be limited to. */
export const maxCidrs = 20
const daySeconds = 86_400
/** How long the older secret stays good beside the newer one. */
export const overlapSeconds = { default: daySeconds, max: 7 * daySeconds }

const KeyRole = StringEnum(keyRoles, {
  description: 'What the key may do at most. A key is never an owner.',
  examples: ['member']
})
const PermissionName = Type.Unsafe<Permission>({
  type: 'string',
  enum: [...permissions],
  title: 'Permission',
  examples: ['files:read']
})
const Permissions = Type.Array(PermissionName, {
  maxItems: permissions.length,
  uniqueItems: true,
  examples: [['files:read', 'files:write']]
})
const Cidrs = Type.Array(Type.String({ minLength: 2, maxLength: 50, examples: ['192.0.2.0/24'] }), {
  maxItems: maxCidrs,
  uniqueItems: true,
  description: 'Addresses and CIDR ranges from which the key may be used. None: from everywhere.',
  examples: [['192.0.2.0/24', '2001:db8::/48']]
})

export const ApiKeyInput = Type.Object(
  {
    name: Name,
    role: KeyRole,
    permissions: { ...Permissions, minItems: 1 },
    cidrs: Type.Optional(Cidrs),
    expires_at: Type.Optional(
      Type.String({
        format: 'date-time',
        description: 'Without it the key does not expire',
        examples: ['2027-11-22T10:30:00Z']
      })
    )
  },
  { additionalProperties: false, title: 'ApiKeyInput' }
)
export type ApiKeyInput = Static<typeof ApiKeyInput>

export const Rotation = Type.Object(
  {
    overlap_seconds: Type.Optional(
      Type.Integer({
        minimum: 0,
        maximum: overlapSeconds.max,
        default: overlapSeconds.default,
        description: 'How long the older key stays good. With 0 it ends at once.',
        examples: [3600]
      })
    )
  },
  { additionalProperties: false, title: 'Rotation' }
)

export const ApiKey = Type.Object(
  {
    id: Id,
    name: Name,
    role: KeyRole,
    permissions: Permissions,
    cidrs: Cidrs,
    created_by: Type.String({
      format: 'uuid',
      description: 'Who has made it, or rotated it last: the key ends with their right to'
    }),
    created_at: Timestamp,
    expires_at: Nullable(Timestamp),
    last_used_at: Nullable({ ...Timestamp, description: 'To the minute' }),
    previous_until: Nullable({
      ...Timestamp,
      description: 'Until when the key before the last rotation is good; null when it is not'
    })
  },
  { title: 'ApiKey' }
)
export const ApiKeyPage = Page(ApiKey, 'ApiKeyPage')

export const CreatedApiKey = Type.Object(
  {
    ...ApiKey.properties,
    key: Type.String({
      pattern: keyPattern,
      [messageKeyword]: 'must be an API key as it was shown',
      description: 'The key itself. It is shown once, and stored nowhere.',
      examples: [`agg_${'0'.repeat(76)}2pnO7K`]
    })
  },
  { title: 'CreatedApiKey' }
)

export const ApiKeyId = Type.Object({ id: Id })
