import { type Static, Type } from '@sinclair/typebox'
import { invitableRoles } from '../../src/auth/roles.ts'
import { Email, Id, Name, Page, Password, StringEnum, Timestamp } from '../schemas.ts'

// without a title: the Go generator would make a second enum with the same constant names as `Role`
const InvitableRole = StringEnum(invitableRoles, { examples: ['member'] })

export const InvitationInput = Type.Object(
  { email: { ...Email, examples: ['grace@example.com'] }, role: InvitableRole },
  { additionalProperties: false, title: 'InvitationInput' }
)

const Delivery = StringEnum(['queued', 'sent', 'failed', 'unknown'], {
  title: 'InvitationDelivery',
  description:
    'Delivery of the newest mail: `failed` when a mail server refused it for good or every attempt failed, so the invitation must be sent again; `unknown` after a month',
  examples: ['sent']
})

/** An invitation as clients see it. The token is mailed to the invitee and never returned. */
export const Invitation = Type.Object(
  {
    id: Id,
    email: Email,
    role: InvitableRole,
    invited_by: Id,
    created_at: Timestamp,
    expires_at: Timestamp,
    valid: Type.Boolean({
      description:
        'Whether it can be accepted: it has not expired, and its sender may still invite. When another admin sends it again, it becomes valid.',
      examples: [true]
    }),
    delivery: Delivery
  },
  { title: 'Invitation' }
)
export const InvitationPage = Page(Invitation, 'InvitationPage')

export const InvitationId = Type.Object({ id: Id })

export const Acceptance = Type.Object(
  {
    token: Type.String({ minLength: 1, maxLength: 512, examples: ['Gm9v…'] }),
    name: Type.Optional(Name),
    password: Type.Optional(Password),
    code: Type.Optional(
      Type.String({
        minLength: 6,
        maxLength: 32,
        description: 'A code of the second factor of the account, or a recovery code',
        examples: ['123456']
      })
    )
  },
  { additionalProperties: false, title: 'Acceptance' }
)
export type Acceptance = Static<typeof Acceptance>
