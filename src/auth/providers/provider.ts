/** Whoever says who a person is. `key` is `google`, `github`, or the id of an agency's own provider. */
export type Provider = {
  key: string
  kind: 'google' | 'github' | 'openid'
  name: string
  issuer: string
  client_id: string
  client_secret: string
  email_claim: string
  name_claim: string
  /** Its addresses count as verified although it does not say so. */
  trust_email: boolean
  /** Whether it belongs to the agency, and is good there only. */
  own: boolean
}

/** What a provider says about a person. Only `issuer` and `subject` say who it is. */
export type Profile = {
  issuer: string
  subject: string
  email: string | null
  /** Whether the provider has made sure that the mailbox is the person's. */
  email_verified: boolean
  name: string | null
}

/** What a sign-in at a provider begins with. None of it but the challenge leaves this server in the clear. */
export type Challenge = { redirect_uri: string; state: string; nonce: string; code_verifier: string }

/** One kind of protocol. Both functions reject with ProviderFailure, or with OutboundFailure. */
export type ProviderProtocol = {
  /** The address to which the person goes. */
  authorizationUrl(provider: Provider, challenge: Challenge): Promise<URL>
  /** Redeems the code with which the person came back, and reads who it is. */
  redeem(provider: Provider, answer: URLSearchParams, challenge: Challenge): Promise<Profile>
}

/** The provider refused, or its answer can't be believed. The message has nothing that it has sent. */
export class ProviderFailure extends Error {}

/** The time for all requests of one step of a sign-in. */
export const providerTimeoutMs = 10_000

/** Texts of a provider: at most as long as ours, and of one line. */
export function textOf(value: unknown, maxLength: number): string | null {
  if (typeof value !== 'string' || value === '' || value.length > maxLength) return null
  return /[\p{Cc}\p{Cs}]/u.test(value) ? null : value
}
