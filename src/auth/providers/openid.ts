import { createHash } from 'node:crypto'
import { LRUCache } from 'lru-cache'
import * as openid from 'openid-client'
import type { OutboundFetch } from '../../http/outbound-requests.ts'
import { type Profile, type Provider, ProviderFailure, type ProviderProtocol, textOf } from './provider.ts'

/** Signatures of id_tokens that are accepted. None with a shared secret, and never none at all. */
const algorithms = ['RS256', 'PS256', 'ES256', 'EdDSA', 'Ed25519']
const scope = 'openid email profile'
const maxProviders = 500
const rememberMs = 3_600_000

/**
 * OpenID Connect (Core 1.0) with the authorization code and PKCE. What a provider publishes about itself (Discovery 1.0)
 * is remembered for an hour. Its keys are read again when a token names an unknown one, at most once a minute.
 *
 * openid-client checks of an id_token: signature, issuer, audience, authorized party, nonce and times.
 */
export function createOpenIdProtocol(
  fetch: OutboundFetch,
  { development }: { development: boolean }
): ProviderProtocol {
  const known = new LRUCache<string, Promise<openid.Configuration>>({ max: maxProviders, ttl: rememberMs })
  const customFetch: openid.CustomFetch = (url, options) =>
    fetch(url, { method: options.method, headers: options.headers, body: options.body, signal: options.signal })

  async function discover({ issuer, client_id, client_secret }: Provider): Promise<openid.Configuration> {
    const found = await openid.discovery(new URL(issuer), client_id, client_secret, undefined, {
      [openid.customFetch]: customFetch,
      timeout: 5,
      ...(development && { execute: [openid.allowInsecureRequests] })
    })
    const { supportsPKCE: _, ...metadata } = found.serverMetadata()
    // openid-client makes exceptions for Microsoft, whose common issuer stands for every customer of it
    if (metadata.issuer !== issuer) throw new ProviderFailure('the provider has another issuer')
    for (const endpoint of [metadata.authorization_endpoint, metadata.token_endpoint, metadata.jwks_uri]) {
      if (!isEndpoint(endpoint, development)) throw new ProviderFailure('the provider lacks an endpoint')
    }
    const offered = metadata.id_token_signing_alg_values_supported ?? ['RS256']
    const accepted = offered.filter((algorithm) => algorithms.includes(algorithm))
    if (accepted.length === 0) throw new ProviderFailure('the provider signs in no way that is accepted')
    const basic = metadata.token_endpoint_auth_methods_supported ?? ['client_secret_basic']
    const configuration = new openid.Configuration(
      { ...metadata, id_token_signing_alg_values_supported: accepted },
      client_id,
      client_secret,
      basic.includes('client_secret_basic')
        ? openid.ClientSecretBasic(client_secret)
        : openid.ClientSecretPost(client_secret)
    )
    configuration.timeout = 5
    configuration[openid.customFetch] = customFetch
    openid.enableNonRepudiationChecks(configuration)
    if (development) openid.allowInsecureRequests(configuration)
    return configuration
  }

  function configurationOf(provider: Provider): Promise<openid.Configuration> {
    const { issuer, client_id, client_secret } = provider
    const key = createHash('sha256')
      .update(JSON.stringify([issuer, client_id, client_secret]))
      .digest('base64')
    const remembered = known.get(key)
    if (remembered) return remembered
    const discovering = discover(provider)
    known.set(key, discovering)
    discovering.catch(() => {
      if (known.peek(key) === discovering) known.delete(key)
    })
    return discovering
  }

  return {
    async authorizationUrl(provider, { redirect_uri, state, nonce, code_verifier }) {
      const configuration = await configurationOf(provider)
      return openid.buildAuthorizationUrl(configuration, {
        ...{ redirect_uri, scope, state, nonce, response_type: 'code', code_challenge_method: 'S256' },
        code_challenge: await openid.calculatePKCECodeChallenge(code_verifier)
      })
    },
    async redeem(provider, answer, { redirect_uri, state, nonce, code_verifier }) {
      const configuration = await configurationOf(provider)
      const url = new URL(redirect_uri)
      url.search = answer.toString()
      const tokens = await openid.authorizationCodeGrant(configuration, url, {
        expectedState: state,
        expectedNonce: nonce,
        pkceCodeVerifier: code_verifier,
        idTokenExpected: true
      })
      const claims = tokens.claims()
      if (!claims) throw new ProviderFailure('the provider gave no id_token')
      const isComplete = claims[provider.email_claim] !== undefined && claims[provider.name_claim] !== undefined
      const more =
        isComplete || configuration.serverMetadata().userinfo_endpoint === undefined
          ? {}
          : await openid.fetchUserInfo(configuration, tokens.access_token, claims.sub)
      return readProfile(provider, { ...more, ...claims })
    }
  }
}

function readProfile(provider: Provider, claims: Record<string, unknown>): Profile {
  const { email_claim, name_claim, issuer, trust_email } = provider
  const subject = textOf(claims.sub, 255)
  if (subject === null) throw new ProviderFailure('the provider gave no subject')
  // email_verified is about the claim "email" only (OpenID Connect Core 1.0, 5.1)
  const verified = email_claim === 'email' && claims.email_verified === true
  return {
    issuer,
    subject,
    email: textOf(claims[email_claim], 254),
    email_verified: verified || trust_email,
    name: textOf(claims[name_claim], 100)
  }
}

function isEndpoint(value: string | undefined, development: boolean): boolean {
  if (value === undefined || !URL.canParse(value)) return false
  const { protocol, username, password } = new URL(value)
  return (protocol === 'https:' || (development && protocol === 'http:')) && username === '' && password === ''
}
