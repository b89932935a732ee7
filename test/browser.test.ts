import { once } from 'node:events'
import { existsSync, readFileSync } from 'node:fs'
import { createServer } from 'node:http'
import { join, normalize, sep } from 'node:path'
import { setTimeout as sleep } from 'node:timers/promises'
import type { BrowserContext, Page } from 'playwright-core'
import t, { type Test } from 'tap'
import { allRows, createTestDatabase, password, root, startServer, testEnvironment } from './harness.ts'
import { findProgram } from './parts.ts'

// bounded in time: how long a page takes

/*
 * What only a browser knows: whether a policy lets a page work, whether a script may read a reply, and what tabs share.
 */

const client = join(root, 'client')
const chromium = findProgram('chromium')

/** Why these tests are left out, if they are. Where CI is "true" nothing may be missing. */
function reasonToSkip(): string | false {
  if (chromium.skip) return chromium.skip
  const missing = [
    [join(root, 'node_modules', 'playwright-core'), 'playwright-core is not installed: npm ci'],
    [
      join(client, 'dist', 'index.js'),
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

const types: Record<string, string> = { html: 'text/html', js: 'text/javascript', mjs: 'text/javascript' }

/** The page in test/pages with the client as it is published: no bundler stands between. */
async function servePage(t: Test): Promise<number> {
  const folders: [prefix: string, folder: string][] = [
    ['/client/', join(client, 'dist')],
    ['/openapi-fetch/', join(client, 'node_modules', 'openapi-fetch', 'dist')],
    ['/', join(root, 'test', 'pages')]
  ]
  const server = createServer((request, reply) => {
    const path = new URL(request.url ?? '/', 'http://localhost').pathname
    const [prefix, folder] = folders.find(([each]) => path.startsWith(each)) as [string, string]
    const file = normalize(join(folder, path.slice(prefix.length) || 'index.html'))
    if (!file.startsWith(folder + sep) || !existsSync(file)) return void reply.writeHead(404).end()
    reply.writeHead(200, { 'content-type': types[file.split('.').at(-1) as string] ?? 'text/plain' })
    reply.end(readFileSync(file))
  })
  server.listen(0, '127.0.0.1')
  await once(server, 'listening')
  t.teardown(() => {
    server.closeAllConnections()
    server.close()
  })
  return (server.address() as { port: number }).port
}

/** What a page complains about, violations of its policy too. */
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

t.setTimeout(120_000)

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

    // before anybody has signed in, to see that it is the token that makes the difference
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
    /** All tabs ask at once, with a token that has expired. Gives how many tokens that may take. */
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

      // the control: who is not listed can not read a thing, and Chromium sees to that
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
