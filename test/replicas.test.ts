import { once } from 'node:events'
import http from 'node:http'
import { connect, type Socket } from 'node:net'
import { setTimeout as sleep } from 'node:timers/promises'
import t from 'tap'
import type { Environment } from '../src/config/environment.ts'
import { startFaultProxy } from './fault-proxy.ts'
import { terminate } from './gate-trials.ts'
import {
  allRows,
  createTenant,
  createTestDatabase,
  eventually,
  password,
  post,
  send,
  startApp,
  startServer,
  type Tokens,
  testEnvironment
} from './harness.ts'
import { ask, prepareAgency, registerAgency } from './oracle.ts'
import { findFakeClock, findProgram } from './parts.ts'
import { createRandom } from './random.ts'
import { decode, makeToken } from './tokens.ts'

// bounded in time: when a replica is left
// rehearsal: replicas with different clocks and keys

/*
 * Replicas with different clocks or keys, replies that are lost, and processes with few files or little memory.
 */

const fakeClock = findFakeClock()
const prlimit = findProgram('prlimit')
/** That of the harness has a comma in it and is therefore two. */
const oneKey = 'the one key of replicas whose clocks differ'

t.test('replicas whose clocks differ', { skip: fakeClock.skip }, async (t) => {
  const database = await createTestDatabase(t)
  const withClock = (seconds: number): Environment =>
    seconds === 0
      ? {}
      : {
          LD_PRELOAD: fakeClock.path,
          FAKETIME: `${seconds > 0 ? '+' : ''}${seconds}s`,
          FAKETIME_DONT_FAKE_MONOTONIC: '1'
        }
  const start = (seconds: number) =>
    startServer(t, testEnvironment(database, { ...withClock(seconds), DATABASE_POOL: '2', JWT_SECRET: oneKey }))
  const [right, fast, slow, wrong] = await Promise.all([start(0), start(50), start(-50), start(90)])
  await registerAgency(right.url, 'acme')
  const signIn = async (url: string) => {
    const { body } = await ask(url, 'POST', '/auth/login', { body: { email: 'owner@acme.example', password } })
    return body as unknown as Tokens
  }
  const me = (url: string, token: string) => ask(url, 'GET', '/users/me', { token })

  t.test('do differ', async (t) => {
    const issuedAt = async (url: string) => Number(decode((await signIn(url)).access_token).claims.iat)
    const now = Date.now() / 1000
    for (const [{ url }, seconds] of [
      [right, 0],
      [fast, 50],
      [slow, -50],
      [wrong, 90]
    ] as const) {
      t.ok(Math.abs((await issuedAt(url)) - now - seconds) < 15, `${seconds} s`)
    }
  })

  t.test('by less than a minute take each other\u2019s tokens', async (t) => {
    for (const [from, to] of [
      [right, fast],
      [right, slow],
      [fast, right],
      [slow, right],
      [wrong, fast],
      [fast, wrong]
    ] as const) {
      const tokens = await signIn(from.url)
      t.equal((await me(to.url, tokens.access_token)).status, 200)
      const refreshed = await ask(to.url, 'POST', '/auth/refresh', { body: { refresh_token: tokens.refresh_token } })
      t.equal(refreshed.status, 200)
      t.equal((await me(from.url, String(refreshed.body.access_token))).status, 200)
    }
  })

  t.test('by more refuse what was issued in their future, which could live longer than it may', async (t) => {
    for (const [from, to] of [
      [wrong, right],
      [wrong, slow],
      [fast, slow]
    ] as const) {
      const tokens = await signIn(from.url)
      t.match(await me(to.url, tokens.access_token), { status: 401, body: { code: 'invalid_token' } })
      // sessions are in the database, which has one clock
      const refreshed = await ask(to.url, 'POST', '/auth/refresh', { body: { refresh_token: tokens.refresh_token } })
      t.equal(refreshed.status, 200, 'and refreshing helps')
      t.equal((await me(to.url, String(refreshed.body.access_token))).status, 200)
    }
  })

  t.test('end sessions at each other all the same', async (t) => {
    for (const [here, there] of [
      [fast, slow],
      [slow, fast],
      [wrong, right]
    ] as const) {
      const tokens = await signIn(slow.url)
      t.equal((await me(there.url, tokens.access_token)).status, 200)
      t.equal((await ask(here.url, 'POST', '/auth/logout', { token: tokens.access_token })).status, 204)
      await eventually(async () => (await me(there.url, tokens.access_token)).status === 401)
    }
  })

  t.test('take no token longer than it lives and the difference', async (t) => {
    const { header, claims } = decode((await signIn(right.url)).access_token)
    const now = Math.floor(Date.now() / 1000)
    const exp = now - 44
    const dead = makeToken(header, { ...claims, iat: now - 100, exp }, oneKey)
    const isOver = async (url: string) => (await me(url, dead)).body.code === 'token_expired'
    t.equal((await me(slow.url, dead)).status, 200, 'it is 50 s earlier there')
    for (const { url } of [right, fast, wrong]) t.ok(await isOver(url))
    await eventually(() => isOver(slow.url), 30_000)
    const seconds = Date.now() / 1000 - exp
    t.ok(seconds >= 49 && seconds < 60, `${seconds} s`)
  })

  t.test('count the time in which a lost reply may be asked for again by the database\u2019s clock', async (t) => {
    const tokens = await signIn(slow.url)
    const body = { refresh_token: tokens.refresh_token }
    const first = await ask(slow.url, 'POST', '/auth/refresh', { body })
    const second = await ask(wrong.url, 'POST', '/auth/refresh', { body })
    t.equal(second.status, 200, 'though 140 s have passed between the two, by their own clocks')
    t.equal(second.body.refresh_token, first.body.refresh_token)
  })
})

t.test('keys are rotated, whichever replica is first, and nobody notices', async (t) => {
  const database = await createTestDatabase(t)
  const [older, newer] = [
    'the older key of the rotation that is tested',
    'the newer key of the rotation that is tested'
  ]
  const random = createRandom(24)
  const start = (keys: string[]) => startApp(t, { JWT_SECRET: keys.join(','), DATABASE_POOL: '3' }, database)
  const replicas = await Promise.all([1, 2, 3].map(() => start([older])))
  const anyOf = <T>(all: T[]) => all[Math.floor(random() * all.length)] as T
  const acme = await createTenant(anyOf(replicas), 'acme')
  const refused: string[] = []
  let answered = 0
  let running = true
  let phase = ''

  /** A person who refreshes from time to time, at any replica. */
  async function person(): Promise<void> {
    let { access_token, refresh_token } = await acme.signIn()
    while (running) {
      const refreshing = random() < 0.2
      const request = refreshing
        ? post('/auth/refresh', { refresh_token })
        : { url: '/api/v1/users/me', headers: { authorization: `Bearer ${access_token}` } }
      const reply = await send(anyOf(replicas), acme.host, request)
      if (reply.statusCode === 200) answered++
      else refused.push(`${phase}: ${reply.statusCode} ${reply.body}`)
      if (refreshing && reply.statusCode === 200) ({ access_token, refresh_token } = reply.json())
      await sleep(5)
    }
  }
  const people = Array.from({ length: 4 }, person)

  for (const keys of [[older, newer], [newer, older], [newer]]) {
    const order = [0, 1, 2].sort(() => random() - 0.5)
    for (const index of order) {
      phase = `${keys.length} keys, order ${order}, replica ${index}`
      const next = await start(keys)
      // the replica before finishes its requests, and its teardown closes it
      replicas[index] = next
      const before = answered
      await eventually(() => answered > before + 40, 30_000)
    }
    if (keys[0] === newer && keys.length === 2) {
      // REFRESH_TOKEN_TTL later: everybody has refreshed
      const before = answered
      await eventually(() => answered > before + 300, 60_000)
    }
  }
  running = false
  await Promise.all(people)
  t.strictSame(refused, [])
  const oldToken = await send(anyOf(replicas), acme.host, {
    url: '/api/v1/users/me',
    headers: { authorization: `Bearer ${acme.owner.tokens.access_token}` }
  })
  t.match(oldToken.json(), { status: 401, code: 'invalid_token' }, 'what the dropped key signed is no good any more')
})

t.test('a reply to a refresh that is cut off on its way', async (t) => {
  const database = await createTestDatabase(t)
  const graceSeconds = 4
  const env = testEnvironment(database, { REFRESH_GRACE: String(graceSeconds) })
  const server = await startServer(t, env)
  const proxy = await startFaultProxy(t, server.port)
  const { sessions, id } = await prepareAgency(server.url, 'acme', 10)
  const through = `http://127.0.0.1:${proxy.port}`
  const refresh = (url: string, refresh_token: string) => ask(url, 'POST', '/auth/refresh', { body: { refresh_token } })

  /** The number of bytes of a whole reply, head and body. */
  async function replyLength(): Promise<number> {
    const body = JSON.stringify({ refresh_token: sessions[0]?.refresh })
    const socket = connect(server.port, '127.0.0.1')
    socket.write(
      `POST /api/v1/auth/refresh HTTP/1.1\r\nHost: 127.0.0.1:${proxy.port}\r\nConnection: keep-alive\r\n` +
        `Content-Type: application/json\r\nContent-Length: ${body.length}\r\n\r\n${body}`
    )
    let text = ''
    for await (const chunk of socket.setEncoding('latin1')) {
      text += chunk
      if (text.endsWith('}')) break
    }
    socket.destroy()
    return text.length
  }
  const length = await replyLength()
  const cases = [0, 1, length - 1].flatMap((bytes) => [0, 1].map((seconds) => ({ bytes, seconds })))

  /** Sends a refresh whose reply is cut off after so many bytes. */
  async function lose(token: string, bytes: number): Promise<number> {
    await proxy.add({ type: 'reset_after', bytes, direction: 'downstream' })
    const before = proxy.hits()
    await t.rejects(refresh(through, token), `nothing whole arrives of ${bytes} bytes`)
    t.equal(proxy.hits(), before + 1)
    await proxy.clear()
    return Date.now()
  }
  const state = async (session: string) =>
    (
      await allRows(database, 'select counter, revoked_at is not null as ended from sessions where id = $1', [session])
    )[0]

  for (const [index, { bytes, seconds }] of cases.entries()) {
    const session = sessions[index + 1]
    if (!session) throw new Error('there are too few sessions')
    await lose(session.refresh, bytes)
    t.strictSame(await state(session.id), { counter: 1, ended: false }, 'it was done')
    await sleep(seconds * 1000)
    const again = await refresh(through, session.refresh)
    t.equal(again.status, 200, `${bytes} of ${length} bytes, asked again after ${seconds} s`)
    t.strictSame(await state(session.id), { counter: 1, ended: false }, 'and not done twice')
    t.equal((await refresh(through, String(again.body.refresh_token))).status, 200, 'the successor is good')
  }

  const late = sessions[9]
  if (!late) throw new Error('there are too few sessions')
  await lose(late.refresh, 0)
  await sleep((graceSeconds + 1) * 1000)
  t.match(await refresh(through, late.refresh), { status: 401, body: { code: 'refresh_token_reused' } })
  t.strictSame(await state(late.id), { counter: 1, ended: true }, 'after the grace it ends the session')
  const events = await allRows(
    database,
    "select action from audit_events where tenant_id = $1 and session_id = $2 and action like '%reused'",
    [id, late.id]
  )
  t.equal(events.length, 1, 'which is recorded')
})

/** Sends a request on a kept connection. */
async function over(agent: http.Agent, port: number, method: string, path: string, token: string, body?: object) {
  const payload = body === undefined ? '' : JSON.stringify(body)
  const request = http.request({
    ...{ agent, host: '127.0.0.1', port, method, path: `/api/v1${path}` },
    headers: {
      authorization: `Bearer ${token}`,
      ...(body && { 'content-type': 'application/json', 'content-length': Buffer.byteLength(payload) })
    }
  })
  request.end(payload)
  const [reply] = (await once(request, 'response')) as [http.IncomingMessage]
  let text = ''
  for await (const chunk of reply.setEncoding('utf8')) text += chunk
  return { status: reply.statusCode ?? 0, headers: reply.headers, text }
}

t.test('a process that may open few files', { skip: prlimit.skip }, async (t) => {
  const database = await createTestDatabase(t)
  const env = testEnvironment(database, { DATABASE_POOL: '10', LOG_LEVEL: 'warn' })
  const server = await startServer(t, env, { prefix: [prlimit.path, '--nofile=64'] })
  const { sessions } = await prepareAgency(server.url, 'acme', 1)
  const token = sessions[0]?.access ?? ''
  const agent = new http.Agent({ keepAlive: true, maxSockets: 10 })
  t.teardown(() => agent.destroy())
  const all = (method: string, path: string, body?: object) =>
    Promise.all(Array.from({ length: 10 }, () => over(agent, server.port, method, path, token, body)))
  t.strictSame(new Set((await all('GET', '/users/me')).map(({ status }) => status)), new Set([200]))

  // its idle database connections are closed, so a query has to open one
  await terminate(database, 'aggios-pool')
  const crowd: Socket[] = []
  t.teardown(() => {
    for (const socket of crowd) socket.destroy()
  })
  for (let i = 0; i < 200; i++) crowd.push(connect(server.port, '127.0.0.1').on('error', () => {}))
  await sleep(500)
  const reads = await all('GET', '/users/me')
  t.strictSame(new Set(reads.map(({ status }) => status)), new Set([200]), 'who is in is served')
  const writes = await all('PATCH', '/users/me', { name: 'Crowded' })
  for (const { status, headers, text } of writes) {
    t.ok(status === 200 || (status === 503 && headers['retry-after'] !== undefined), `${status} ${text.slice(0, 100)}`)
  }
  t.ok(
    writes.some(({ status }) => status === 503),
    'what needs a file too many is put off'
  )
  t.equal(server.child.exitCode, null, 'it lives')

  for (const socket of crowd) socket.destroy()
  await eventually(
    async () => (await over(agent, server.port, 'PATCH', '/users/me', token, { name: 'Free' })).status === 200
  )
  t.equal((await ask(server.url, 'GET', '/health/ready')).status, 200, 'and takes new connections again')
})

t.test('a process that has little memory', async (t) => {
  const database = await createTestDatabase(t)
  const server = await startServer(t, testEnvironment(database, { NODE_OPTIONS: '--max-old-space-size=96' }))
  const { sessions } = await prepareAgency(server.url, 'acme', 1)
  const token = sessions[0]?.access ?? ''
  const filling = 'x'.repeat(60_000)
  const statuses: Record<string, number> = {}
  const count = (status: number) => {
    statuses[status] = (statuses[status] ?? 0) + 1
  }
  const requests = [
    () => ask(server.url, 'PATCH', '/tenant', { token, body: { settings: { [filling]: filling.slice(0, 100) } } }),
    () =>
      ask(server.url, 'POST', '/auth/login', {
        body: { email: 'owner@acme.example', password: filling.slice(0, 900) }
      }),
    () => ask(server.url, 'GET', '/users/me', { token })
  ]
  const all = Array.from({ length: 300 }, (_, i) => requests[i % requests.length]?.() as ReturnType<typeof ask>)
  for (const { status } of await Promise.all(all)) count(status)
  t.strictSame(
    Object.keys(statuses).filter((status) => !/^(200|400|401|503)$/.test(status)),
    []
  )
  t.equal(statuses[200], 100, JSON.stringify(statuses))
  t.ok((statuses[503] ?? 0) > 0, 'what is too much is refused')
  t.equal(server.child.exitCode, null, 'it lives')
  t.equal((await ask(server.url, 'GET', '/users/me', { token })).status, 200)
})
