import type { Lock } from './locks.js'
import { codeOf, ProblemError } from './problems.js'
import type { Send } from './retries.js'
import type { paths, Refresh, TokenReply } from './schema.js'
import type { StoredTokens, TokenStore } from './stores.js'

export type Session = {
  /** Sends a request with the access token. Refreshes the token and sends again when the server refuses it. */
  send: Send
  /** Replaces the tokens; undefined signs out. Returns the previous tokens. */
  replace(tokens: TokenReply | undefined): Promise<StoredTokens | undefined>
}

export type SessionOptions = {
  baseUrl: string
  store: TokenStore
  lock: Lock
  /** Sends without an access token. */
  send: Send
  onSignedOut: (reason: ProblemError) => void
}

const refreshPath = '/api/v1/auth/refresh' satisfies keyof paths
/** Two attempts take less than the minute in which a refresh token may be used again. */
const refreshTimeoutMs = 20_000

/** Creates a session that refreshes its tokens for as long as the server allows. */
export function createSession({ baseUrl, store, lock, send, onSignedOut }: SessionOptions): Session {
  let renewing: Promise<TokenReply | Response> | undefined

  async function sendSignedIn(request: Request): Promise<Response> {
    const tokens = await store.read()
    if (!tokens || request.headers.has('authorization')) return send(request)
    const response = await send(withToken(request, tokens))
    if (response.status !== 401) return response
    const code = await codeOf(response)
    if (code === 'session_revoked') await lock(() => end(tokens, response))
    if (code !== 'token_expired' && code !== 'invalid_token') return response
    const renewed = await renew(tokens, response)
    return renewed instanceof Response ? renewed.clone() : send(withToken(request, renewed))
  }

  /** Gets newer tokens, or the reply that refused them. Concurrent calls share one refresh. */
  function renew(old: StoredTokens, refusal: Response): Promise<TokenReply | Response> {
    renewing ??= lock(() => replaceOld(old, refusal)).finally(() => {
      renewing = undefined
    })
    return renewing
  }

  /**
   * Refreshes the tokens within the lock. Another holder of the lock may have refreshed them already, or have signed
   * out.
   */
  async function replaceOld(old: StoredTokens, refusal: Response): Promise<TokenReply | Response> {
    const current = await store.read()
    // another sign-in has replaced this one: its tokens must not serve calls of the earlier one
    if (current?.signIn !== old.signIn || !current) return refusal
    if (current.access_token !== old.access_token) return current
    // the reply may have been lost: a second use of the same refresh token gives the same new tokens
    const attempt = () => refresh(current.refresh_token)
    const first = await attempt().catch(attempt)
    // a proxy may have sent the request twice, and used the proof up: a new proof gives the same new tokens
    const isUnproven = !first.tokens && (await codeOf(first.response)) === 'invalid_dpop_proof'
    const { response, tokens } = isUnproven ? await attempt().catch(() => first) : first
    if (tokens) await store.write({ ...tokens, ...(current.signIn && { signIn: current.signIn }) })
    else if (isFinal(await problemOf(response))) await end(current, response)
    return tokens ?? response
  }

  /** Rejects when the reply is missing or incomplete. The tokens stay stored, so the next call can try again. */
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

  /** Removes these tokens from the store, unless newer tokens have replaced them. */
  async function end(tokens: TokenReply, response: Response): Promise<void> {
    if ((await store.read())?.access_token !== tokens.access_token) return
    await store.write(undefined)
    onSignedOut(await problemOf(response))
  }

  return {
    send: sendSignedIn,
    // within the lock, so that a running refresh does not store the old session again
    replace: (tokens) =>
      lock(async () => {
        const before = await store.read()
        await store.write(tokens && { ...tokens, signIn: `${Date.now()}-${Math.random()}` })
        return before
      })
  }
}

/** Copies a request and adds the access token. The original's body stays readable for a second attempt. */
function withToken(request: Request, { access_token, token_type }: TokenReply): Request {
  const copy = request.clone()
  copy.headers.set('authorization', `${token_type} ${access_token}`)
  return copy
}

/** Reads the problem of an error reply. The body stays readable. */
const problemOf = async (response: Response) =>
  new ProblemError(
    response,
    await response
      .clone()
      .json()
      .catch(() => undefined)
  )

/**
 * Tells whether a refusal is permanent for this refresh token. Of the refusals of a proof only one is: the session is bound to
 * another key. The others may be the fault of a proxy, and must not sign anybody out.
 */
function isFinal({ code, reason }: ProblemError): boolean {
  return (
    code === 'invalid_refresh_token' ||
    code === 'refresh_token_reused' ||
    code === 'session_revoked' ||
    (code === 'invalid_dpop_proof' && reason === 'another_key')
  )
}
