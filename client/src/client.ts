import createFetchClient, { type Client } from 'openapi-fetch'
import { type Lock, lockFor } from './locks.js'
import { type ProblemError, unwrap } from './problems.js'
import { type RetryOptions, type Send, withRetries } from './retries.js'
import type { FileMetadata, paths, Registration, RegistrationInput, SignIn, TokenReply } from './schema.js'
import { createSession } from './session.js'
import { memoryStore, type TokenStore } from './stores.js'

export type AggiosClientOptions = {
  /** Origin of an agency's host or of the general one, such as `https://acme.aggios.app`. */
  baseUrl: string
  store?: TokenStore
  fetch?: Send
  /** Called when the server has ended the session; not by `signOut`. */
  onSignedOut?: (reason: ProblemError) => void
  /** Covers everybody who sees the store. By itself Web Locks, where there are any and the store is shared. */
  lock?: Lock
  retry?: RetryOptions
}

export type UploadOptions = {
  name?: string
  purpose?: string
  /** In hex; the server refuses other bytes. */
  sha256?: string
  signal?: AbortSignal
}

/** Every operation by method and path, as openapi-fetch has them, and what changes who is signed in. */
export type AggiosClient = Client<paths> & {
  register(registration: RegistrationInput): Promise<Registration>
  signIn(credentials: SignIn): Promise<TokenReply>
  /** Forgets the tokens at once, whether or not the server can be told, and rejects if it can't. */
  signOut(): Promise<void>
  /** Goes on in another agency of the same person. On the general host only: on its own host an agency takes no other's tokens. */
  switchTenant(slug: string): Promise<TokenReply>
  /** Sends a file as a form. For large ones over bad networks there is tus, at `/api/v1/files/resumable`. */
  uploadFile(content: Blob, options?: UploadOptions): Promise<FileMetadata>
  /** The bytes of a file. `GET` with `parseAs: 'stream'` gives them as they come. */
  downloadFile(id: string, options?: { signal?: AbortSignal }): Promise<Blob>
}

/**
 * A client that stays signed in: it adds the bearer, refreshes it when it has expired, once for all calls and tabs, and waits
 * when the server asks it to.
 *
 * @example
 * const client = createAggiosClient({ baseUrl: 'https://acme.aggios.app' })
 * await client.signIn({ email, password })
 * const me = await unwrap(client.GET('/api/v1/users/me'))
 */
export function createAggiosClient(options: AggiosClientOptions): AggiosClient {
  const { store = memoryStore(), onSignedOut = () => {}, lock = lockFor(store) } = options
  const baseUrl = options.baseUrl.replace(/\/$/, '')
  // looked up at each call: whoever instruments fetch does it late
  const send = withRetries(options.fetch ?? ((request) => fetch(request)), options.retry)
  const session = createSession({ baseUrl, store, lock, send, onSignedOut })
  const anonymous = createFetchClient<paths>({ baseUrl, fetch: send })
  const client = createFetchClient<paths>({ baseUrl, fetch: session.send })

  return {
    ...client,
    async register(body) {
      const { user, tenant, ...tokens } = await unwrap(anonymous.POST('/api/v1/auth/register', { body }))
      await session.replace(tokens)
      return { ...tokens, user, tenant }
    },
    async signIn(body) {
      const tokens = await unwrap(anonymous.POST('/api/v1/auth/login', { body }))
      await session.replace(tokens)
      return tokens
    },
    async signOut() {
      const tokens = await session.replace(undefined)
      if (!tokens) return
      const { refresh_token } = tokens
      await unwrap(anonymous.POST('/api/v1/auth/logout', { body: { refresh_token } }))
    },
    async switchTenant(tenant) {
      const tokens = await unwrap(client.POST('/api/v1/auth/switch', { body: { tenant } }))
      await session.replace(tokens)
      return tokens
    },
    uploadFile(content, { name, purpose, sha256, signal } = {}) {
      const form = new FormData()
      // the fields first: what follows them is the file, so the server knows its size
      if (purpose !== undefined) form.set('purpose', purpose)
      if (sha256 !== undefined) form.set('sha256', sha256)
      if (name === undefined) form.set('file', content)
      else form.set('file', content, name)
      return unwrap(
        client.POST('/api/v1/files', {
          body: { file: '' },
          bodySerializer: () => form,
          ...(signal && { signal })
        })
      )
    },
    downloadFile(id, { signal } = {}) {
      return unwrap(
        client.GET('/api/v1/files/{id}/content', {
          params: { path: { id } },
          parseAs: 'blob',
          ...(signal && { signal })
        })
      )
    }
  }
}
