import { type Static, Type } from '@sinclair/typebox'
import { messageKeyword } from '../../src/http/field-errors.ts'
import { Id, Nullable, StringEnum, Timestamp } from '../schemas.ts'

const strict = { additionalProperties: false }

const providerKey = Type.String({
  minLength: 1,
  maxLength: 64,
  description: "`google`, `github`, or the id of an agency's own provider",
  examples: ['google']
})
export const ProviderKey = Type.Object({ provider: providerKey })

const redirectTo = Type.String({
  minLength: 1,
  maxLength: 1024,
  description:
    "Where the person comes back to, with `code` or `error` in the query: a page whose origin is the agency's own or one of CORS_ORIGINS, or an address of APP_REDIRECTS. A sign-in through the agency's own provider may also lead to its `settings.allowed_origins`: it is good in that agency only",
  examples: ['https://acme.aggios.app/signed-in']
})
const codeChallenge = Type.String({
  pattern: '^[A-Za-z0-9_-]{43}$',
  [messageKeyword]: 'must be 43 characters of base64url, without padding',
  description: 'PKCE (RFC 7636) of the client with S256: base64url of the SHA-256 of its `code_verifier`',
  examples: ['E9Melhoa2OwvFrEMTJguCHaoeK1t8URWbuGJSstw-cM']
})
const tenant = Type.String({
  minLength: 1,
  maxLength: 63,
  description: 'Slug of the agency; not needed on the host of the agency. Without both, the agency used last.',
  examples: ['acme']
})

const invitation = Type.String({
  minLength: 1,
  maxLength: 512,
  description:
    'The token of a mailed invitation, to accept it by this sign-in. The agency is that of the invitation. It never goes to the provider',
  examples: ['Gm9v…']
})

export const SignInStart = Type.Object(
  {
    redirect_to: redirectTo,
    code_challenge: codeChallenge,
    tenant: Type.Optional(tenant),
    invitation: Type.Optional(invitation)
  },
  strict
)
export type SignInStart = Static<typeof SignInStart>

const answer = (maxLength: number, description: string) =>
  Type.Optional(Type.String({ minLength: 1, maxLength, description }))

/** Providers add parameters of their own, which are ignored but for the check of the provider's answer. */
export const ProviderAnswer = Type.Object({
  state: answer(512, 'The state of the flow'),
  code: answer(4096, 'The code of the provider'),
  error: answer(512, 'Why the provider gives no code'),
  iss: answer(512, 'The issuer (RFC 9207)')
})
export type ProviderAnswer = Static<typeof ProviderAnswer>

export const LinkTicket = Type.Object(
  {
    ticket: Type.String({
      minLength: 1,
      maxLength: 4096,
      description: 'The ticket of `startLinking`',
      examples: ['Gm9v…']
    })
  },
  strict
)
export type LinkTicket = Static<typeof LinkTicket>

/** A reply that leads elsewhere. */
export const Redirect = Type.Unsafe<void>({ type: 'null', description: 'Go to `Location`' })

const code = Type.String({
  minLength: 1,
  maxLength: 8192,
  description: '`code` in the query of `redirect_to`, good for a minute and once',
  examples: ['Gm9v…']
})
const codeVerifier = Type.String({
  pattern: '^[A-Za-z0-9._~-]{43,128}$',
  [messageKeyword]: 'must be 43 to 128 letters, digits, hyphens, dots, underscores and tildes',
  description: 'The secret of the `code_challenge`. A wrong one uses the code up.',
  examples: ['dBjftJeZ4CVP-mB92K27uhbUJU1p1r_wW1gFWFOEjXk']
})
export const CodeExchange = Type.Object({ code, code_verifier: codeVerifier }, { ...strict, title: 'CodeExchange' })
export type CodeExchange = Static<typeof CodeExchange>

export const OfferQuery = Type.Object({ tenant: Type.Optional(tenant) }, strict)
const kind = StringEnum(['google', 'github', 'openid'], { examples: ['google'] })
export const OfferedProviders = Type.Object(
  {
    data: Type.Array(
      Type.Object(
        {
          id: Type.String({ description: 'Goes into the path of the sign-in', examples: ['google'] }),
          name: Type.String({ examples: ['Google'] }),
          kind
        },
        { title: 'OfferedProvider' }
      ),
      { maxItems: 12 }
    ),
    required_provider: Nullable(
      Type.String({ description: '`id` of the provider that the agency demands. Null: none.', examples: [null] })
    )
  },
  { title: 'OfferedProviders' }
)

export const IdentityId = Type.Object({ id: Id })
export const Identity = Type.Object(
  {
    id: Id,
    provider: Type.String({
      description: "`google`, `github`, or the id of an agency's own provider",
      examples: ['google']
    }),
    name: Nullable(Type.String({ description: "Of an agency's own provider", examples: [null] })),
    tenant_id: Nullable({ ...Id, description: 'The agency in which it is good. Null: in all.' }),
    email: Nullable(
      Type.String({ description: 'As the provider has said last. It decides nothing.', examples: ['ada@example.com'] })
    ),
    created_at: Timestamp,
    last_used_at: Nullable(Timestamp)
  },
  { title: 'Identity' }
)
export const Identities = Type.Object({ data: Type.Array(Identity, { maxItems: 20 }) }, { title: 'Identities' })

export const LinkingStart = Type.Object(
  { provider: providerKey, redirect_to: redirectTo, code_challenge: codeChallenge },
  { ...strict, title: 'LinkingStart' }
)
export type LinkingStart = Static<typeof LinkingStart>
export const LinkingUrl = Type.Object(
  {
    url: Type.String({
      description: 'Send the browser of the person there. Good for two minutes and once.',
      examples: ['https://api.aggios.app/api/v1/auth/oauth/google/link?ticket=Gm9v…']
    })
  },
  { title: 'LinkingUrl' }
)
