import { type Static, Type } from '@sinclair/typebox'
import { invitableRoles } from '../../src/auth/roles.ts'
import { Email, Id, Name, Page, Password, StringEnum, Timestamp } from '../schemas.ts'

// without a title: an enum of its own that shares words with `Role` is two constants of one name in Go
const InvitableRole = StringEnum(invitableRoles, { examples: ['member'] })

export const InvitationInput = Type.Object(
  { email: { ...Email, examples: ['grace@example.com'] }, role: InvitableRole },
  { additionalProperties: false, title: 'InvitationInput' }
)

const Delivery = StringEnum(['queued', 'sent', 'failed', 'unknown'], {
  title: 'InvitationDelivery',
  description:
    'Of the newest mail: `failed` when a mail server refused it for good or every try failed, so that the invitation must be sent again; `unknown` a month later',
  examples: ['sent']
})

/** What a client sees. The token itself is mailed to the invitee and never returned. */
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
        'Whether it can be accepted: it has not expired, and who invited may still invite. Sent again by somebody who may, it can.',
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
    password: Type.Optional(Password)
  },
  { additionalProperties: false, title: 'Acceptance' }
)
export type Acceptance = Static<typeof Acceptance>
