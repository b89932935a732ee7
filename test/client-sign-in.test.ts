import { existsSync } from 'node:fs'
import { join } from 'node:path'
import t, { type Test } from 'tap'
import { createAuthenticator, forgetUsedCodes } from './factors.ts'
import { allRows, clientFolder, createTestDatabase, password, startServer, testEnvironment } from './harness.ts'
import { startMailbox } from './mail-server.ts'
import { type CreationOptions, createDevice, type RequestOptions } from './passkey-device.ts'
import { freePort } from './ports.ts'
import { clientId, clientSecret, startScriptedProvider } from './providers.ts'

/*
 * The TypeScript client against a real server, in Node: every helper for signing in, and the problems that they throw.
 * test/client-recovery.test.ts has those for passwords and addresses, and test/sign-in-browser.test.ts has a browser.
 */

const built = join(clientFolder, 'dist', 'index.js')
const skip =
  !existsSync(built) && process.env.CI !== 'true' && 'npm --prefix client ci && npm --prefix client run build'

/** What the helpers give, all together. */
type Result = {
  id: string
  url: string
  code_verifier: string
  secret: string
  recovery_codes: string[]
  user: { id: string }
}
type Call = (...args: unknown[]) => Promise<Result>
type Client = Record<
  | 'GET'
  | 'POST'
  | 'register'
  | 'signIn'
  | 'completeSignIn'
  | 'completeSignInWithNewPasskey'
  | 'completeSignInWithPasskey'
  | 'signInWithPasskey'
  | 'createPasskey'
  | 'removePasskey'
  | 'startProviderSignIn'
  | 'finishProviderSignIn'
  | 'startLinking'
  | 'finishLinking'
  | 'unlinkIdentity'
  | 'verifyEmail'
  | 'resendVerification'
  | 'acceptInvitation'
  | 'startTotp'
  | 'confirmTotp'
  | 'enrollAtSignIn'
  | 'removeTotp'
  | 'renewRecoveryCodes'
  | 'reauthenticate'
  | 'proveWithPasskey',
  Call
>
type Problem = Error & { code: string; status: number; mfa_token: string; factors: string[]; enroll: boolean }
type Package = {
  createAggiosClient(options: object): Client
  memoryStore(): object
  ProblemError: new () => Problem
  unwrap: Call
}

const email = 'ada@acme.example'

type BrowserOptions = { challenge: Uint8Array; user: { id: Uint8Array } }

/** What a browser has for passkeys, with a device in software behind it. */
function plugIn(t: Test, device: ReturnType<typeof createDevice>): void {
  const text = (bytes: Uint8Array) => Buffer.from(bytes).toString('base64url')
  const bytes = (value: string) => Uint8Array.from(Buffer.from(value, 'base64url')).buffer
  const answer = ({ id, response }: { id: string; response: Record<string, unknown> }) => ({
    id,
    response: {
      ...Object.fromEntries(
        Object.entries(response).map(([name, value]) => [name, typeof value === 'string' ? bytes(value) : value])
      ),
      getTransports: () => response.transports
    }
  })
  const credentials = {
    create: async ({ publicKey }: { publicKey: BrowserOptions }) =>
      answer(
        device.create({
          ...publicKey,
          challenge: text(publicKey.challenge),
          user: { id: text(publicKey.user.id) }
        } as unknown as CreationOptions)
      ),
    get: async ({ publicKey }: { publicKey: BrowserOptions }) =>
      answer(device.get({ ...publicKey, challenge: text(publicKey.challenge) } as unknown as RequestOptions))
  }
  Object.defineProperty(navigator, 'credentials', { value: credentials, configurable: true })
  t.teardown(() => Reflect.deleteProperty(navigator, 'credentials'))
}

t.test('the TypeScript client', { skip }, async (t) => {
  const [database, mailbox, google, port] = await Promise.all([
    ...([createTestDatabase(t), startMailbox(t), startScriptedProvider(t), freePort()] as const)
  ])
  await startServer(
    t,
    testEnvironment(database, {
      PORT: String(port),
      SMTP_URL: mailbox.url,
      APP_URL: `http://{slug}.localhost:${port}`,
      PASSKEY_RP_ID: 'localhost',
      GOOGLE_CLIENT_ID: clientId,
      GOOGLE_CLIENT_SECRET: clientSecret,
      GOOGLE_ISSUER: google.issuer
    })
  )
  const { createAggiosClient, memoryStore, ProblemError, unwrap } = (await import(built)) as Package
  const baseUrl = `http://localhost:${port}`
  const redirect_to = `http://acme.localhost:${port}/signed-in`
  const connect = () => createAggiosClient({ baseUrl, store: memoryStore() })
  const client = connect()
  const { user } = await client.register({ tenant: { name: 'Acme', slug: 'acme' }, name: 'Ada', email, password })
  await client.verifyEmail(new URL(await mailbox.nextLink(email, '/email/verify')).searchParams.get('token') as string)

  const me = (of: Client) => unwrap(of.GET('/api/v1/users/me'))
  /** The problem with which a call fails. */
  const refusal = async (work: Promise<unknown>) => {
    const err = await work.then(
      () => 'it did not fail',
      (err: unknown) => err
    )
    if (!(err instanceof ProblemError)) throw err
    return err
  }
  let authenticator = createAuthenticator('AAAAAAAAAAAAAAAA')
  const nextCode = async () => {
    await forgetUsedCodes({ database }, user.id)
    return authenticator.code()
  }
  const fiveMinutesLater = () =>
    allRows(database, "update sessions set authenticated_at = now() - interval '6 minutes'")

  /** A browser that comes to the address, goes to the provider, and is sent back with a code. */
  async function goThrough(url: string, sub: string): Promise<string> {
    const started = await fetch(url, { redirect: 'manual' })
    const cookie = started.headers
      .getSetCookie()
      .map((line) => line.split(';', 1)[0])
      .join('; ')
    const back = google.authorize(started.headers.get('location') as string, { sub, email: `${sub}@gmail.example` })
    const { pathname, search } = new URL(back)
    const returned = await fetch(`${baseUrl}${pathname}${search}`, { redirect: 'manual', headers: { cookie } })
    const answer = new URL(returned.headers.get('location') as string)
    t.equal(answer.origin + answer.pathname, redirect_to)
    return answer.searchParams.get('code') ?? `error ${answer.searchParams.get('error')}`
  }

  await t.test('links a sign-in at a provider, signs in by it, and unlinks it', async (t) => {
    const stranger = await client.startProviderSignIn({ provider: 'google', redirect_to, tenant: 'acme' })
    t.equal(await goThrough(stranger.url, 'stranger'), 'error not_a_member')

    const linking = await client.startLinking({ provider: 'google', redirect_to })
    const code = await goThrough(linking.url, 'ada')
    const { code_verifier } = await connect().startProviderSignIn({ provider: 'google', redirect_to })
    t.match(await refusal(client.finishLinking({ code, code_verifier })), { code: 'invalid_sign_in_code', status: 401 })
    const again = await client.startLinking({ provider: 'google', redirect_to })
    const exchange = { code: await goThrough(again.url, 'ada'), code_verifier: again.code_verifier }
    const identity = await client.finishLinking(exchange)
    t.match(identity, { provider: 'google', email: 'ada@gmail.example' })
    t.match(await refusal(client.finishLinking(exchange)), { code: 'invalid_sign_in_code' })

    const other = connect()
    const begun = await other.startProviderSignIn({ provider: 'google', redirect_to, tenant: 'acme' })
    const signIn = { code: await goThrough(begun.url, 'ada'), code_verifier: begun.code_verifier }
    await other.finishProviderSignIn(signIn)
    t.match(await me(other), { email })
    t.match(await refusal(other.finishProviderSignIn(signIn)), { code: 'invalid_sign_in_code' })
    t.match(await refusal(me(other)), { code: 'session_revoked' }, 'whoever has the code may have the session too')
    await other.signIn({ email, password })
    t.match(await refusal(other.finishProviderSignIn(signIn)), { code: 'invalid_sign_in_code' })
    t.match(await me(other), { email }, 'a refusal signs nobody out of another session')

    await fiveMinutesLater()
    t.match(await refusal(client.unlinkIdentity(identity.id)), { code: 'reauthentication_required', status: 403 })
    t.match(await refusal(client.startLinking({ provider: 'google', redirect_to })), {
      code: 'reauthentication_required'
    })
    t.match(await refusal(client.reauthenticate({ password: 'not the right one' })), { code: 'invalid_credentials' })
    await client.reauthenticate({ password })
    t.equal(await client.unlinkIdentity(identity.id), undefined)
    t.match(await refusal(client.unlinkIdentity(identity.id)), { code: 'not_found' })
    t.match(await refusal(me(other)), { code: 'session_revoked' })
  })

  await t.test('sets an authenticator app up, signs in with its code, and removes it', async (t) => {
    authenticator = createAuthenticator((await client.startTotp()).secret)
    t.match(await refusal(client.confirmTotp('000000')), { code: 'invalid_credentials' })
    const { recovery_codes } = await client.confirmTotp(authenticator.code())
    t.equal(recovery_codes.length, 10)

    const other = connect()
    const challenge = await refusal(other.signIn({ email, password }))
    t.match(challenge, { code: 'mfa_required', factors: ['totp'], enroll: false, mfa_token: /./ })
    const { mfa_token } = challenge
    t.match(await refusal(other.completeSignIn({ mfa_token, code: '000000' })), { code: 'invalid_credentials' })
    t.match(await refusal(me(other)), { code: 'unauthenticated' }, 'nobody is signed in yet')
    await other.completeSignIn({ mfa_token, code: await nextCode() })
    t.match(await me(other), { email, mfa_enabled: true })
    t.match(await refusal(other.completeSignIn({ mfa_token, code: await nextCode() })), { code: 'invalid_credentials' })

    const renewed = await other.renewRecoveryCodes({ code: recovery_codes[0] })
    t.equal(renewed.recovery_codes.length, 10)
    await other.removeTotp({ code: renewed.recovery_codes[0] })
    t.match(await me(other), { mfa_enabled: false })
    t.match(await refusal(me(client)), { code: 'session_revoked' })
    await client.signIn({ email, password })
  })

  await t.test('adds a passkey, signs in with it in each way, and removes it', async (t) => {
    plugIn(t, createDevice(new URL(redirect_to).origin))
    const added = await client.createPasskey('A laptop')
    t.match(added, { name: 'A laptop', recovery_codes: { length: 10 } })
    const other = connect()
    await other.signInWithPasskey('acme')
    t.match(await me(other), { email })
    const { mfa_token, factors } = await refusal(other.signIn({ email, password }))
    t.strictSame(factors, ['passkey'])
    await other.completeSignInWithPasskey(mfa_token)
    t.match(await me(other), { email })

    await fiveMinutesLater()
    t.match(await refusal(other.removePasskey(added.id)), { code: 'reauthentication_required' })
    await other.reauthenticate(await other.proveWithPasskey())
    t.equal((await other.renewRecoveryCodes(await other.proveWithPasskey())).recovery_codes.length, 10)
    await other.removePasskey(added.id)
    t.match(await refusal(connect().signInWithPasskey('acme')), { code: 'invalid_credentials' })
    await client.signIn({ email, password })
  })

  await t.test('says which provider an agency demands', async (t) => {
    const body = { name: 'Login', issuer: 'http://localhost:1', client_id: 'aggios', client_secret: 'secret' }
    const { id } = await unwrap(client.POST('/api/v1/identity-providers', { body }))
    const demand = (since: string | null) =>
      allRows(database, 'update identity_providers set enforced_from = $1', [since])
    await demand('2026-01-01T00:00:00Z')
    t.match(await refusal(connect().signIn({ email, password })), { code: 'provider_required', provider: id })
    await demand(null)
  })

  await t.test('accepts an invitation, and sets up the factor that the agency demands', async (t) => {
    await unwrap(client.POST('/api/v1/invitations', { body: { email: 'bob@acme.example', role: 'member' } }))
    const link = new URL(await mailbox.nextLink('bob@acme.example', '/invitations/accept'))
    const token = link.searchParams.get('token') as string
    const bob = connect()
    t.match(await refusal(bob.acceptInvitation({ token, name: 'Bob' })), { code: 'validation_failed', status: 400 })
    await bob.acceptInvitation({ token, name: 'Bob', password })
    t.match(await me(bob), { name: 'Bob', email_verified: true })
    t.match(await refusal(connect().acceptInvitation({ token, name: 'Bob', password })), { code: 'invitation_expired' })
    t.equal(await bob.resendVerification(), undefined)

    await allRows(database, `update tenants set settings = '{"mfa_required_from": "2026-01-01T00:00:00Z"}'`)
    const credentials = { email: 'bob@acme.example', password }
    const demand = await refusal(bob.signIn(credentials))
    t.match(demand, { code: 'mfa_required', enroll: true })
    const { secret } = await bob.enrollAtSignIn(demand.mfa_token)
    const code = createAuthenticator(secret).code()
    const completed = await bob.completeSignIn({ mfa_token: demand.mfa_token, code })
    t.equal(completed.recovery_codes.length, 10)
    t.match(await me(bob), { mfa_enabled: true })

    plugIn(t, createDevice(new URL(redirect_to).origin))
    const ada = connect()
    const { mfa_token } = await refusal(ada.signIn({ email, password }))
    const reply = await ada.completeSignInWithNewPasskey(mfa_token, 'A phone')
    t.equal(reply.recovery_codes.length, 10)
    t.match(await me(ada), { mfa_enabled: true })
  })
})
