import { type Static, Type } from '@sinclair/typebox'
import { messageKeyword } from '../../src/http/field-errors.ts'
import { Id, Name, Nullable, StringEnum, Timestamp } from '../schemas.ts'

const strict = { additionalProperties: false }

const visible = (maxLength: number, description: string, example: string) =>
  Type.String({
    ...{ minLength: 1, maxLength, pattern: '^[\\x21-\\x7e]+$' },
    [messageKeyword]: 'must be letters, digits and signs of ASCII, without spaces',
    ...{ description, examples: [example] }
  })

const issuer = visible(255, 'Exactly as the provider says it. It can not be changed.', 'https://login.acme.example')
const claim = (description: string, example: string) =>
  Type.String({
    ...{ minLength: 1, maxLength: 100, pattern: '^[A-Za-z0-9_.:/-]+$' },
    [messageKeyword]: 'must be letters, digits, underscores, dots, colons, slashes and hyphens',
    ...{ description, examples: [example] }
  })
const role = StringEnum(['admin', 'member', 'viewer'], { examples: ['member'] })

const members = {
  name: { ...Name, examples: ['Acme login'] },
  client_id: visible(255, 'As registered at the provider', 'aggios'),
  email_claim: claim('The claim that has the address. `email_verified` counts for `email` only.', 'email'),
  name_claim: claim('The claim that has the name', 'name'),
  trust_email: Type.Boolean({
    description: 'Addresses count as verified although the provider does not say so',
    examples: [false]
  }),
  newcomer_role: Nullable({
    ...role,
    description: 'The role of people of a proven domain who come for the first time. Null: they need an invitation.'
  })
}
const client_secret = Type.String({
  ...{ minLength: 1, maxLength: 1024, pattern: '^[\\x20-\\x7e]+$' },
  [messageKeyword]: 'must be letters, digits, signs and spaces of ASCII',
  description: 'Stored encrypted, and never shown',
  examples: ['the secret of the client']
})

export const ProviderInput = Type.Object(
  {
    name: members.name,
    issuer,
    client_id: members.client_id,
    client_secret,
    email_claim: Type.Optional(members.email_claim),
    name_claim: Type.Optional(members.name_claim),
    trust_email: Type.Optional(members.trust_email),
    newcomer_role: Type.Optional(members.newcomer_role)
  },
  { ...strict, title: 'IdentityProviderInput' }
)
export type ProviderInput = Static<typeof ProviderInput>

export const ProviderPatch = Type.Partial(Type.Object({ ...members, client_secret }), {
  ...strict,
  title: 'IdentityProviderPatch'
})
export type ProviderPatch = Static<typeof ProviderPatch>

export const IdentityProvider = Type.Object(
  {
    id: Id,
    ...{ name: members.name, issuer, client_id: members.client_id },
    email_claim: members.email_claim,
    name_claim: members.name_claim,
    trust_email: members.trust_email,
    newcomer_role: members.newcomer_role,
    callback_url: Type.String({
      description: 'To be registered at the provider as the address of the client',
      examples: ['https://api.aggios.app/api/v1/auth/oauth/019a2c4e-7b1d-7c3e-9f00-3d5a1b2c4d5e/callback']
    }),
    created_at: Timestamp,
    updated_at: Timestamp
  },
  { title: 'IdentityProvider' }
)
export type IdentityProvider = Static<typeof IdentityProvider>
export const IdentityProviders = Type.Object(
  { data: Type.Array(IdentityProvider, { maxItems: 10 }) },
  { title: 'IdentityProviders' }
)
export const ProviderId = Type.Object({ id: Id })
