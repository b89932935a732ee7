import createFetchClient, { type Client } from 'openapi-fetch'
import { createEventReader, type EventReader } from './events.js'
import { createFactors, type Factors } from './factors.js'
import { type Lock, lockFor } from './locks.js'
import { createCredential, getCredential } from './passkeys.js'
import { createPkce } from './pkce.js'
import { type ProblemError, unwrap } from './problems.js'
import { withProofs } from './proofs.js'
import { type RetryOptions, type Send, withRetries } from './retries.js'
import type {
  Acceptance,
  AddedPasskey,
  CodeExchange,
  EmailChange,
  FileMetadata,
  Identity,
  MfaReply,
  MfaSignIn,
  PasswordReset,
  paths,
  Registration,
  RegistrationInput,
  SignIn,
  TokenReply
} from './schema.js'
import { createSession } from './session.js'
import { memoryStore, type TokenStore } from './stores.js'
import { withTags } from './tags.js'

export type AggiosClientOptions = {
  /** The origin of the API: an agency's host such as `https://acme.aggios.app`, or the general host. */
  baseUrl: string
  store?: TokenStore
  fetch?: Send
  /** Called when the server has ended the session; not by `signOut`. */
  onSignedOut?: (reason: ProblemError) => void
  /** Keeps clients that share the store from refreshing at once. The default is a Web Lock when the store is shared. */
  lock?: Lock
  retry?: RetryOptions
  /**
   * A key that new sessions are bound to, so that their tokens are worthless without it: of `createProofKey` or
   * `storedProofKey`. Each request carries a proof then.
   */
  proofKey?: CryptoKeyPair | Promise<CryptoKeyPair>
}

export type ProviderSignIn = {
  /** `google`, `github`, or the id of an agency's own provider: `GET /api/v1/auth/providers` lists them. */
  provider: string
  /** Where the person comes back to, with `code` or `error` in the query. */
  redirect_to: string
  /** The slug of the agency; not needed on its host. */
  tenant?: string
  /** The token of a mailed invitation, to accept it by this sign-in. The agency is that of the invitation. */
  invitation?: string
}
export type ProviderStart = { url: string; code_verifier: string }

export type UploadOptions = {
  name?: string
  purpose?: string
  /** The SHA-256 of the content in hex. The server refuses other bytes. */
  sha256?: string
  signal?: AbortSignal
}

type Calls = Client<paths> & Factors & EventReader

/** The operations by method and path, as in openapi-fetch, and methods to sign in and out. */
export type AggiosClient = Calls & {
  register(registration: RegistrationInput): Promise<Registration>
  /**
   * Throws a `ProblemError` with the code `mfa_required` when the password is right and a second factor is needed. Its
   * `mfa_token` is for `completeSignIn`.
   */
  signIn(credentials: SignIn): Promise<TokenReply>
  /**
   * Completes a sign-in with a code. The reply has recovery codes, to be shown once, when the code confirmed a new factor
   * (`enroll` of the error).
   */
  completeSignIn(completion: MfaSignIn & { code: string }): Promise<MfaReply>
  /**
   * Completes a sign-in with a new passkey of this device, for somebody who has no factor yet (`enroll` of the error). In
   * browsers, on a page of the agency. The reply has recovery codes, to be shown once.
   */
  completeSignInWithNewPasskey(mfa_token: string, name: string): Promise<MfaReply>
  /** Completes a sign-in with a passkey of the person. In browsers, when `factors` of the error has `passkey`. */
  completeSignInWithPasskey(mfa_token: string): Promise<MfaReply>
  /**
   * Signs in with a passkey, without a password. In browsers, on a page of the agency. `tenant` is a slug, for the general
   * host. Rejects as `navigator.credentials.get` does when the person refuses.
   */
  signInWithPasskey(tenant?: string): Promise<TokenReply>
  /**
   * Adds a passkey of this device. Needs a sign-in within the last five minutes. The reply has recovery codes, to be shown
   * once, for somebody who had none.
   */
  createPasskey(name: string): Promise<AddedPasskey>
  /**
   * Begins a sign-in at a provider. Keep `code_verifier`, in the `sessionStorage` of a page for example, and send the
   * browser to `url`.
   */
  startProviderSignIn(start: ProviderSignIn): Promise<ProviderStart>
  /**
   * Completes a sign-in at a provider with the `code` in the query of `redirect_to`, and accepts the invitation that it
   * began with. Throws `mfa_required` as `signIn` does.
   */
  finishProviderSignIn(exchange: CodeExchange): Promise<TokenReply>
  /** Begins to link an identity at a provider to the signed-in person. Needs a sign-in within the last five minutes. */
  startLinking(start: Omit<ProviderSignIn, 'tenant' | 'invitation'>): Promise<ProviderStart>
  /** Links the identity, with the `code` in the query of `redirect_to`, in the session that began. */
  finishLinking(exchange: CodeExchange): Promise<Identity>
  /**
   * Unlinks an identity, and ends every other session of the person. Needs a sign-in within the last five minutes. Rejects
   * with `last_sign_in_method` when the person could not come in otherwise.
   */
  unlinkIdentity(id: string): Promise<void>
  /**
   * Accepts an invitation with the token of its mail: with `name` and `password` for somebody new, with `password` for
   * somebody who has an account, or with the token alone for whoever is signed in.
   */
  acceptInvitation(acceptance: Acceptance): Promise<TokenReply>
  /** Drops the tokens at once, then ends the session on the server. Rejects when the server can't be reached. */
  signOut(): Promise<void>
  /** Asks for a mail to set a new password. Resolves whether or not somebody has the address. */
  requestPasswordReset(email: string): Promise<void>
  /**
   * Sets a new password with the token of a mail, and drops the tokens, because all sessions of the person end. Rejects
   * with `link_expired` when the token can't be used.
   */
  resetPassword(reset: PasswordReset): Promise<void>
  /** Confirms an address with the token of a mail. Rejects with `link_expired` when the token can't be used. */
  verifyEmail(token: string): Promise<void>
  /** Asks for the mail after signing up again. */
  resendVerification(): Promise<void>
  /** Asks for another address. It takes effect when `verifyEmail` was called with the tokens of both mails. */
  changeEmail(change: EmailChange): Promise<void>
  /**
   * Switches to another agency of the same person. Works on the general host only: the host of an agency refuses tokens
   * of others.
   */
  switchTenant(slug: string): Promise<TokenReply>
  /** Uploads a file as a form. For large files on unreliable networks use tus, at `/api/v1/files/resumable`. */
  uploadFile(content: Blob, options?: UploadOptions): Promise<FileMetadata>
  /** Downloads a file. To stream it, use `GET` with `parseAs: 'stream'`. */
  downloadFile(id: string, options?: { signal?: AbortSignal }): Promise<Blob>
}

/**
 * Creates a client that stays signed in. It adds the access token to each call, refreshes an expired token once for all calls and
 * tabs, and waits when the server sends Retry-After.
 *
 * @example
 * const client = createAggiosClient({ baseUrl: 'https://acme.aggios.app' })
 * await client.signIn({ email, password })
 * const me = await unwrap(client.GET('/api/v1/users/me'))
 */
export function createAggiosClient(options: AggiosClientOptions): AggiosClient {
  const { store = memoryStore(), onSignedOut = () => {}, lock = lockFor(store), proofKey } = options
  const baseUrl = options.baseUrl.replace(/\/$/, '')
  // looks `fetch` up at each call, because instrumentation may replace it later
  const plain: Send = options.fetch ?? ((request) => fetch(request))
  // a proof is good once, so each attempt gets its own
  const send = withRetries(proofKey ? withProofs(plain, proofKey) : plain, options.retry)
  const session = createSession({ baseUrl, store, lock, send, onSignedOut })
  const anonymous = createFetchClient<paths>({ baseUrl, fetch: send })
  const client = createFetchClient<paths>({ baseUrl, fetch: withTags(session.send, store) })

  return {
    ...client,
    ...createFactors(client, anonymous),
    ...createEventReader(baseUrl, session.send),
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
    async completeSignIn(body) {
      const reply = await unwrap(anonymous.POST('/api/v1/auth/mfa', { body }))
      const { recovery_codes: _, ...tokens } = reply
      await session.replace(tokens)
      return reply
    },
    async completeSignInWithNewPasskey(mfa_token, name) {
      const options = await unwrap(anonymous.POST('/api/v1/auth/mfa/passkeys/options', { body: { mfa_token } }))
      const passkey = await createCredential(options)
      const reply = await unwrap(anonymous.POST('/api/v1/auth/mfa/passkeys', { body: { mfa_token, name, passkey } }))
      const { recovery_codes: _, ...tokens } = reply
      await session.replace(tokens)
      return reply
    },
    async completeSignInWithPasskey(mfa_token) {
      const options = await unwrap(anonymous.POST('/api/v1/auth/mfa/passkey/options', { body: { mfa_token } }))
      const passkey = await getCredential(options)
      const tokens = await unwrap(anonymous.POST('/api/v1/auth/mfa', { body: { mfa_token, passkey } }))
      await session.replace(tokens)
      return tokens
    },
    async signInWithPasskey(tenant) {
      const passkey = await getCredential(await unwrap(anonymous.POST('/api/v1/auth/passkeys/options')))
      const body = { passkey, ...(tenant !== undefined && { tenant }) }
      const tokens = await unwrap(anonymous.POST('/api/v1/auth/passkeys', { body }))
      await session.replace(tokens)
      return tokens
    },
    async createPasskey(name) {
      const options = await unwrap(client.POST('/api/v1/users/me/passkeys/options'))
      const passkey = await createCredential(options)
      return unwrap(client.POST('/api/v1/users/me/passkeys', { body: { name, passkey } }))
    },
    async startProviderSignIn({ provider, redirect_to, tenant, invitation }) {
      const { code_verifier, code_challenge } = await createPkce()
      const url = new URL(`${baseUrl}/api/v1/auth/oauth/${encodeURIComponent(provider)}`)
      const query = {
        ...{ redirect_to, code_challenge, ...(tenant !== undefined && { tenant }) },
        ...(invitation !== undefined && { invitation })
      }
      for (const [name, value] of Object.entries(query)) url.searchParams.set(name, value)
      return { url: url.href, code_verifier }
    },
    async finishProviderSignIn(body) {
      const tokens = await unwrap(anonymous.POST('/api/v1/auth/oauth/token', { body }))
      await session.replace(tokens)
      return tokens
    },
    async startLinking({ provider, redirect_to }) {
      const { code_verifier, code_challenge } = await createPkce()
      const body = { provider, redirect_to, code_challenge }
      const { url } = await unwrap(client.POST('/api/v1/users/me/identities', { body }))
      return { url, code_verifier }
    },
    finishLinking(body) {
      return unwrap(client.POST('/api/v1/users/me/identities/confirm', { body }))
    },
    async unlinkIdentity(id) {
      await unwrap(client.DELETE('/api/v1/users/me/identities/{id}', { params: { path: { id } } }))
    },
    async acceptInvitation(body) {
      const tokens = await unwrap(client.POST('/api/v1/invitations/accept', { body }))
      await session.replace(tokens)
      return tokens
    },
    async signOut() {
      const tokens = await session.replace(undefined)
      if (!tokens) return
      const { refresh_token } = tokens
      await unwrap(anonymous.POST('/api/v1/auth/logout', { body: { refresh_token } }))
    },
    async requestPasswordReset(email) {
      await unwrap(anonymous.POST('/api/v1/auth/password/forgot', { body: { email } }))
    },
    async resetPassword(body) {
      await unwrap(anonymous.POST('/api/v1/auth/password/reset', { body }))
      await session.replace(undefined)
    },
    async verifyEmail(token) {
      await unwrap(anonymous.POST('/api/v1/auth/email/verify', { body: { token } }))
    },
    async resendVerification() {
      await unwrap(client.POST('/api/v1/auth/email/resend'))
    },
    async changeEmail(body) {
      await unwrap(client.POST('/api/v1/users/me/email', { body }))
    },
    async switchTenant(tenant) {
      const tokens = await unwrap(client.POST('/api/v1/auth/switch', { body: { tenant } }))
      await session.replace(tokens)
      return tokens
    },
    uploadFile(content, { name, purpose, sha256, signal } = {}) {
      const form = new FormData()
      // the fields come first: when nothing follows the file, the server can compute its size from Content-Length
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
