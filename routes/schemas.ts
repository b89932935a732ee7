import { type Static, type StringOptions, type TSchema, Type } from '@sinclair/typebox'
import { type Role as RoleName, roles } from '../src/auth/roles.ts'
import { messageKeyword, notOneLine } from '../src/http/field-errors.ts'
import { locales } from '../src/mail/layout.ts'
import { slugPattern } from '../src/tenancy/slugs.ts'
import { uuidPattern } from '../src/uuids.ts'

/** A string `enum`. Client generators make an enum of it; a union of literals would become separate constants. */
export function StringEnum<const T extends readonly string[]>(values: T, options: object = {}) {
  return Type.Unsafe<T[number]>({ type: 'string', enum: [...values], ...options })
}

export function Nullable<T extends TSchema>(schema: T) {
  const nullable = { ...schema, type: [schema.type, 'null'] }
  return Type.Unsafe<Static<T> | null>(schema.enum ? { ...nullable, enum: [...schema.enum, null] } : nullable)
}

/**
 * One line of text, without control characters and unpaired surrogates. The pattern covers ASCII only, so that the
 * regular expressions of every generated client's language can read it. `x-one-line` makes the server refuse the other
 * characters.
 */
export function Line(options: StringOptions) {
  return Type.String({
    'x-one-line': true,
    pattern: '^[^\\x00-\\x1f\\x7f]*$',
    [messageKeyword]: notOneLine,
    ...options
  })
}

/** A UUID in lower case. The pattern is needed because the format also accepts upper case and `urn:uuid:`. */
export const Id = Type.String({
  format: 'uuid',
  pattern: uuidPattern,
  [messageKeyword]: 'must be a UUID in lower case',
  examples: ['019a2c4e-7b1d-7c3e-9f00-3d5a1b2c4d5e']
})

/** The serializer writes a Date as RFC 3339 in UTC with milliseconds. */
export const Timestamp = Type.Unsafe<Date | string>({
  type: 'string',
  format: 'date-time',
  examples: ['2026-11-22T10:30:00.000Z']
})

/**
 * The name of a person or a thing. Invisible characters are trimmed from both ends before validation, so a name without
 * visible characters is too short.
 */
export const Name = Line({ 'x-trimmed': true, minLength: 1, maxLength: 100, examples: ['Ada Lovelace'] })

export const Email = Type.String({ format: 'email', maxLength: 254, examples: ['ada@example.com'] })
export const Slug = Type.String({
  pattern: slugPattern,
  [messageKeyword]:
    'must be 3 to 40 lower-case letters, digits and hyphens, begin with a letter and end with a letter or digit',
  minLength: 3,
  maxLength: 40,
  examples: ['acme']
})

const password = { minLength: 1, maxLength: 1024, 'x-max-bytes': 1024, examples: ['correct horse battery staple'] }

/** A password at sign-in. It has no rules, so that old passwords stay accepted. */
export const Password = Type.String(password)

/**
 * A new password. Its rules depend on a setting and on other members of the body; `plugins/http/validation.ts` checks
 * them.
 */
export const NewPassword = Type.String({ ...password, 'x-new-password': true })

export const Role = Type.Unsafe<RoleName>({ type: 'string', enum: [...roles], title: 'Role', examples: ['member'] })

const maxPageLimit = 100
export const PageQuery = Type.Object(
  {
    limit: Type.Optional(Type.Integer({ minimum: 1, maximum: maxPageLimit, default: 25 })),
    cursor: Type.Optional(
      Type.String({ minLength: 1, maxLength: 1024, description: '`next_cursor` of the page before' })
    )
  },
  { additionalProperties: false }
)

export function Page<T extends TSchema>(item: T, title: string) {
  return Type.Object(
    { data: Type.Array(item, { maxItems: maxPageLimit }), next_cursor: Nullable(Type.String()) },
    { title }
  )
}

/** The conditions of a read: a client that has the newest version gets no body. */
export const ReadConditions = Type.Object({
  'if-none-match': Type.Optional(
    Type.String({ description: 'ETag of the version that the client has', examples: ['"1.1-441d7c9db9ee"'] })
  )
})

/** The conditions of a change: refuses a change of an object that has changed since it was read. */
export const WriteConditions = Type.Object({
  'if-match': Type.Optional(
    Type.String({
      description: 'ETag of the version that the client read, weak or strong',
      examples: ['"1.1-441d7c9db9ee"']
    })
  )
})

/** The reply when the work goes on after it. */
export const Accepted = Type.Object(
  { status: StringEnum(['accepted'], { examples: ['accepted'] }) },
  { title: 'Accepted' }
)

/** A reply without a body: the handler sets the status and returns nothing. */
export const NoContent = Type.Unsafe<void>({ type: 'null', description: 'Done, without a body' })

export const NotModified = Type.Unsafe<void>({ type: 'null', description: 'The client has the newest version' })

/** Binary content, for the OpenAPI document. */
export const Bytes = Type.String({ format: 'binary', examples: ['%PDF-1.7'] })

export const maxAllowedOrigins = 50

const imageAddress = 'URL of an image, relative to the origin of this API'

export const Tenant = Type.Object(
  {
    id: Id,
    name: Name,
    slug: Slug,
    status: StringEnum(['active', 'suspended'], { examples: ['active'] }),
    plan: Type.String({ examples: ['free'] }),
    settings: Type.Object(
      {
        allowed_origins: Type.Optional(
          Type.Array(Type.String({ maxLength: 255 }), {
            maxItems: maxAllowedOrigins,
            examples: [['https://app.acme.example']]
          })
        ),
        locale: Type.Optional(StringEnum(locales, { title: 'Locale', examples: ['pt-BR'] })),
        mfa_required_from: Type.Optional({
          ...Timestamp,
          description: 'When sessions in this agency begin to need a second factor'
        })
      },
      { description: 'Settings that the agency chooses' }
    ),
    logo_url: Nullable(Type.String({ description: imageAddress, examples: [null] })),
    usage: Type.Object({
      members: Type.Integer({ minimum: 0, examples: [3] }),
      storage_bytes: Type.Integer({
        format: 'int64',
        minimum: 0,
        description: 'Size of all files, including unfinished uploads and files that can be restored',
        examples: [1024]
      }),
      storage_quota: Type.Integer({ format: 'int64', minimum: 0, examples: [10_737_418_240] })
    }),
    created_at: Timestamp,
    updated_at: Timestamp
  },
  { title: 'Tenant' }
)

/** Converts a row to a `Tenant`: the counts move into `usage`, next to the quota. */
export function presentTenant<T extends { members: number; storage_bytes: number }>(
  { members, storage_bytes, ...row }: T,
  storage_quota: number
) {
  return { ...row, usage: { members, storage_bytes, storage_quota } }
}

export const User = Type.Object(
  {
    id: Id,
    email: Email,
    name: Name,
    avatar_url: Nullable(Type.String({ description: imageAddress, examples: [null] })),
    email_verified: Type.Boolean({ examples: [false] }),
    mfa_enabled: Type.Boolean({ description: 'Whether sign-in asks for a second factor', examples: [false] }),
    tenant_id: Id,
    role: Role,
    created_at: Timestamp,
    updated_at: Timestamp
  },
  { title: 'User', description: 'The signed-in person in the tenant of the token' }
)

const encoded = (maxLength: number, options: object = {}) =>
  Type.String({
    maxLength,
    pattern: '^[A-Za-z0-9_-]*$',
    [messageKeyword]: 'must be base64url without padding',
    ...options
  })
/** WebAuthn allows ids of 1023 bytes. */
export const CredentialId = encoded(1364, { minLength: 1, examples: ['AQIDBAUGBwgJCgsMDQ4PEA'] })
export const ClientData = encoded(8192, { minLength: 1, examples: ['eyJ0eXBlIjoid2ViYXV0aG4uZ2V0'] })
export const AuthenticatorBytes = encoded(16_384, { minLength: 1, examples: ['SZYN5YgOjGh0NBcPZHZgW4_krrmihj'] })
/** What both answers of a browser have beside `response`. The server uses none of it. */
export const credentialMembers = {
  id: CredentialId,
  rawId: CredentialId,
  type: StringEnum(['public-key'], { examples: ['public-key'] }),
  authenticatorAttachment: Type.Optional(Nullable(Type.String({ maxLength: 32, examples: ['platform'] }))),
  clientExtensionResults: Type.Optional(Type.Unsafe<object>({ type: 'object', examples: [{}] }))
}
/** The answer of `navigator.credentials.get` as JSON (WebAuthn, `AuthenticationResponseJSON`). */
export const PasskeyAssertion = Type.Object(
  {
    ...credentialMembers,
    response: Type.Object(
      {
        clientDataJSON: ClientData,
        authenticatorData: AuthenticatorBytes,
        signature: AuthenticatorBytes,
        userHandle: Type.Optional(Nullable(encoded(128, { examples: ['AZosTnsdfD6fAD1aGyw9Xg'] })))
      },
      { additionalProperties: false }
    )
  },
  {
    additionalProperties: false,
    title: 'PasskeyAssertion',
    description: 'What `navigator.credentials.get` returned, as its `toJSON()` writes it'
  }
)

export const CredentialDescriptor = Type.Object({
  id: CredentialId,
  type: StringEnum(['public-key'], { examples: ['public-key'] }),
  transports: Type.Optional(Type.Array(Type.String({ examples: ['internal'] }), { maxItems: 16 }))
})
export const Challenge = Type.String({ description: 'base64url', examples: ['Gm9v'] })
export const RpId = Type.String({ description: 'The domain that the passkeys belong to', examples: ['aggios.app'] })
export const PasskeyTimeout = Type.Integer({ minimum: 0, description: 'Milliseconds', examples: [300_000] })

/** `PublicKeyCredentialRequestOptionsJSON` of WebAuthn. */
export const PasskeyRequestOptions = Type.Object(
  {
    challenge: Challenge,
    rpId: RpId,
    timeout: PasskeyTimeout,
    userVerification: Type.String({ examples: ['required'] }),
    allowCredentials: Type.Array(CredentialDescriptor, { maxItems: 20 })
  },
  { title: 'PasskeyRequestOptions', description: 'For `PublicKeyCredential.parseRequestOptionsFromJSON`' }
)

const tokenMembers = {
  access_token: Type.String({
    description: 'A JWT for `Authorization`, with `token_type` as the scheme',
    examples: ['eyJ…']
  }),
  refresh_token: Type.String({ description: 'Opaque; valid for one use', examples: ['Gm9v…'] }),
  token_type: StringEnum(['Bearer', 'DPoP'], {
    description:
      '`DPoP` when the session was opened with a proof of a key: its tokens are of use only with such proofs',
    examples: ['Bearer']
  }),
  expires_in: Type.Integer({ description: 'Lifetime of the access token in seconds', examples: [86_400] })
}
export const TokenReply = Type.Object(tokenMembers, { title: 'TokenReply' })
export const Registration = Type.Object({ ...tokenMembers, user: User, tenant: Tenant }, { title: 'Registration' })
