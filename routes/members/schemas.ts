import { Type } from '@sinclair/typebox'
import { Email, Id, Name, Page, Role, Timestamp } from '../schemas.ts'

export const Member = Type.Object(
  { user_id: Id, email: Email, name: Name, role: Role, joined_at: Timestamp },
  { title: 'Member', description: 'A person in the agency' }
)
export const MemberPage = Page(Member, 'MemberPage')

export const MemberPatch = Type.Object(
  { role: Type.Optional(Role) },
  { additionalProperties: false, title: 'MemberPatch' }
)

export const UserId = Type.Object({ user_id: Id })
