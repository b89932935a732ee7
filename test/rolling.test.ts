import { once } from 'node:events'
import http from 'node:http'
import { setTimeout as sleep } from 'node:timers/promises'
import t from 'tap'
import { withClient } from './databases.ts'
import {
  allRows,
  createTestDatabase,
  eventually,
  freePort,
  password,
  type Server,
  startServer,
  testEnvironment
} from './harness.ts'
import { findProgram } from './parts.ts'
import { ask, startTraefik } from './traefik.ts'

/*
 * A deploy of a new version, twenty times: each process in its turn is told to stop and is started again, while clients go on
 * as if nothing were happening.
 */

const restarts = 20
const traefikProgram = findProgram('traefik')

// two cores may have other things to do
t.setTimeout(300_000)

/** One kind of request: `pauseMs` passes between the two halves of its body. */
type Kind = {
  name: string
  everyMs: number
  method: string
  path: string
  host: string
  token: string
  /** Of each request its own, so that every one of them changes something. */
  body?: () => object
  pauseMs?: () => number
  /** What the reply must contain; of a write it is the body. */
  expected?: object
}

/** Sends each kind at its own pace, whether or not the ones before were answered. */
function startLoad(port: number, kinds: Kind[]) {
  const agent = new http.Agent({ keepAlive: true })
  const pending = new Set<Promise<void>>()
  const failures: string[] = []
  const answered: Record<string, number> = {}

  function send(kind: Kind): void {
    const startedAt = Date.now()
    const sent = exchange(agent, port, kind)
      .then(
        (fault) => {
          if (fault) failures.push(`${kind.name} after ${Date.now() - startedAt} ms: ${fault}`)
          else answered[kind.name] = (answered[kind.name] ?? 0) + 1
        },
        (err) => void failures.push(`${kind.name} after ${Date.now() - startedAt} ms: ${err.code ?? err.message}`)
      )
      .finally(() => pending.delete(sent))
    pending.add(sent)
  }

  const timers = kinds.map((kind) => setInterval(send, kind.everyMs, kind))
  return {
    send,
    answered,
    failures,
    async stop() {
      for (const timer of timers) clearInterval(timer)
      await Promise.all(pending)
      agent.destroy()
    }
  }
}

/** Resolves to what is wrong with the answer, or to nothing. */
async function exchange(agent: http.Agent, port: number, kind: Kind): Promise<string | undefined> {
  const { method, path, host, token, pauseMs } = kind
  const body = kind.body?.()
  const payload = body ? JSON.stringify(body) : ''
  const request = http.request({
    agent,
    host: '127.0.0.1',
    port,
    method,
    path,
    timeout: 20_000,
    headers: {
      host,
      authorization: `Bearer ${token}`,
      ...(body && { 'content-type': 'application/json', 'content-length': Buffer.byteLength(payload) })
    }
  })
  request.on('timeout', () => request.destroy(new Error('no answer')))
  const response = once(request, 'response') as Promise<[http.IncomingMessage]>
  // what is refused early is refused while the rest of the body waits
  response.catch(() => {})
  if (pauseMs) {
    request.write(payload.slice(0, 5))
    await sleep(pauseMs())
    request.end(payload.slice(5))
  } else request.end(payload)
  const [reply] = await response
  let text = ''
  for await (const chunk of reply.setEncoding('utf8')) text += chunk
  if (reply.statusCode !== 200) return `${reply.statusCode} ${text.slice(0, 200)}`
  const answer = JSON.parse(text)
  const wrong = Object.entries(kind.expected ?? body ?? {}).filter(([key, value]) => answer[key] !== value)
  return wrong.length > 0 ? `not what was asked for: ${text}` : undefined
}

t.test(`no request is lost in ${restarts} restarts under load`, { skip: traefikProgram.skip }, async (t) => {
  const whole = t
  const database = await createTestDatabase(t)
  const env = testEnvironment(database, { TRUST_PROXY: '127.0.0.1' })
  const start = (port: number) => startServer(whole, { ...env, PORT: String(port) })
  const ports = await Promise.all([1, 2, 3].map(freePort))
  const servers: Promise<Server>[] = ports.map(start)
  await Promise.all(servers)
  const traefik = await startTraefik(t, { BACKEND_URLS: ports.map((port) => `http://127.0.0.1:${port}`).join(',') })
  const entry = traefik.port('local')

  const [acme, busy, bodies] = await Promise.all(
    ['acme', 'busy', 'bodies'].map(async (slug) => {
      const body = { tenant: { name: slug, slug }, name: slug, email: `owner@${slug}.example`, password }
      const reply = await ask(entry, '/api/v1/auth/register', { host: 'localhost', method: 'POST', body })
      const { access_token, user } = reply.json() as { access_token: string; user: { id: string } }
      return { token: access_token, user }
    })
  )
  if (!acme || !busy || !bodies) throw new Error('nobody is registered')

  let names = 0
  const me = { path: '/api/v1/users/me', host: 'acme.localhost', token: acme.token }
  const rename = { ...me, method: 'PATCH', body: () => ({ name: `Name ${++names}` }) }
  // each kind of write has a row of its own, so that none waits for another but where it is meant to
  const upload = {
    ...rename,
    token: bodies.token,
    host: 'bodies.localhost',
    name: 'a body that takes its time',
    pauseMs: () => 200 + Math.random() * 2000
  }
  const long = { ...upload, name: 'a body that takes longer than the notice', everyMs: 0, pauseMs: () => 5000 }
  const load = startLoad(entry, [
    { ...me, name: 'a read', everyMs: 40, method: 'GET', expected: { email: 'owner@acme.example' } },
    { ...me, name: 'another read', everyMs: 50, method: 'GET', path: '/api/v1/tenant', expected: { slug: 'acme' } },
    { ...rename, name: 'a write', everyMs: 100 },
    { ...upload, everyMs: 400 },
    { ...rename, name: 'a write that waits for another', everyMs: 700, token: busy.token, host: 'busy.localhost' }
  ])

  // somebody else has this row in use, most of the time
  let holding = true
  const holder = withClient(database.postgres, async (client) => {
    while (holding) {
      await client.query('begin')
      await client.query('select from users where id = $1 for update', [busy.user.id])
      await sleep(500)
      await client.query('commit')
      await sleep(500)
    }
  })

  const isUp = async (port: number) => {
    const service = await ask(entry, '/api/http/services/backend@file', { host: 'traefik.localhost' })
    return (service.json().serverStatus as Record<string, string>)[`http://127.0.0.1:${port}`] === 'UP'
  }
  const ended: unknown[] = []
  for (let turn = 0; turn < restarts; turn++) {
    const victim = turn % ports.length
    // the one before may still be starting; the one after has to be there
    await eventually(() => isUp(ports[(victim + 1) % ports.length] as number), 60_000)
    if (turn % 5 === 0) for (const _ of ports) load.send(long)
    const server = (await servers[victim]) as Server
    server.child.kill('SIGTERM')
    ended.push(await server.exited)
    servers[victim] = start(ports[victim] as number)
    servers[victim].catch(() => {})
  }
  await Promise.all(servers)
  holding = false
  await holder
  await load.stop()

  t.strictSame(load.failures, [])
  t.strictSame(ended, Array(restarts).fill({ code: 0, signal: null }), 'each ended in good order')
  t.equal(load.answered['a body that takes longer than the notice'], (restarts / 5) * ports.length)
  for (const [name, count] of Object.entries(load.answered)) t.comment(`${name}: ${count}`)
  const [events] = await allRows(
    database,
    "select count(*)::int as count from audit_events where action = 'user.updated'"
  )
  t.strictSame(events, { count: names }, 'and each write was done once')
  t.ok(Object.values(load.answered).reduce((sum, count) => sum + count, 0) > 1000)
})
