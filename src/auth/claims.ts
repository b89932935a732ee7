import { type Static, Type } from '@sinclair/typebox'
import { type Role, roles } from './roles.ts'

const uuid = '^[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}$'

/** The claims of an access token. Every one of them is required. */
export const AccessClaims = Type.Object({
  user_id: Type.String({ pattern: uuid }),
  email: Type.String(),
  tenant_id: Type.String({ pattern: uuid }),
  role: Type.Unsafe<Role>({ ...Type.Union(roles.map((role) => Type.Literal(role))) }),
  sid: Type.String({ pattern: uuid }),
  iss: Type.String(),
  aud: Type.String(),
  iat: Type.Integer(),
  // the last second that a date of RFC 3339 can name
  exp: Type.Integer({ maximum: 253_402_300_799 }),
  jti: Type.String({ minLength: 1 })
})
export type AccessClaims = Static<typeof AccessClaims>

/** The claims that say for whom a token is issued. */
export type TokenSubject = Pick<AccessClaims, 'user_id' | 'email' | 'tenant_id' | 'role' | 'sid'>
