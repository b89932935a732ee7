import { existsSync } from 'node:fs'
import { join } from 'node:path'
import t from 'tap'
import { nonceSeconds } from '../src/auth/dpop/nonces.ts'
import { clientFolder, createTestDatabase, password, startServer, testEnvironment } from './harness.ts'
import { servePage } from './page-server.ts'
import { findProgram } from './parts.ts'
import { decode } from './tokens.ts'

/*
 * The TypeScript client binds its sessions to a key (DPoP), in Node and in a browser that keeps the key in IndexedDB.
 */

const built = join(clientFolder, 'dist', 'index.js')
const unbuilt =
  !existsSync(built) && process.env.CI !== 'true' && 'npm --prefix client ci && npm --prefix client run build'
const chromium = findProgram('chromium')
const email = 'ada@acme.example'

/** What fetch needs to send a request to another address. */
const copyOf = ({ method, headers, body }: Request) => ({ method, headers, body, duplex: 'half' }) as RequestInit

t.test('the TypeScript client', { skip: unbuilt }, async (t) => {
  const server = await startServer(t, testEnvironment(await createTestDatabase(t)))
  const { createAggiosClient, createProofKey, memoryStore } = await import(built)
  const store = memoryStore()
  const proofKey: { privateKey: { extractable: boolean } } = await createProofKey()
  const sent: Request[] = []
  const send = (request: Request) => {
    sent.push(request)
    return fetch(request)
  }
  const reasons: string[] = []
  const onSignedOut = ({ code }: { code: string }) => void reasons.push(code)
  const client = createAggiosClient({ baseUrl: server.url, store, fetch: send, proofKey, onSignedOut })
  const paths = () => sent.splice(0).map(({ method, url }) => `${method} ${new URL(url).pathname}`)
  const me = '/api/v1/users/me'

  await t.test('binds the session that it opens, and asks for a nonce once', async (t) => {
    t.equal(proofKey.privateKey.extractable, false)
    const reply = await client.register({ tenant: { name: 'Acme', slug: 'acme' }, name: 'Ada', email, password })
    t.match(reply, { token_type: 'DPoP' })
    t.strictSame(paths(), ['POST /api/v1/auth/register', 'POST /api/v1/auth/register'])
    t.equal((await client.GET(me)).response.status, 200)
    t.strictSame(paths(), ['GET /api/v1/users/me'])
  })
  await t.test('does everything that it does with other tokens', async (t) => {
    const content = new Blob(['# Notes'.repeat(1000)])
    const file = await client.uploadFile(content, { name: 'notes.md', purpose: 'contract' })
    t.equal((await client.downloadFile(file.id)).size, content.size)
    t.equal((await client.GET('/api/v1/members', { params: { query: { limit: 1 } } })).response.status, 200)
    await client.switchTenant('acme')
    t.match(await store.read(), { token_type: 'DPoP' })
    sent.length = 0
  })
  await t.test('renews its tokens, with the same key', async (t) => {
    const { access_token, ...tokens } = await store.read()
    await store.write({ ...tokens, access_token: `${access_token.slice(0, -4)}AAAA` })
    t.equal((await client.GET(me)).response.status, 200)
    t.strictSame(paths(), ['GET /api/v1/users/me', 'POST /api/v1/auth/refresh', 'GET /api/v1/users/me'])
    t.match(decode((await store.read()).access_token).claims, { cnf: {} })
  })
  await t.test('repeats a request whose nonce is too old, with its body', async (t) => {
    const other = createAggiosClient({ baseUrl: server.url, store, fetch: send, proofKey })
    const { data } = await other.PATCH(me, { body: { name: 'Ada King' } })
    t.match(data, { name: 'Ada King' })
    t.strictSame(paths(), ['PATCH /api/v1/users/me', 'PATCH /api/v1/users/me'])
    t.ok(nonceSeconds > 60, 'which is rare')
  })
  await t.test('is of no use with the tokens of somebody else', async (t) => {
    const stolen = memoryStore()
    await stolen.write(await store.read())
    for (const key of [undefined, createProofKey()]) {
      const thief = createAggiosClient({ baseUrl: server.url, store: stolen, ...(key && { proofKey: key }) })
      t.match(await thief.GET(me), { error: { code: 'invalid_dpop_proof' } })
    }
    t.equal((await client.GET(me)).response.status, 200)
  })
  await t.test('stays signed in when a refresh is refused because of its proof', async (t) => {
    /** A client whose refreshes pass a proxy, and whose access token is not valid any more. */
    const behind = async (proxy: (request: Request) => Promise<Response>) => {
      const { access_token, ...tokens } = await store.read()
      await store.write({ ...tokens, access_token: `${access_token.slice(0, -4)}AAAA` })
      const pass = (request: Request) => (request.url.endsWith('/auth/refresh') ? proxy(request) : fetch(request))
      return createAggiosClient({ baseUrl: server.url, store, fetch: pass, proofKey, onSignedOut })
    }
    let refreshes = 0
    // fetch fails after a repetition like that of a proxy, so only the last reply arrives
    const twice = await behind(async (request) => {
      refreshes++
      const copy = request.clone()
      const reply = await fetch(request)
      return reply.ok && refreshes <= 2 ? fetch(copy) : reply
    })
    t.equal((await twice.GET(me)).response.status, 200, 'a proxy has sent it twice')

    const wrongHost = await behind((request) => fetch(request.url.replace('127.0.0.1', 'localhost'), copyOf(request)))
    t.match(await wrongHost.GET(me), { error: { code: 'invalid_dpop_proof', detail: /htu/ } })
    t.hasProp(await store.read(), 'refresh_token', 'a proxy has changed its address for some minutes')
    t.strictSame(reasons, [])
    t.equal((await client.GET(me)).response.status, 200, 'and later all is well')
    sent.length = 0
  })
  await t.test('signs out when its key is lost, and says why', async (t) => {
    const { access_token, ...tokens } = await store.read()
    await store.write({ ...tokens, access_token: `${access_token.slice(0, -4)}AAAA` })
    const proofKey = createProofKey()
    const lost = createAggiosClient({ baseUrl: server.url, store, proofKey, onSignedOut })
    t.match(await lost.GET(me), { error: { code: 'invalid_dpop_proof' } })
    t.equal(await store.read(), undefined)
    t.strictSame(reasons, ['invalid_dpop_proof'])
    await client.signIn({ email, password })
    await client.signOut()
    t.equal(await store.read(), undefined)
  })
})

t.test('a browser', { skip: unbuilt || chromium.skip }, async (t) => {
  const pagePort = await servePage(t)
  const origin = `http://acme.localhost:${pagePort}`
  const server = await startServer(
    t,
    testEnvironment(await createTestDatabase(t), { NODE_ENV: 'development', CORS_ORIGINS: origin })
  )
  const body = { tenant: { name: 'Acme', slug: 'acme' }, name: 'Ada', email, password }
  const headers = { 'content-type': 'application/json' }
  const registered = await server.fetch('/api/v1/auth/register', {
    method: 'POST',
    headers,
    body: JSON.stringify(body)
  })
  t.equal(registered.status, 201)
  const playwright = await import('playwright-core')
  const browser = await playwright.chromium.launch({
    executablePath: chromium.path as string,
    args: ['--headless', '--no-sandbox', '--disable-gpu', '--no-first-run', '--disable-background-networking']
  })
  t.teardown(() => browser.close())
  const api = `http://acme.localhost:${server.port}`
  const page = await (await browser.newContext()).newPage()

  /** Runs a body of a function in the page, which has a client as `client`. */
  async function run(work: string): Promise<unknown> {
    await page.goto(`${origin}/?api=${api}`)
    await page.locator('body[data-ready]').waitFor()
    return page.evaluate(`(async () => {
      const { createAggiosClient, localStorageStore, storedProofKey } = await import('@aggios/client')
      const key = await storedProofKey()
      const client = createAggiosClient({ baseUrl: '${api}', store: localStorageStore(), proofKey: key })
      ${work}
    })()`)
  }

  const signedIn = await run(`
    const { token_type, access_token } = await client.signIn(${JSON.stringify({ email, password })})
    const { response } = await client.GET('/api/v1/users/me')
    const exported = await crypto.subtle.exportKey('jwk', key.privateKey).then(() => 'exported', () => 'refused')
    const alone = await fetch('${api}/api/v1/users/me', { headers: { authorization: 'Bearer ' + access_token } })
    return { token_type, status: response.status, exported, alone: (await alone.json()).code }`)
  t.strictSame(signedIn, { token_type: 'DPoP', status: 200, exported: 'refused', alone: 'invalid_token' })

  const reloaded = await run(`return (await client.GET('/api/v1/users/me')).response.status`)
  t.equal(reloaded, 200, 'the key of the browser outlives the page')

  const lost = await run(`
    await new Promise((done) => { indexedDB.deleteDatabase('aggios.proof-key').onsuccess = done })
    const other = createAggiosClient({ baseUrl: '${api}', store: localStorageStore(), proofKey: storedProofKey() })
    return (await other.GET('/api/v1/users/me')).error.code`)
  t.equal(lost, 'invalid_dpop_proof', 'and tokens without their key are of no use')
})
