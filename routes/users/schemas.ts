import { type Static, Type } from '@sinclair/typebox'
import { Email, Id, Name, NewPassword, Nullable, Page, Password, Role, Slug, Timestamp } from '../schemas.ts'

const strict = { additionalProperties: false }

export const UserPatch = Type.Object({ name: Type.Optional(Name) }, { ...strict, title: 'UserPatch' })

export const Confirmation = Type.Object(
  { password: Type.Optional(Password) },
  { ...strict, title: 'Confirmation', examples: [{ password: 'correct horse battery staple' }] }
)
export type AccountEnding = Static<typeof Confirmation>
export const PasswordChange = Type.Object(
  { current_password: Password, new_password: { ...NewPassword, examples: ['another correct horse battery'] } },
  { ...strict, title: 'PasswordChange' }
)

export const EmailChange = Type.Object(
  { email: { ...Email, examples: ['ada.lovelace@example.com'] }, password: Password },
  { ...strict, title: 'EmailChange' }
)

export const Session = Type.Object(
  {
    id: Id,
    tenant_id: Id,
    tenant_slug: Slug,
    user_agent: Nullable(Type.String({ examples: ['Aggios/1.4 (Android 16)'] })),
    ip: Nullable(Type.String({ examples: ['203.0.113.7'] })),
    current: Type.Boolean({ description: 'Whether it is the session of this request', examples: [true] }),
    bound: Type.Boolean({
      description: 'Whether its tokens are of use only with proofs of a key of the device (DPoP)',
      examples: [false]
    }),
    created_at: Timestamp,
    last_used_at: Timestamp,
    expires_at: Timestamp
  },
  { title: 'Session', description: 'A device that is signed in' }
)
export const SessionPage = Page(Session, 'SessionPage')

export const MyTenant = Type.Object({ id: Id, name: Name, slug: Slug, role: Role }, { title: 'MyTenant' })
export const MyTenantPage = Page(MyTenant, 'MyTenantPage')

export const SessionId = Type.Object({ id: Id })
