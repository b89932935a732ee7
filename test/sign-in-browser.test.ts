import { randomBytes } from 'node:crypto'
import { existsSync } from 'node:fs'
import { join } from 'node:path'
import type { Browser, Page } from 'playwright-core'
import t, { type Test } from 'tap'
import { createAuthenticator, forgetUsedCodes } from './factors.ts'
import { allRows, clientFolder, createTestDatabase, password, startServer, testEnvironment } from './harness.ts'
import { startHttpsFront } from './https-front.ts'
import { startMailbox } from './mail-server.ts'
import { startNameServer } from './name-server.ts'
import { servePage } from './page-server.ts'
import { findProgram } from './parts.ts'
import { freePort } from './ports.ts'
import { clientId, clientSecret, startOpenIdProvider } from './providers.ts'
import { ask, openssl } from './traefik.ts'

// rehearsal: people sign in on pages of their agency, in a browser

/*
 * People sign in on pages of their agency, in a browser, by the TypeScript client, against a server in production: HTTPS,
 * no origin that nobody has listed, mails by SMTP, and providers on the public internet.
 */

const chromium = findProgram('chromium')
const built = join(clientFolder, 'dist', 'index.js')
const skip =
  chromium.skip ||
  openssl.skip ||
  (!existsSync(built) &&
    process.env.CI !== 'true' &&
    'client/dist is not built: npm --prefix client ci && npm --prefix client run build')

const email = 'ada@acme.example'
/** The page of APP_URL, another one that the agency has listed, and one that it has not. */
const [app, portal, stranger] = ['app', 'portal', 'stranger'].map((name) => `https://acme.${name}.aggios.test`) as [
  string,
  string,
  string
]
const googleHost = 'google.example'
const agencyHost = 'login.acme.example'
const callback = (provider: string) => `https://api.aggios.test/api/v1/auth/oauth/${provider}/callback`

/** The product in production, with all that it needs, and an agency with an owner. */
async function startWorld(t: Test) {
  const [database, pages, mailbox, dns, port] = await Promise.all([
    ...([createTestDatabase(t), servePage(t), startMailbox(t), startNameServer(t), freePort()] as const)
  ])
  // the address of test/public-network.ts, which no name server but ours is asked for
  dns.hosts.set(agencyHost, { a: ['11.22.33.44'] })
  const google = await startOpenIdProvider(t, [callback('google')], `https://${googleHost}`)
  const portOf = (url: string) => Number(new URL(url).port)
  const ports = new Map([[googleHost, portOf(google.url)]])
  const isPage = /^acme\.(app|portal|stranger)\.aggios\.test$/
  const names = ['aggios.test', ...['app', 'portal', 'stranger'].map((name) => `${name}.aggios.test`)]
  const front = await startHttpsFront(t, [...names, googleHost, agencyHost], (host) => {
    if (isPage.test(host)) return pages
    return ports.get(host) ?? (host.endsWith('.aggios.test') ? port : undefined)
  })
  const server = await startServer(
    t,
    testEnvironment(database, {
      PORT: String(port),
      NODE_ENV: 'production',
      BASE_DOMAIN: 'aggios.test',
      APP_URL: 'https://{slug}.app.aggios.test',
      TRUST_PROXY: '127.0.0.1',
      JWT_SECRET: randomBytes(32).toString('hex'),
      PASSWORD_PEPPER: randomBytes(32).toString('hex'),
      SMTP_URL: mailbox.url,
      DNS_SERVERS: dns.address,
      GOOGLE_CLIENT_ID: clientId,
      GOOGLE_CLIENT_SECRET: clientSecret,
      GOOGLE_ISSUER: google.issuer,
      LOG_LEVEL: 'error',
      NODE_EXTRA_CA_CERTS: front.authority,
      NODE_OPTIONS: `--import ${join(import.meta.dirname, 'public-network.ts')}`,
      PUBLIC_HOSTS: `${googleHost},${agencyHost}`,
      PUBLIC_PORT: String(front.port)
    })
  )
  const registered = await ask(port, '/api/v1/auth/register', {
    host: 'api.aggios.test',
    method: 'POST',
    body: { tenant: { name: 'Acme', slug: 'acme' }, name: 'Ada Lovelace', email, password }
  })
  t.equal(registered.status, 201)
  const listed = await ask(port, '/api/v1/tenant', {
    host: 'acme.aggios.test',
    method: 'PATCH',
    headers: { authorization: `Bearer ${registered.json().access_token}` },
    body: { settings: { allowed_origins: [app, portal] } }
  })
  t.equal(listed.status, 200)
  const playwright = await import('playwright-core')
  const browser = await playwright.chromium.launch({
    executablePath: chromium.path,
    args: [
      ...['--headless', '--no-sandbox', '--disable-gpu', '--no-first-run', '--disable-background-networking'],
      `--host-resolver-rules=MAP *:443 127.0.0.1:${front.port}`,
      // the page counts as secure, as with a certificate of a public authority: else there are no passkeys
      `--ignore-certificate-errors-spki-list=${front.digest}`
    ]
  })
  t.teardown(() => browser.close())
  /** The agency's own provider, which knows one address of this server. */
  const startAgencyProvider = async (callback_url: string) => {
    const agency = await startOpenIdProvider(t, [callback_url], `https://${agencyHost}`)
    ports.set(agencyHost, portOf(agency.url))
    return agency
  }
  return { database, port, mailbox, dns, google, startAgencyProvider, browser, server }
}

/** Runs an expression of a page. Resolves to what it gives, or to the problem with which it failed. */
const run = (page: Page, expression: string): Promise<Record<string, unknown>> =>
  page.evaluate(`(async () => { try { return (await (${expression})) ?? {} } catch (err) {
    return { code: err.code, name: err.name, status: err.status, provider: err.provider,
      mfa_token: err.mfa_token, factors: err.factors } } })()`)
const whoAmI = 'unwrap(client.GET("/api/v1/users/me"))'
const signIn = (email: string, word = password) => `client.signIn(${JSON.stringify({ email, password: word })})`
const isReady = (page: Page) => page.locator('body[data-ready]').waitFor()

/** Opens a page in a new browser profile, which has a device with a fingerprint reader. */
async function open(t: Test, browser: Browser, url: string): Promise<Page> {
  const context = await browser.newContext()
  t.teardown(() => context.close())
  const page = await context.newPage()
  const session = await context.newCDPSession(page)
  await session.send('WebAuthn.enable')
  const options = {
    ...({ protocol: 'ctap2', transport: 'internal', automaticPresenceSimulation: true } as const),
    ...{ hasResidentKey: true, hasUserVerification: true, isUserVerified: true }
  }
  await session.send('WebAuthn.addVirtualAuthenticator', { options })
  await goTo(page, url)
  return page
}

async function goTo(page: Page, url: string): Promise<void> {
  await page.goto(url)
  await isReady(page)
}

/** Sends the browser to a provider by one helper of the client, and back to `to`, where the other one gets the code. */
async function viaProvider(page: Page, start: string, finish: string, provider: string, to: string) {
  const asked = JSON.stringify({ provider, redirect_to: `${to}/signed-in` })
  const begun = await run(
    page,
    `client.${start}(${asked}).then(({ url, code_verifier }) => {
      sessionStorage.setItem('code_verifier', code_verifier)
      location.assign(url)
    })`
  )
  if (begun.name) return begun
  await page.waitForURL(`${to}/signed-in`)
  await isReady(page)
  const error = await page.evaluate('parameters.get("error")')
  if (error) return { error }
  const exchanged = `client.${finish}({ code: parameters.get('code'), code_verifier: sessionStorage.getItem('code_verifier') })`
  return run(page, exchanged)
}

t.test('in a browser, as in production', { skip }, async (t) => {
  const { database, port, mailbox, dns, google, startAgencyProvider, browser, server } = await startWorld(t)
  const page = await open(t, browser, `${app}/home`)
  const newPassword = 'another correct horse battery'
  let authenticator = createAuthenticator('AAAAAAAAAAAAAAAA')
  const { id: adaId } = (await allRows(database, 'select id from users where email = $1', [email]))[0]
  /** A code that is good: each is good once, and a test can't wait for the next one. */
  const nextCode = async () => {
    await forgetUsedCodes({ database }, adaId)
    return authenticator.code()
  }
  const withCode = async (refusal: Record<string, unknown>) =>
    `client.completeSignIn(${JSON.stringify({ mfa_token: refusal.mfa_token, code: await nextCode() })})`

  await t.test('a page that is not listed learns nothing, wherever it is', async (t) => {
    const other = await open(t, browser, `${stranger}/home`)
    for (const call of [signIn(email), whoAmI, `client.requestPasswordReset('${email}')`]) {
      t.match(await run(other, call), { name: 'TypeError', code: undefined }, call)
    }
    const preflight = { 'access-control-request-method': 'POST', 'access-control-request-headers': 'content-type' }
    for (const [origin, allowed] of [
      [stranger, undefined],
      ['https://acme.localhost', undefined],
      ['http://localhost:3000', undefined],
      [app, app],
      [portal, portal]
    ] as const) {
      for (const [method, headers] of [
        ['POST', {}],
        ['OPTIONS', preflight]
      ] as const) {
        const asked = { host: 'acme.aggios.test', method, headers: { origin, ...headers }, body: {} }
        const reply = await ask(port, '/api/v1/auth/login', asked)
        t.equal(reply.headers['access-control-allow-origin'], allowed, `${method} from ${origin}`)
      }
    }
  })

  await t.test('somebody sets a new password by the link of a mail', async (t) => {
    await run(page, `client.requestPasswordReset('${email}')`)
    await goTo(page, await mailbox.nextLink(email, '/password/reset'))
    t.equal(page.url(), `${app}/password/reset`, 'the token is not in the address bar')
    const reset = `client.resetPassword({ token: parameters.get('token'), password: '${newPassword}' })`
    t.strictSame(await run(page, reset), {})
    t.match(await run(page, reset), { code: 'link_expired', status: 410 })
    t.match(await run(page, signIn(email)), { code: 'invalid_credentials' })
    t.type((await run(page, signIn(email, newPassword))).access_token, 'string')
    t.match(await run(page, whoAmI), { email, email_verified: true })
  })

  await t.test('links a sign-in at Google, and comes in by it', async (t) => {
    google.be({ sub: 'ada at google', email: 'ada@gmail.example', email_verified: true, name: 'Ada' })
    const linked = await viaProvider(page, 'startLinking', 'finishLinking', 'google', app)
    t.match(linked, { provider: 'google', email: 'ada@gmail.example' })
    await run(page, 'client.signOut()')
    t.match(await run(page, whoAmI), { code: 'unauthenticated' })
    const started = page.waitForResponse((reply) =>
      reply.url().startsWith(callback('google').replace('/callback', '?'))
    )
    const tokens = await viaProvider(page, 'startProviderSignIn', 'finishProviderSignIn', 'google', app)
    const cookie = await (await started).headerValue('set-cookie')
    t.match(cookie, /^__Host-\w+=[\w-]+; Path=\/; Max-Age=600; HttpOnly; SameSite=Lax; Secure$/)
    t.type(tokens.access_token, 'string')
    t.match(await run(page, whoAmI), { email, role: 'owner' })
    // what any admin may list is no place for a session that is good in other agencies
    const onPortal = await page.context().newPage()
    const asked = JSON.stringify({ provider: 'google', redirect_to: `${portal}/signed-in` })
    await goTo(onPortal, `${portal}/home`)
    const { url } = await run(onPortal, `client.startProviderSignIn(${asked})`)
    t.equal((await onPortal.goto(String(url)))?.status(), 400)
    await onPortal.close()
  })

  await t.test('sets up an authenticator app, and comes in with its code', async (t) => {
    const { secret } = await run(page, 'client.startTotp()')
    authenticator = createAuthenticator(String(secret))
    const confirmed = await run(page, `client.confirmTotp('${authenticator.code()}')`)
    t.match(confirmed, { recovery_codes: { length: 10 } })
    await run(page, 'client.signOut()')
    const refusal = await run(page, signIn(email, newPassword))
    t.match(refusal, { code: 'mfa_required', factors: ['totp'] })
    t.type((await run(page, await withCode(refusal))).access_token, 'string')
    t.match(await run(page, whoAmI), { mfa_enabled: true })

    await run(page, 'client.signOut()')
    const atGoogle = await viaProvider(page, 'startProviderSignIn', 'finishProviderSignIn', 'google', app)
    t.match(atGoogle, { code: 'mfa_required' }, 'Google does not replace it')
    t.type((await run(page, await withCode(atGoogle))).access_token, 'string')
  })

  await t.test('adds a passkey on another page of the agency, as second factor and as the only one', async (t) => {
    const onPortal = await open(t, browser, `${portal}/home`)
    await run(onPortal, await withCode(await run(onPortal, signIn(email, newPassword))))
    t.match(await run(onPortal, 'client.createPasskey("A laptop")'), { name: 'A laptop' })
    await run(onPortal, 'client.signOut()')
    const refusal = await run(onPortal, signIn(email, newPassword))
    t.match(refusal, { code: 'mfa_required', factors: ['totp', 'passkey'] })
    const completed = `client.completeSignInWithPasskey(${JSON.stringify(refusal.mfa_token)})`
    t.type((await run(onPortal, completed)).access_token, 'string')
    await run(onPortal, 'client.signOut()')
    t.type((await run(onPortal, 'client.signInWithPasskey()')).access_token, 'string')
    t.match(await run(onPortal, whoAmI), { email })
  })

  await t.test('binds a session to a key that stays in the browser', async (t) => {
    const bound = await open(t, browser, `${portal}/home`)
    const connect = `import('@aggios/client').then(({ createAggiosClient, localStorageStore, storedProofKey }) => {
      window.client = createAggiosClient({
        baseUrl: 'https://acme.aggios.test', store: localStorageStore('bound'), proofKey: storedProofKey() }) })`
    await run(bound, connect)
    const tokens = await run(bound, await withCode(await run(bound, signIn(email, newPassword))))
    t.match(tokens, { token_type: 'DPoP' })
    await goTo(bound, `${portal}/home`)
    await run(bound, connect)
    t.match(await run(bound, whoAmI), { email }, 'also after the page was opened anew')
    for (const scheme of ['Bearer', 'DPoP']) {
      const stolen = { host: 'acme.aggios.test', headers: { authorization: `${scheme} ${tokens.access_token}` } }
      t.equal((await ask(port, '/api/v1/users/me', stolen)).status, 401, scheme)
    }
  })

  await t.test('demands the provider of the agency: it lets in, and so does breaking the glass', async (t) => {
    const call = (method: string, path: string, options: object = {}) =>
      run(page, `unwrap(client.${method}(${JSON.stringify(`/api/v1${path}`)}, ${JSON.stringify(options)}))`)
    const refusal = await run(page, signIn(email, newPassword))
    await run(page, await withCode(refusal))
    const bob = 'bob@acme.example'
    await call('POST', '/invitations', { body: { email: bob, role: 'member' } })
    const guest = await open(t, browser, await mailbox.nextLink(bob, '/invitations/accept'))
    const accept = `client.acceptInvitation({ token: parameters.get('token'), name: 'Bob', password: '${password}' })`
    t.type((await run(guest, accept)).access_token, 'string')

    const { record } = (await call('POST', '/domains', { body: { name: 'acme.example' } })) as {
      record: { name: string; value: string }
    }
    dns.answers.set(record.name, [record.value])
    const params = { path: { name: 'acme.example' } }
    t.match(await call('POST', '/domains/{name}/verify', { params }), { status: 'verified' })
    const issuer = `https://${agencyHost}`
    const body = { name: 'Acme login', issuer, client_id: clientId, client_secret: clientSecret }
    const { id: provider, callback_url } = await call('POST', '/identity-providers', { body })
    const agency = await startAgencyProvider(String(callback_url))
    agency.be({ sub: 'ada at acme', email, email_verified: true, name: 'Ada' })
    const here = await open(t, browser, `${portal}/home`)
    const through = (on: Page) =>
      viaProvider(on, 'startProviderSignIn', 'finishProviderSignIn', String(provider), portal)
    t.type((await run(here, await withCode(await through(here)))).access_token, 'string')
    const granted = await call('PUT', '/enforcement/break-glass/{user_id}', { params: { path: { user_id: adaId } } })
    t.strictSame(granted, {})
    t.match(await call('PUT', '/enforcement', { body: { provider_id: provider } }), { provider_id: provider })

    await goTo(guest, `${portal}/home`)
    t.match(await run(guest, signIn(bob, 'not the right one')), { code: 'invalid_credentials' })
    t.match(await run(guest, signIn(bob)), { code: 'provider_required', status: 403, provider })
    agency.be({ sub: 'bob at acme', email: bob, email_verified: true, name: 'Bob' })
    t.type((await through(guest)).access_token, 'string')
    t.match(await run(guest, whoAmI), { email: bob, role: 'member' })

    const owner = await open(t, browser, `${app}/home`)
    const challenge = await run(owner, signIn(email, newPassword))
    t.match(challenge, { code: 'mfa_required' }, 'never by the password alone')
    t.type((await run(owner, await withCode(challenge))).access_token, 'string')
    t.match(await run(owner, whoAmI), { email, role: 'owner' })
  })
  t.equal(server.output(), '', 'no error of the server')
})
