import { type Static, Type } from '@sinclair/typebox'
import { uuidPattern } from '../uuids.ts'
import type { KeyReach } from './api-keys/key-reach.ts'
import { type Role, roles } from './roles.ts'

/** A key thumbprint (RFC 7638): a SHA-256 in base64url. */
const thumbprint = '^[A-Za-z0-9_-]{43}$'

/** The claims of a person's access token. Every one of them is required but `cnf`. */
export const AccessClaims = Type.Object({
  user_id: Type.String({ pattern: uuidPattern }),
  email: Type.String(),
  tenant_id: Type.String({ pattern: uuidPattern }),
  role: Type.Unsafe<Role>({ ...Type.Union(roles.map((role) => Type.Literal(role))) }),
  sid: Type.String({ pattern: uuidPattern }),
  iss: Type.String(),
  aud: Type.String(),
  iat: Type.Integer(),
  // the last second that a date of RFC 3339 can name
  exp: Type.Integer({ maximum: 253_402_300_799 }),
  jti: Type.String({ minLength: 1 }),
  /** The key of which a proof has to come with the token (RFC 9449, 6.1). Without it the token alone is enough. */
  cnf: Type.Optional(Type.Object({ jkt: Type.String({ pattern: thumbprint }) }))
})
/**
 * The claims about a caller. An API key has claims too: `user_id` is the id of the key, which no person has, `email` is empty, and
 * `key` says what it may do.
 */
export type AccessClaims = Static<typeof AccessClaims> & { key?: KeyReach }

/** The claims of an access token that an API key has got (RFC 9068, 2.2). `scope` lists permissions. */
export const KeyTokenClaims = Type.Object({
  client_id: Type.String({ pattern: uuidPattern }),
  sub: Type.String({ pattern: uuidPattern }),
  scope: Type.String(),
  cidrs: Type.Array(Type.String()),
  ...Type.Pick(AccessClaims, ['tenant_id', 'role', 'sid', 'iss', 'aud', 'iat', 'exp', 'jti']).properties
})
export type KeyTokenClaims = Static<typeof KeyTokenClaims>

/** For whom a token is issued, and the key that its session is bound to. */
export type TokenSubject = Pick<AccessClaims, 'user_id' | 'email' | 'tenant_id' | 'role' | 'sid'> & {
  key_thumbprint: string | null
}
