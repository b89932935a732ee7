import { type Static, Type } from '@sinclair/typebox'
import { Email, Name, NewPassword, PasskeyAssertion, Password, Slug, StringEnum } from '../schemas.ts'

const strict = { additionalProperties: false }

export const RegistrationInput = Type.Object(
  {
    tenant: Type.Object({ name: { ...Name, examples: ['Acme'] }, slug: Slug }, strict),
    name: Name,
    email: Email,
    password: NewPassword
  },
  { ...strict, title: 'RegistrationInput' }
)
export type RegistrationInput = Static<typeof RegistrationInput>

const tenantChoice = Type.Optional(
  Type.String({
    minLength: 1,
    maxLength: 63,
    description: 'Slug of the agency; not needed on the host of the agency. Without both, the agency used last.',
    examples: ['acme']
  })
)

export const SignIn = Type.Object(
  { email: Email, password: Password, tenant: tenantChoice },
  { ...strict, title: 'SignIn' }
)
export type SignIn = Static<typeof SignIn>

export const PasskeySignIn = Type.Object(
  { passkey: PasskeyAssertion, tenant: tenantChoice },
  { ...strict, title: 'PasskeySignIn' }
)
export type PasskeySignIn = Static<typeof PasskeySignIn>

const refreshToken = Type.String({ minLength: 1, maxLength: 1024, examples: ['Gm9v…'] })

export const Refresh = Type.Object({ refresh_token: refreshToken }, { ...strict, title: 'Refresh' })
export type Refresh = Static<typeof Refresh>

/** The body may be empty when the request has a bearer token, which names the session. */
export const SignOut = Type.Unsafe<{ refresh_token?: string } | null>({
  type: ['object', 'null'],
  properties: { refresh_token: refreshToken },
  additionalProperties: false,
  examples: [{}],
  title: 'SignOut'
})

export const Switch = Type.Object(
  { tenant: Type.String({ minLength: 1, maxLength: 63, examples: ['another-agency'] }) },
  { ...strict, title: 'SwitchTenant' }
)
export type Switch = Static<typeof Switch>

const mailedToken = Type.String({
  minLength: 1,
  maxLength: 512,
  description: 'The token of the mailed link',
  examples: ['Gm9v…']
})

export const PasswordResetRequest = Type.Object({ email: Email }, { ...strict, title: 'PasswordResetRequest' })

export const PasswordReset = Type.Object(
  { token: mailedToken, password: NewPassword },
  { ...strict, title: 'PasswordReset' }
)
export type PasswordReset = Static<typeof PasswordReset>

export const EmailVerification = Type.Object({ token: mailedToken }, { ...strict, title: 'EmailVerification' })
export type EmailVerification = Static<typeof EmailVerification>

export const TokenRequest = Type.Object(
  {
    grant_type: StringEnum(['client_credentials'], { examples: ['client_credentials'] }),
    client_id: Type.Optional(
      Type.String({
        description: 'The id of the API key, unless it is sent by HTTP Basic',
        examples: ['019a2c4e-7b1d-7c3e-9f00-3d5a1b2c4d5e']
      })
    ),
    client_secret: Type.Optional(
      Type.String({ description: 'The API key, unless it is sent by HTTP Basic', examples: ['agg_…'] })
    ),
    scope: Type.Optional(
      Type.String({
        description: 'Permissions with spaces between them. Default: all of the key',
        examples: ['files:read']
      })
    )
  },
  // as every body. The endpoint itself ignores other parameters, as RFC 6749, 3.2, demands
  { ...strict, title: 'TokenRequest' }
)

export const KeyToken = Type.Object(
  {
    access_token: Type.String({ description: 'A JWT', examples: ['eyJhbGciOiJIUzI1NiJ9…'] }),
    token_type: StringEnum(['Bearer'], { examples: ['Bearer'] }),
    expires_in: Type.Integer({ description: 'Seconds', examples: [900] }),
    scope: Type.String({ examples: ['files:read'] })
  },
  { title: 'KeyToken' }
)
