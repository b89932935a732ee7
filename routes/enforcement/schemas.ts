import { Type } from '@sinclair/typebox'
import { Id, Nullable, Timestamp } from '../schemas.ts'
import { maxBreakGlassOwners } from './queries.ts'

export const EnforcementInput = Type.Object(
  { provider_id: Id },
  { additionalProperties: false, title: 'EnforcementInput' }
)

const BreakGlassOwner = Type.Object(
  {
    user_id: Id,
    ready: Type.Boolean({
      description: 'Whether they have what they come in with: a password and a second factor',
      examples: [true]
    })
  },
  { title: 'BreakGlassOwner' }
)

export const Enforcement = Type.Object(
  {
    provider_id: Nullable(Id),
    enforced_from: Nullable(Timestamp),
    break_glass_owners: Type.Array(BreakGlassOwner, { maxItems: maxBreakGlassOwners })
  },
  { title: 'Enforcement', description: 'Without a provider, people come in as they like.' }
)

export const BreakGlassParams = Type.Object({ user_id: Id })
