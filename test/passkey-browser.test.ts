import { existsSync } from 'node:fs'
import { join } from 'node:path'
import type { Page } from 'playwright-core'
import t from 'tap'
import { clientFolder, createTestDatabase, password, startServer, testEnvironment } from './harness.ts'
import { servePage } from './page-server.ts'
import { findProgram } from './parts.ts'
import { freePort } from './ports.ts'

// rehearsal: a browser with an authenticator

/*
 * A browser adds a passkey and signs in with it, by the TypeScript client, on the page of an agency under a base domain as
 * in production. Its authenticator is a virtual one.
 */

const chromium = findProgram('chromium')
const built = join(clientFolder, 'dist', 'passkeys.js')
const skip =
  chromium.skip ||
  (!existsSync(built) &&
    process.env.CI !== 'true' &&
    'client/dist is not built: npm --prefix client ci && npm --prefix client run build')

t.test('a browser', { skip }, async (t) => {
  const pagePort = await servePage(t)
  const pageOf = (slug: string) => `http://${slug}.aggios.test:${pagePort}`
  const database = await createTestDatabase(t)
  const port = await freePort()
  const server = await startServer(
    t,
    testEnvironment(database, {
      PORT: String(port),
      NODE_ENV: 'development',
      BASE_DOMAIN: 'aggios.test',
      APP_URL: `http://{slug}.aggios.test:${pagePort}`
    })
  )
  const playwright = await import('playwright-core')
  const secure = ['acme', 'rival'].map(pageOf).join(',')
  const browser = await playwright.chromium.launch({
    executablePath: chromium.path as string,
    args: [
      ...['--headless', '--no-sandbox', '--disable-gpu', '--no-first-run', '--disable-background-networking'],
      '--host-resolver-rules=MAP *.aggios.test 127.0.0.1',
      // browsers offer passkeys to secure pages only; in production they have TLS
      `--unsafely-treat-insecure-origin-as-secure=${secure}`
    ]
  })
  t.teardown(() => browser.close())
  const context = await browser.newContext()

  for (const slug of ['acme', 'rival']) {
    const body = { tenant: { name: slug, slug }, name: 'Ada Lovelace', email: `ada@${slug}.example`, password }
    const reply = await server.fetch('/api/v1/auth/register', {
      method: 'POST',
      headers: { 'content-type': 'application/json' },
      body: JSON.stringify(body)
    })
    t.equal(reply.status, 201)
    await reply.body?.cancel()
  }

  /** Opens a page of an agency, which has a client of the API of an agency as `client`. */
  async function open(slug: string, api = slug): Promise<Page> {
    const page = await context.newPage()
    const session = await context.newCDPSession(page)
    await session.send('WebAuthn.enable')
    const options = {
      ...({ protocol: 'ctap2', transport: 'internal', automaticPresenceSimulation: true } as const),
      ...{ hasResidentKey: true, hasUserVerification: true, isUserVerified: true }
    }
    const { authenticatorId } = await session.send('WebAuthn.addVirtualAuthenticator', { options })
    await page.goto(`${pageOf(slug)}/?api=http://${api}.aggios.test:${port}`)
    await page.locator('body[data-ready]').waitFor()
    await page.evaluate(
      `import('@aggios/client').then(({ createAggiosClient }) => { window.client = createAggiosClient({ baseUrl: 'http://${api}.aggios.test:${port}' }) })`
    )
    return Object.assign(page, { authenticator: { session, authenticatorId } })
  }
  /** Runs an expression of the page. Resolves to what it gives, or to the code of the problem. */
  const ask = (page: Page, expression: string): Promise<Record<string, unknown>> =>
    page.evaluate(`(async () => { try { return await (${expression}) } catch (err) {
      return { code: err.code, name: err.name, mfa_token: err.mfa_token, factors: err.factors } } })()`)
  const whoAmI = 'client.GET("/api/v1/users/me").then(({ data }) => data)'

  const page = await open('acme')
  await t.test('adds a passkey on the page of an agency', async (t) => {
    await ask(page, `client.signIn({ email: 'ada@acme.example', password: '${password}' })`)
    const added = await ask(page, 'client.createPasskey("A laptop")')
    t.match(added, { name: 'A laptop', recovery_codes: { length: 10 } })
    t.match(await ask(page, whoAmI), { mfa_enabled: true })
    t.match(await ask(page, 'client.createPasskey("Again")'), { name: 'InvalidStateError' }, 'a device only once')
  })

  await t.test('signs in with it, without a password', async (t) => {
    await ask(page, 'client.signOut()')
    t.type((await ask(page, 'client.signInWithPasskey()')).access_token, 'string')
    t.match(await ask(page, whoAmI), { email: 'ada@acme.example' })
  })

  await t.test('completes a sign-in with the password', async (t) => {
    await ask(page, 'client.signOut()')
    const refusal = await ask(page, `client.signIn({ email: 'ada@acme.example', password: '${password}' })`)
    t.match(refusal, { code: 'mfa_required', factors: ['passkey'] })
    const reply = await ask(page, `client.completeSignInWithPasskey(${JSON.stringify(refusal.mfa_token)})`)
    t.type(reply.access_token, 'string')
    t.match(await ask(page, whoAmI), { email: 'ada@acme.example' })
  })

  await t.test('gets nothing for the agency on the page of another one', async (t) => {
    const { authenticator } = page as Page & {
      authenticator: { session: import('playwright-core').CDPSession; authenticatorId: string }
    }
    const { session, authenticatorId } = authenticator
    const answer = `client.POST('/api/v1/auth/passkeys/options').then(async ({ data }) => {
      const publicKey = PublicKeyCredential.parseRequestOptionsFromJSON(data)
      const passkey = (await navigator.credentials.get({ publicKey })).toJSON()
      return client.POST('/api/v1/auth/passkeys', { body: { passkey } }).then(({ data, error }) => error ?? data) })`
    t.type((await ask(page, answer)).access_token, 'string', 'the JSON of the browser itself is accepted')
    const { credentials } = await session.send('WebAuthn.getCredentials', { authenticatorId })

    // the page of the other agency may not read replies of this one, so it gets the challenge from elsewhere
    const reply = await server.fetch('/api/v1/auth/passkeys/options', { method: 'POST' })
    const options = JSON.stringify(await reply.json())
    const other = (await open('rival')) as typeof page & { authenticator: typeof authenticator }
    for (const credential of credentials) {
      await other.authenticator.session.send('WebAuthn.addCredential', {
        authenticatorId: other.authenticator.authenticatorId,
        credential
      })
    }
    const lured = await ask(
      other,
      `navigator.credentials.get({ publicKey: PublicKeyCredential.parseRequestOptionsFromJSON(${options}) })
        .then((credential) => credential.toJSON())`
    )
    t.equal(lured.type, 'public-key', 'the browser makes the signature, because the domain is the same')
    const refused = await server.fetch('/api/v1/auth/passkeys', {
      method: 'POST',
      headers: { 'content-type': 'application/json' },
      body: JSON.stringify({ passkey: lured, tenant: 'acme' })
    })
    t.match(await refused.json(), { status: 401, code: 'invalid_credentials' })
  })
  await context.close()
})
