import type { Lock } from './locks.js'
import { codeOf, ProblemError } from './problems.js'
import type { Send } from './retries.js'
import type { paths, Refresh, TokenReply } from './schema.js'
import type { StoredTokens, TokenStore } from './stores.js'

export type Session = {
  /** Sends with the bearer, and with a newer one when the server says that it is too old. */
  send: Send
  /** Replaces the tokens; nothing means: signed out. Gives back what was there. */
  replace(tokens: TokenReply | undefined): Promise<StoredTokens | undefined>
}

export type SessionOptions = {
  baseUrl: string
  store: TokenStore
  lock: Lock
  /** Without a bearer. */
  send: Send
  onSignedOut: (reason: ProblemError) => void
}

const refreshPath = '/api/v1/auth/refresh' satisfies keyof paths
/** Twice this is less than the minute in which a refresh token may be shown again. */
const refreshTimeoutMs = 20_000

/** Keeps somebody signed in for as long as the server allows. */
export function createSession({ baseUrl, store, lock, send, onSignedOut }: SessionOptions): Session {
  let renewing: Promise<TokenReply | Response> | undefined

  async function sendSignedIn(request: Request): Promise<Response> {
    const tokens = await store.read()
    if (!tokens || request.headers.has('authorization')) return send(request)
    const response = await send(withBearer(request, tokens))
    if (response.status !== 401) return response
    const code = await codeOf(response)
    if (code === 'session_revoked') await lock(() => end(tokens, response))
    if (code !== 'token_expired' && code !== 'invalid_token') return response
    const renewed = await renew(tokens, response)
    return renewed instanceof Response ? renewed.clone() : send(withBearer(request, renewed))
  }

  /** Newer tokens than these, or why there are none. Everybody who asks meanwhile waits for the same answer. */
  function renew(old: StoredTokens, refusal: Response): Promise<TokenReply | Response> {
    renewing ??= lock(() => replaceOld(old, refusal)).finally(() => {
      renewing = undefined
    })
    return renewing
  }

  /** Within the lock: whoever held it before may have done the work, or have signed out. */
  async function replaceOld(old: StoredTokens, refusal: Response): Promise<TokenReply | Response> {
    const current = await store.read()
    // somebody else, or the same person in another agency: a call of before is none of theirs
    if (current?.signIn !== old.signIn || !current) return refusal
    if (current.access_token !== old.access_token) return current
    // a reply may be lost when the request was not: shown again, the same token gives the same successor
    const attempt = () => refresh(current.refresh_token)
    const { response, tokens } = await attempt().catch(attempt)
    if (tokens) await store.write({ ...tokens, ...(current.signIn && { signIn: current.signIn }) })
    else if (isFinal(await codeOf(response))) await end(current, response)
    return tokens ?? response
  }

  /** Rejects when there is no whole reply. The tokens stay what they are: it may come next time. */
  async function refresh(refresh_token: string): Promise<{ response: Response; tokens?: TokenReply }> {
    const request = new Request(baseUrl + refreshPath, {
      method: 'POST',
      headers: { 'content-type': 'application/json' },
      body: JSON.stringify({ refresh_token } satisfies Refresh),
      signal: AbortSignal.timeout(refreshTimeoutMs)
    })
    const response = await send(request)
    return response.ok ? { response, tokens: await response.json() } : { response }
  }

  /** Forgets these tokens, but not others that came after them. */
  async function end(tokens: TokenReply, response: Response): Promise<void> {
    if ((await store.read())?.access_token !== tokens.access_token) return
    await store.write(undefined)
    onSignedOut(new ProblemError(response, await response.clone().json()))
  }

  return {
    send: sendSignedIn,
    // within the lock, so that a refresh that is under way does not bring the old ones back
    replace: (tokens) =>
      lock(async () => {
        const before = await store.read()
        await store.write(tokens && { ...tokens, signIn: `${Date.now()}-${Math.random()}` })
        return before
      })
  }
}

/** The body of the original stays readable, for a second time. */
function withBearer(request: Request, { access_token }: TokenReply): Request {
  const copy = request.clone()
  copy.headers.set('authorization', `Bearer ${access_token}`)
  return copy
}

/** What no other attempt with the same refresh token will change. */
function isFinal(code: ProblemError['code']): boolean {
  return code === 'invalid_refresh_token' || code === 'refresh_token_reused' || code === 'session_revoked'
}
