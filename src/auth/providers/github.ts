import * as oauth from 'oauth4webapi'
import type { OutboundFetch } from '../../http/outbound-requests.ts'
import { type Provider, ProviderFailure, type ProviderProtocol, textOf } from './provider.ts'

const scope = 'read:user user:email'
const apiVersion = '2022-11-28'

/**
 * GitHub, which speaks OAuth 2.0 and no OpenID Connect: who the person is comes from its REST API. The subject is the
 * number of the account, because a login can be changed and then be taken by somebody else.
 *
 * https://docs.github.com/apps/oauth-apps/building-oauth-apps/authorizing-oauth-apps
 */
export function createGithubProtocol(
  fetch: OutboundFetch,
  { development }: { development: boolean }
): ProviderProtocol {
  const serverOf = (provider: Provider): oauth.AuthorizationServer => ({
    issuer: provider.issuer,
    authorization_endpoint: `${provider.issuer}/login/oauth/authorize`,
    token_endpoint: `${provider.issuer}/login/oauth/access_token`
  })

  async function read(provider: Provider, path: string, token: string): Promise<unknown> {
    // GitHub Enterprise Server has its API under its own address
    const base = provider.issuer === 'https://github.com' ? 'https://api.github.com' : `${provider.issuer}/api/v3`
    const reply = await fetch(base + path, {
      headers: {
        accept: 'application/vnd.github+json',
        authorization: `Bearer ${token}`,
        'x-github-api-version': apiVersion
      }
    })
    // 401: the person has taken the permission back meanwhile
    if (reply.status !== 200) throw new ProviderFailure(`the API of the provider answered ${reply.status}`)
    return reply.json()
  }

  return {
    async authorizationUrl(provider, { redirect_uri, state, code_verifier }) {
      const url = new URL(serverOf(provider).authorization_endpoint as string)
      const values = {
        ...{ client_id: provider.client_id, redirect_uri, scope, state, response_type: 'code' },
        ...{ code_challenge: await oauth.calculatePKCECodeChallenge(code_verifier), code_challenge_method: 'S256' }
      }
      for (const [name, value] of Object.entries(values)) url.searchParams.set(name, value)
      return url
    },
    async redeem(provider, answer, { redirect_uri, state, code_verifier }) {
      const server = serverOf(provider)
      const client = { client_id: provider.client_id }
      const checked = oauth.validateAuthResponse(server, client, answer, state)
      const authentication = oauth.ClientSecretPost(provider.client_secret)
      const reply = await oauth.authorizationCodeGrantRequest(
        ...([server, client, authentication, checked, redirect_uri, code_verifier] as const),
        {
          [oauth.customFetch]: (url, { method, headers, body, signal }) =>
            fetch(url, { method, headers, body, signal }),
          ...(development && { [oauth.allowInsecureRequests]: true })
        }
      )
      // a refusal comes as 200 with an error in it, and so without a token
      const { access_token } = await oauth.processAuthorizationCodeResponse(server, client, reply)
      const [user, emails] = await Promise.all([
        read(provider, '/user', access_token),
        read(provider, '/user/emails', access_token)
      ])
      const { id, name, login } = (user ?? {}) as { id?: unknown; name?: unknown; login?: unknown }
      if (!Number.isSafeInteger(id)) throw new ProviderFailure('the provider gave no account')
      // only the primary address: others may be old ones, which the person no longer reads
      const primary = (Array.isArray(emails) ? emails : []).find((each) => each?.primary === true)
      return {
        issuer: provider.issuer,
        subject: String(id),
        email: textOf(primary?.email, 254),
        email_verified: primary?.verified === true,
        name: textOf(name, 100) ?? textOf(login, 100)
      }
    }
  }
}
