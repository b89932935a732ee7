import { existsSync } from 'node:fs'
import { join } from 'node:path'
import { setTimeout as sleep } from 'node:timers/promises'
import type { BrowserContext, Page, Request } from 'playwright-core'
import sharp from 'sharp'
import t, { type Test } from 'tap'
import type { DatabaseUrls } from './databases.ts'
import { emptyLists, walk } from './docs-walk.ts'
import {
  allRows,
  clientFolder,
  createTestDatabase,
  eventually,
  password,
  root,
  startServer,
  testEnvironment
} from './harness.ts'
import { servePage } from './page-server.ts'
import { findProgram } from './parts.ts'

// bounded in time: how long a page takes
// rehearsal: what only a browser can show

/*
 * What only a browser can show: whether a page works under its policy, whether a script may read a reply, and what tabs share.
 */

const chromium = findProgram('chromium')

/** The reason why these tests are skipped, if they are. If CI is "true", nothing may be missing. */
function reasonToSkip(): string | false {
  if (chromium.skip) return chromium.skip
  const missing = [
    [join(root, 'node_modules', 'playwright-core'), 'playwright-core is not installed: npm ci'],
    [
      join(clientFolder, 'dist', 'index.js'),
      'client/dist is not built: npm --prefix client ci && npm --prefix client run build'
    ]
  ].find(([path]) => !existsSync(path as string))
  if (!missing) return false
  if (process.env.CI === 'true') throw new Error(missing[1])
  return missing[1] as string
}

async function startBrowser(t: Test) {
  const playwright = await import('playwright-core')
  const browser = await playwright.chromium.launch({
    executablePath: chromium.path,
    args: [
      ...['--headless', '--no-sandbox', '--disable-gpu', '--disable-quic', '--no-first-run'],
      ...['--disable-background-networking', '--disable-component-update', '--disable-sync']
    ]
  })
  t.teardown(() => browser.close())
  return browser
}

/** The errors of a page, with violations of its policy. */
function complaintsOf(page: Page): string[] {
  const complaints: string[] = []
  page.on('console', (message) => {
    if (message.type() === 'error' || message.type() === 'warning') complaints.push(message.text())
  })
  page.on('pageerror', (err) => complaints.push(String(err)))
  page.on('requestfailed', (request) => complaints.push(`${request.url()}: ${request.failure()?.errorText}`))
  return complaints
}

/** An API process and an agency in it. */
async function startAgency(t: Test, env = {}) {
  const database = await createTestDatabase(t)
  const server = await startServer(t, testEnvironment(database, { LOG_LEVEL: 'warn', ...env }))
  const body = { tenant: { name: 'Acme', slug: 'acme' }, name: 'Ada Lovelace', email: 'ada@acme.example', password }
  const reply = await fetch(`http://localhost:${server.port}/api/v1/auth/register`, {
    method: 'POST',
    headers: { 'content-type': 'application/json' },
    body: JSON.stringify(body)
  })
  if (reply.status !== 201) throw new Error(await reply.text())
  const acme = (await reply.json()) as { access_token: string; user: { id: string } }
  return { database, acme, origin: `http://acme.localhost:${server.port}` }
}

type PageOperation = {
  operationId: string
  tags: string[]
  parameters?: { name: string; in: string }[]
  method: string
  path: string
}

async function readOperations(origin: string): Promise<Map<string, PageOperation>> {
  const reply = await fetch(`${origin}/api/v1/openapi.json`)
  const { paths } = (await reply.json()) as { paths: Record<string, Record<string, PageOperation>> }
  return new Map(
    Object.entries(paths).flatMap(([path, item]) =>
      Object.entries(item).map(([method, operation]) => [operation.operationId, { ...operation, method, path }])
    )
  )
}

const png = await sharp({ create: { width: 8, height: 8, channels: 3, background: 'red' } })
  .png()
  .toBuffer()

async function addColleague(database: DatabaseUrls, tenantId: string): Promise<void> {
  const [{ id }] = await allRows(
    database,
    "insert into users (id, email, name) values (uuid_v7(), 'bob@example.com', 'Bob') returning id"
  )
  await allRows(database, "insert into memberships (tenant_id, user_id, role) values ($1, $2, 'viewer')", [
    tenantId,
    id
  ])
}

/** A passkey and a linked sign-in, which only a device and a provider can make. */
async function addWaysIn(database: DatabaseUrls): Promise<void> {
  await allRows(
    database,
    `insert into passkeys (id, user_id, credential_id, public_key, counter, transports, device_type, backed_up, name)
      select uuid_v7(), id, 'credential', 'key', 0, '{}', 'multi_device', true, 'Phone' from users where email = $1`,
    ['ada@example.com']
  )
  await allRows(
    database,
    `insert into user_identities (id, user_id, provider, issuer, subject)
      select uuid_v7(), id, 'google', 'https://accounts.google.com', 'ada' from users where email = $1`,
    ['ada@example.com']
  )
}

const lists = [
  ...['members', 'invitations', 'users/me/sessions', 'users/me/passkeys', 'users/me/identities'],
  ...['identity-providers', 'domains', 'webhooks', 'api-keys'],
  ...['files/uploads', 'files?deleted=true', 'files']
]

/** Whether the page sends this request by itself, to fill in ids: it says nothing of a media type. The files come last. */
function isOfPage(request: Request): boolean {
  const { pathname, search } = new URL(request.url())
  const isList = lists.includes(`${pathname}${search}`.replace('/api/v1/', ''))
  return request.method() === 'GET' && isList && request.headers().accept === undefined
}
const listsAreRead = (page: Page) =>
  page.waitForResponse((reply) => isOfPage(reply.request()) && reply.url().endsWith('/api/v1/files'))

async function authorize(page: Page, token: string): Promise<void> {
  await page.locator('button.authorize').first().click()
  await page.locator('.auth-container input').fill(token)
  const filled = listsAreRead(page)
  await page.locator('.auth-btn-wrapper button.authorize').click()
  await page.locator('.auth-btn-wrapper button.btn-done').click()
  await filled
}

/**
 * Shows one part of the page in place of another, because the page renders everything that it shows at each change. That
 * takes much time by itself, so a part stays open while its operations are tried.
 */
async function showPart(page: Page, tag: string, before: string | undefined): Promise<void> {
  if (tag === before) return
  if (before !== undefined) await page.locator(`#operations-tag-${before}`).dispatchEvent('click')
  await page.locator(`#operations-tag-${tag}`).dispatchEvent('click')
}

/** Presses Execute, and returns the result that the page shows. */
async function tryOperation(
  page: Page,
  isSignedIn: boolean,
  { operationId, tags, method, path, parameters = [] }: PageOperation
) {
  const operation = page.locator(`#operations-${tags[0]}-${operationId}`)
  // dispatched directly: Playwright would wait for seconds until the page stands still
  const summary = operation.locator('.opblock-summary-control')
  await summary.dispatchEvent('click')
  const content = path.endsWith('/avatar') || path.endsWith('/logo') ? png : Buffer.from('%PDF-1.7')
  const file = operation.locator('input[type=file]')
  const execute = operation.locator('button.execute')
  await execute.waitFor()
  for (const { name, in: where } of parameters.filter((parameter) => parameter.in === 'path')) {
    const field = operation.locator(`tr[data-param-name="${name}"][data-param-in="${where}"] input`)
    await eventually(async () => (await field.inputValue()) !== '', 60_000)
  }
  const expression = new RegExp(`^${path.replaceAll(/\{\w+\}/g, '[^/]+')}$`)
  const isOurs = (request: Request) =>
    request.method() === method.toUpperCase() && expression.test(new URL(request.url()).pathname) && !isOfPage(request)
  const replied = page.waitForResponse((reply) => isOurs(reply.request()))
  // reported by the wait below
  replied.catch(() => {})
  const filled = method === 'get' || !isSignedIn ? undefined : listsAreRead(page).catch(() => {})
  // what fills the form is shown by then
  await page.evaluate('new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done)))')
  // a click or a chosen file is lost if the page renders its form again at that moment
  for (let asked = false, attempts = 0; !asked && attempts < 6; attempts++) {
    if (await file.count())
      await file.setInputFiles({ name: 'file', mimeType: 'application/octet-stream', buffer: content })
    const sent = page.waitForRequest(isOurs, { timeout: 10_000 }).then(
      () => true,
      () => false
    )
    await execute.dispatchEvent('click')
    asked = await sent
  }
  const reply = await replied
  const status = reply.status()
  const body = status === 204 || method === 'head' ? '' : await reply.text()
  await operation.locator('.live-responses-table .response-col_status').first().waitFor()
  if (status < 300 && operationId !== 'logout' && operationId !== 'deleteTenant') await filled
  await summary.dispatchEvent('click')
  return { status, body }
}

t.test('in Chromium', { skip: reasonToSkip() }, async (t) => {
  const browser = await startBrowser(t)

  t.test('the page about the API works under its own policy', async (t) => {
    const { origin, acme } = await startAgency(t)
    const page = await browser.newPage({ viewport: { width: 1280, height: 1600 } })
    t.teardown(() => page.close())
    const complaints = complaintsOf(page)
    const reply = await page.goto(`${origin}/api/v1/docs`)
    t.equal(reply?.status(), 200)
    t.match(reply?.headers()['content-security-policy'], "default-src 'none'")
    await page.locator('.opblock').first().waitFor()

    // before the sign-in, to show that the token makes the difference
    const operation = page
      .locator('.opblock', { has: page.locator('[data-path="/api/v1/users/me"]') })
      .and(page.locator('.opblock-get'))
    await operation.locator('.opblock-summary-control').click()
    const execute = operation.locator('button.execute')
    const status = operation.locator('.live-responses-table .response-col_status').last()
    await execute.click()
    await status.filter({ hasText: '401' }).waitFor()
    t.match(await status.innerText(), /^401/)
    t.match(complaints.splice(0), [/401/], 'the browser says that, and nothing else')

    await page.locator('button.authorize').first().click()
    await page.locator('.auth-container input').fill(acme.access_token)
    await page.locator('.auth-btn-wrapper button.authorize').click()
    await page.locator('.auth-btn-wrapper button.btn-done').click()
    await execute.click()
    await status.filter({ hasText: '200' }).waitFor()
    t.match(await status.innerText(), /^200/)
    const body = await operation.locator('.live-responses-table .response-col_description').last().innerText()
    t.match(body, acme.user.id)
    if (process.env.SCREENSHOT) await page.screenshot({ path: process.env.SCREENSHOT })
    t.strictSame(complaints, [])
  })

  t.test('every operation on the page about the API works as it stands there', async (t) => {
    const database = await createTestDatabase(t)
    const unlimited = { RATE_LIMIT: '0', RATE_LIMIT_AUTH: '0', RATE_LIMIT_TENANT: '0' }
    const { port } = await startServer(t, testEnvironment(database, { LOG_LEVEL: 'warn', ...unlimited }))
    const origin = `http://localhost:${port}`
    // what lies outside of a small window is not painted
    const page = await browser.newPage({ viewport: { width: 800, height: 300 }, reducedMotion: 'reduce' })
    t.teardown(() => page.close())
    page.setDefaultTimeout(60_000)
    const complaints = complaintsOf(page)
    const operations = await readOperations(origin)
    t.strictSame(new Set(walk.map(([operationId]) => operationId)), new Set(operations.keys()), 'all are tried')
    await page.goto(`${origin}/api/v1/docs`)
    await page.locator('.opblock').first().waitFor()

    await page.addStyleTag({ content: '* { animation: none !important; transition: none !important }' })
    for (const part of await page.locator('.opblock-tag').all()) await part.dispatchEvent('click')
    let isSignedIn = false
    let shown: string | undefined
    for (const [operationId, expected] of walk) {
      if (operationId === 'listPasskeys') await addWaysIn(database)
      const operation = operations.get(operationId) as PageOperation
      await showPart(page, operation.tags[0] as string, shown)
      shown = operation.tags[0]
      const { status, body } = await tryOperation(page, isSignedIn, operation)
      t.equal(status, expected, `${operationId}: ${status} ${body.slice(0, 300)}`)
      if (/^list/.test(operationId) && !emptyLists.includes(operationId))
        t.ok(JSON.parse(body).data.length > 0, `${operationId} shows what there is`)
      if (operationId === 'register') {
        await addColleague(database, JSON.parse(body).tenant.id)
        await authorize(page, JSON.parse(body).access_token)
        isSignedIn = true
      }
    }
    t.strictSame(
      complaints.filter((each) => !/Failed to load resource: the server responded with a status of 4\d\d/.test(each)),
      []
    )
  })

  t.test('a page of an agency', async (t) => {
    const accessTokenTtl = 4
    const port = await servePage(t)
    const pageOrigin = `http://acme.localhost:${port}`
    // by the rules of production: an origin that is not listed may not call, wherever it is
    const { database, origin } = await startAgency(t, {
      NODE_ENV: 'production',
      JWT_SECRET: 'a key of the browser tests that is long enough',
      PASSWORD_PEPPER: 'a pepper of the browser tests that is long enough',
      CORS_ORIGINS: pageOrigin,
      ACCESS_TOKEN_TTL: String(accessTokenTtl)
    })

    /** A new browser profile. All refreshes of its tabs are counted. */
    async function newProfile(t: Test, script?: string) {
      const context = await browser.newContext()
      t.teardown(() => context.close())
      if (script !== undefined) await context.addInitScript(script)
      const refreshes: string[] = []
      context.on('request', (request) => {
        if (request.method() === 'POST' && request.url().endsWith('/auth/refresh')) refreshes.push(request.url())
      })
      return { context, refreshes }
    }
    async function openTab(context: BrowserContext, at = pageOrigin): Promise<Page> {
      const page = await context.newPage()
      await page.goto(`${at}/?api=${origin}`)
      await page.locator('body[data-ready]').waitFor()
      return page
    }
    async function signIn(page: Page, secret = password): Promise<void> {
      await page.locator('[name=email]').fill('ada@acme.example')
      await page.locator('[name=password]').fill(secret)
      await page.getByRole('button', { name: 'Sign in' }).click()
    }
    const says = (page: Page, id: string, text: string | RegExp) =>
      page.locator(`#${id}`).filter({ hasText: text }).waitFor({ timeout: 15_000 })
    const ask = (page: Page) => page.locator('#who').click()
    const expire = () => sleep((accessTokenTtl + 1) * 1000)
    /** All tabs send a request at once, with an expired token. Returns how many refreshes that may take. */
    async function askAll(tabs: Page[]): Promise<number> {
      await expire()
      const startedAt = Date.now()
      for (const tab of tabs) await tab.evaluate(`document.getElementById('said').textContent = ''`)
      // one click after the other would be too late: the first tab has its answer within milliseconds
      const script = `setTimeout(() => document.getElementById('who').click(), ${startedAt + 1000} - Date.now())`
      await Promise.all(tabs.map((tab) => tab.evaluate(`void ${script}`)))
      await Promise.all(tabs.map((tab) => says(tab, 'said', 'Ada Lovelace, owner')))
      // on a machine that is busy for as long as a token lives, the next one is due
      return 1 + Math.floor((Date.now() - startedAt) / (accessTokenTtl * 1000 - 1000))
    }
    const sessions = () =>
      allRows(database, 'select counter, revoked_at from sessions order by created_at desc, id desc')

    t.test('reads why it was refused, and from where it may call', async (t) => {
      const { context } = await newProfile(t)
      const page = await openTab(context)
      await ask(page)
      await says(page, 'refused', /^401 unauthenticated [\w.-]+$/)
      await signIn(page, 'not the password')
      await says(page, 'refused', /^401 invalid_credentials [\w.-]+$/)
      const read = (path: string) =>
        page.evaluate(
          `fetch('${origin}${path}', { headers: { authorization: 'Bearer x' } }).then((reply) => [
            reply.status, reply.headers.get('www-authenticate'), reply.headers.get('x-request-id')
          ])`
        )
      t.match(await read('/api/v1/users/me'), [401, /error="invalid_token"/, /^[\w.-]+$/])
      t.match(await read('/nothing'), [404, null, /^[\w.-]+$/])

      // the control: Chromium lets a page of another origin read nothing
      const stranger = await openTab(context, `http://rival.localhost:${port}`)
      await ask(stranger)
      await says(stranger, 'refused', /^no reply: TypeError/)
      await signIn(stranger)
      await says(stranger, 'refused', /^no reply: TypeError/)
      t.equal(await stranger.locator('#said').innerText(), '')
    })

    t.test('signs in, calls, and signs out', async (t) => {
      const { context, refreshes } = await newProfile(t)
      const page = await openTab(context)
      const complaints = complaintsOf(page)
      await signIn(page)
      await says(page, 'said', 'signed in')
      await ask(page)
      await says(page, 'said', 'Ada Lovelace, owner')
      t.equal(refreshes.length, 0)
      await page.reload()
      await page.locator('body[data-ready]').waitFor()
      await ask(page)
      await says(page, 'said', 'Ada Lovelace, owner')
      await page.locator('#sign-out').click()
      await says(page, 'said', 'signed out')
      t.strictSame(complaints, [])
      await ask(page)
      await says(page, 'refused', /^401 unauthenticated/)
      t.equal(await page.evaluate(`localStorage.length`), 0)
      t.not((await sessions())[0].revoked_at, null, 'the session is over, not only forgotten')
    })

    t.test('open in three tabs gets one new token for all of them', async (t) => {
      const { context, refreshes } = await newProfile(t)
      const tabs = await Promise.all([1, 2, 3].map(() => openTab(context)))
      await signIn(tabs[0] as Page)
      await says(tabs[0] as Page, 'said', 'signed in')
      const due = await askAll(tabs)
      // Chromium may show a tab what another has stored a moment late, after the lock; then it asks again and shares the answer
      const [{ counter, revoked_at }] = await sessions()
      t.ok(counter >= 1 && counter <= due, `${refreshes.length} refreshes, ${counter} new tokens for three tabs`)
      t.ok(refreshes.length <= 3 * due)
      t.equal(revoked_at, null)
      for (const tab of tabs) t.equal(await tab.locator('#because').innerText(), '', 'nobody was signed out')

      await (tabs[1] as Page).locator('#sign-out').click()
      await says(tabs[1] as Page, 'said', 'signed out')
      await ask(tabs[2] as Page)
      await says(tabs[2] as Page, 'refused', /^401/)
      t.not((await sessions())[0].revoked_at, null, 'one tab signs out all of them')
    })

    t.test('open in three tabs of a browser without locks shares the successor', async (t) => {
      const { context, refreshes } = await newProfile(t, 'delete Navigator.prototype.locks')
      const tabs = await Promise.all([1, 2, 3].map(() => openTab(context)))
      t.equal(await (tabs[0] as Page).evaluate('navigator.locks === undefined'), true)
      await signIn(tabs[0] as Page)
      await says(tabs[0] as Page, 'said', 'signed in')
      for (const round of [1, 2]) {
        const [before] = await sessions()
        const due = await askAll(tabs)
        const [session] = await sessions()
        const rotations = session.counter - before.counter
        t.ok(
          rotations >= 1 && rotations <= due,
          `round ${round}: ${refreshes.splice(0).length} asked, ${rotations} given`
        )
        t.equal(session.revoked_at, null)
      }
      for (const tab of tabs) t.equal(await tab.locator('#because').innerText(), '', 'nobody was signed out')
    })
  })
})
