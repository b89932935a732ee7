import t from 'tap'
import { allRows, createTenant, eventually, startApp, startServer, testEnvironment } from './harness.ts'
import { freePort } from './ports.ts'
import { clientId, clientSecret, createVerifier, linkAt, page, startScriptedProvider, startUrl } from './providers.ts'

/*
 * One sign-in in several processes: what is good once is good once in all of them, and a process that dies leaves nothing
 * half done.
 */

const session = 'select count(*)::int as n from sessions where user_id = $1 and revoked_at is null'

t.test('a sign-in at a provider over two processes', async (t) => {
  const google = await startScriptedProvider(t)
  const port = await freePort()
  const env = {
    ...{ GOOGLE_CLIENT_ID: clientId, GOOGLE_CLIENT_SECRET: clientSecret, GOOGLE_ISSUER: google.issuer },
    API_URL: 'http://localhost:8080'
  }
  const app = await startApp(t, env)
  const acme = await createTenant(app, 'acme')
  const victim = { sub: 'ada' }
  t.equal((await linkAt(app, { key: 'google', at: google }, acme, victim)).statusCode, 201)
  const settings = testEnvironment(app.database, { ...env, APP_URL: 'http://{slug}.localhost:8080' })
  const servers = await Promise.all(
    [port, await freePort()].map((each) => startServer(t, { ...settings, PORT: String(each) }))
  )
  const at = (server: number) => `http://localhost:${servers[server % 2]?.port}`

  /** Begins at the first process, and resolves to the browser's cookie and where it would come back to. */
  async function begin() {
    const { code_verifier, code_challenge } = createVerifier()
    const started = await fetch(at(0) + startUrl('google', 'acme', code_challenge, page('acme')), {
      redirect: 'manual'
    })
    const cookie = started.headers.getSetCookie()[0]?.split(';', 1)[0] as string
    const back = new URL(google.authorize(started.headers.get('location') as string, victim))
    return { code_verifier, cookie, path: back.pathname + back.search }
  }
  const comeBack = (server: number, { path, cookie }: { path: string; cookie: string }) =>
    fetch(at(server) + path, { redirect: 'manual', headers: { cookie } })
  const codeOf = (reply: Response) => new URL(reply.headers.get('location') as string).searchParams.get('code')
  const exchange = (server: number, code: string | null, code_verifier: string) =>
    fetch(`${at(server)}/api/v1/auth/oauth/token`, {
      method: 'POST',
      headers: { 'content-type': 'application/json' },
      body: JSON.stringify({ code, code_verifier })
    })
  const sessions = async () => (await allRows(app.database, session, [acme.owner.id]))[0]?.n as number

  t.test('of ten callbacks at once one goes on, and the provider is asked once', async (t) => {
    const flow = await begin()
    const asked = google.requests.filter((each) => each === '/token').length
    const replies = await Promise.all(Array.from({ length: 10 }, (_, n) => comeBack(n, flow)))
    t.strictSame(replies.map(({ status }) => status).sort(), [302, ...Array(9).fill(400)])
    t.equal(google.requests.filter((each) => each === '/token').length - asked, 1)
  })

  t.test('of fifty exchanges at once one opens a session', async (t) => {
    const flow = await begin()
    const code = codeOf(await comeBack(1, flow))
    const before = await sessions()
    const replies = await Promise.all(Array.from({ length: 50 }, (_, n) => exchange(n, code, flow.code_verifier)))
    t.strictSame(replies.map(({ status }) => status).sort(), [200, ...Array(49).fill(401)])
    t.equal((await sessions()) - before, 1)
  })

  t.test('a process that dies while the provider is asked leaves no session, and another one signs in', async (t) => {
    const flow = await begin()
    const before = await sessions()
    google.script.answer = (path) => path === '/token'
    const asked = google.requests.length
    const broken = comeBack(1, flow).catch(() => undefined)
    await eventually(() => google.requests.slice(asked).includes('/token'))
    servers[1]?.child.kill('SIGKILL')
    await Promise.all([broken, servers[1]?.exited])
    delete google.script.answer
    t.equal((await comeBack(0, flow)).status, 400, 'the flow was used')
    t.equal(await sessions(), before)
    const next = await begin()
    const code = codeOf(await comeBack(0, next))
    t.equal((await exchange(0, code, next.code_verifier)).status, 200)
  })

  t.test('what was marked as used is swept', async (t) => {
    await allRows(app.database, "update one_time_marks set expires_at = now() - interval '1 second'")
    await app.housekeeping.run()
    t.strictSame(await allRows(app.database, 'select from one_time_marks'), [])
  })
})
