import { existsSync } from 'node:fs'
import { join } from 'node:path'
import t from 'tap'
import {
  allRows,
  clientFolder,
  createTestDatabase,
  eventually,
  password,
  startServer,
  testEnvironment,
  waitUntilReady
} from './harness.ts'
import { unknownId } from './requests.ts'
import { decode } from './tokens.ts'

/*
 * The TypeScript client reads the stream of events: through the end of tokens and of servers, until the session ends.
 */

const built = join(clientFolder, 'dist', 'index.js')
const skip =
  !existsSync(built) && process.env.CI !== 'true' && 'npm --prefix client ci && npm --prefix client run build'

type Message = { id: string; type: string; event?: { id: string; type: string } }

t.test('the TypeScript client reads events', { skip }, async (t) => {
  const database = await createTestDatabase(t)
  const env = testEnvironment(database, { ACCESS_TOKEN_TTL: '3' })
  let server = await startServer(t, env)
  const { port } = server
  const { createAggiosClient, memoryStore } = await import(built)
  const store = memoryStore()
  let streams = 0
  const client = createAggiosClient({
    baseUrl: server.url,
    store,
    fetch(request: Request) {
      if (request.url.endsWith('/events')) streams++
      return fetch(request)
    }
  })
  await client.register({ tenant: { name: 'Acme', slug: 'acme' }, name: 'Ada', email: 'ada@acme.example', password })
  const rename = (name: string) => client.PATCH('/api/v1/users/me', { body: { name } })

  const stop = new AbortController()
  const messages: Message[] = []
  const reading = (async () => {
    for await (const message of client.events({ signal: stop.signal })) messages.push(message)
  })()
  const updates = () => messages.filter(({ event }) => event?.type === 'user.updated')
  await eventually(() => streams === 1)
  await rename('Ada 0')
  await eventually(() => updates().length === 1)

  t.comment('over the end of access tokens, and of a server')
  const { claims } = decode((await store.read()).access_token)
  for (let n = 1; n < 20; n++) {
    if (n === 10) {
      server.child.kill('SIGTERM')
      await server.exited
      server = await startServer(t, { ...env, PORT: String(port) }, { ready: false })
      await waitUntilReady(server)
    }
    await rename(`Ada ${n}`)
    await new Promise((done) => setTimeout(done, 300))
  }
  await eventually(() => updates().length === 20)
  t.not(decode((await store.read()).access_token).claims.exp, claims.exp, 'the token was renewed')
  t.ok(streams > 2, `${streams} streams`)
  const ids = updates().map(({ id }) => id)
  const rows = await allRows(
    database,
    "select id from events join audit_events using (tenant_id, created_at, id) where action = 'user.updated' order by position"
  )
  t.strictSame(
    ids,
    rows.map(({ id }) => id)
  )
  stop.abort()
  await reading

  t.test('goes on where another one was, and hears of a place that is gone', async (t) => {
    const first = async (after: string): Promise<Message> => {
      for await (const message of client.events({ after })) return message
      throw new Error('the stream has ended')
    }
    t.match(await first(ids[3] as string), { type: 'event', event: { id: ids[4] } })
    t.match(await first(unknownId), { type: 'reset' })
  })

  t.test('throws when the session has ended', async (t) => {
    const tokens = await store.read()
    const rest = (async () => {
      for await (const _ of client.events());
    })()
    await fetch(`${server.url}/api/v1/auth/logout`, {
      method: 'POST',
      headers: { 'content-type': 'application/json' },
      body: JSON.stringify({ refresh_token: tokens.refresh_token })
    })
    await t.rejects(rest, { code: 'session_revoked' })
  })
})
