import { randomUUID } from 'node:crypto'
import type { Owner } from './harness.ts'
import { clientSecret, type ScriptedProvider, serve } from './providers.ts'

/** An address of an account, as GitHub lists it. */
export type GithubEmail = { email: string; primary: boolean; verified: boolean }

/**
 * Answers as docs.github.com says, for the server of a company: the API is below /api/v3. It lets in whoever is in
 * `account`.
 */
export async function startGithub(t: Owner) {
  const codes = new Set<string>()
  const state = {
    account: { id: 583_231, login: 'octocat', name: null as string | null },
    /** A list of GithubEmail, or whatever else a test wants it to say. */
    emails: [] as unknown,
    /** The person has taken the permission back. */
    revoked: false
  }
  const url = await serve(t, async (request, response) => {
    let body = ''
    for await (const chunk of request) body += chunk
    const reply = (value: unknown, status = 200) =>
      response.writeHead(status, { 'content-type': 'application/json; charset=utf-8' }).end(JSON.stringify(value))
    if (request.url === '/login/oauth/access_token') {
      const form = new URLSearchParams(body)
      const known = codes.delete(form.get('code') ?? '') && form.get('client_secret') === clientSecret
      if (!known || !form.get('code_verifier')) return reply({ error: 'bad_verification_code', error_description: 'x' })
      return reply({ access_token: 'gho_token', token_type: 'bearer', scope: 'read:user,user:email' })
    }
    if (state.revoked || request.headers.authorization !== 'Bearer gho_token')
      return reply({ message: 'Bad credentials' }, 401)
    if (request.url === '/api/v3/user') return reply({ ...state.account, email: null })
    return reply(state.emails)
  })
  return {
    url,
    state,
    /** Forgets the codes that were not redeemed. */
    forgetCodes: () => codes.clear(),
    /** Lets the account in, and returns the address that its browser is sent back to. */
    authorize(location: string): string {
      const asked = new URL(location).searchParams
      const code = randomUUID()
      codes.add(code)
      const back = new URLSearchParams({ code, state: String(asked.get('state')) })
      return `${asked.get('redirect_uri')}?${back}`
    }
  }
}
export type Github = Awaited<ReturnType<typeof startGithub>>

/** As a provider of test/providers.ts. The account is that of `state`, whatever is asked for. */
export const asProvider = ({ authorize }: Github) => ({
  key: 'github',
  at: { authorize } as unknown as ScriptedProvider
})
