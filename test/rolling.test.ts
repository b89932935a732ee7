import { createHash, randomBytes } from 'node:crypto'
import { once } from 'node:events'
import { readdirSync } from 'node:fs'
import http from 'node:http'
import { text } from 'node:stream/consumers'
import { setTimeout as sleep } from 'node:timers/promises'
import t from 'tap'
import { opaqueBytes, sha256 } from './bytes.ts'
import { withClient } from './databases.ts'
import {
  allRows,
  createTestDatabase,
  eventually,
  password,
  type Server,
  startServer,
  testEnvironment
} from './harness.ts'
import { findProgram } from './parts.ts'
import { freePort } from './ports.ts'
import { ask, startTraefik } from './traefik.ts'

// bounded in time: how long a deploy takes
// rehearsal: twenty deploys under load

/*
 * Twenty rolling deploys: each process in turn is told to stop and is started again, while clients send requests without a pause.
 */

const restarts = 20
const traefikProgram = findProgram('traefik')

/**
 * A kind of request. `ask` rejects if the answer is wrong; its duration doesn't matter. It returns nothing if all its clients are
 * busy.
 */
type Kind = { name: string; everyMs: number; ask: () => Promise<unknown> | undefined }

/** Sends each kind at its own interval, whether or not earlier requests were answered. */
function startLoad(kinds: Kind[]) {
  const underWay = new Map<Promise<unknown>, string>()
  const failures: string[] = []
  const answered: Record<string, number> = {}

  function send({ name, ask }: Kind): void {
    const startedAt = Date.now()
    const asked = ask()
    if (!asked) return
    const sent = asked
      .then(
        () => {
          answered[name] = (answered[name] ?? 0) + 1
        },
        (err) => void failures.push(`${name} after ${Date.now() - startedAt} ms: ${err.code ?? err.message}`)
      )
      .finally(() => underWay.delete(sent))
    underWay.set(sent, name)
  }

  const timers = kinds.map((kind) => setInterval(send, kind.everyMs, kind))
  return {
    send,
    answered,
    failures,
    isUnderWay: (name: string) => [...underWay.values()].includes(name),
    async stop() {
      for (const timer of timers) clearInterval(timer)
      await Promise.all(underWay.keys())
    }
  }
}

type Question = {
  method?: string
  path: string
  host: string
  token: string
  type?: string
  body?: Buffer
  /** How long the body takes, and in how many pieces it is sent. */
  sending?: { ms: number; pieces: number }
}

const timeoutMs = 120_000

/** Sends a request, and rejects if it is refused. */
async function request(
  client: { agent: http.Agent; port: number },
  { method = 'GET', path, host, token, type = 'application/json', body, sending = { ms: 0, pieces: 1 } }: Question
): Promise<http.IncomingMessage> {
  const sent = http.request({
    ...client,
    host: '127.0.0.1',
    method,
    path: `/api/v1${path}`,
    timeout: timeoutMs,
    headers: {
      host,
      authorization: `Bearer ${token}`,
      ...(body && { 'content-type': type, 'content-length': body.length })
    }
  })
  sent.on('timeout', () => sent.destroy(new Error('no answer')))
  // an early refusal may close the connection under the rest of the body
  sent.on('error', () => {})
  const response = once(sent, 'response') as Promise<[http.IncomingMessage]>
  // an early refusal arrives while the rest of the body waits
  response.catch(() => {})
  const pieceBytes = Math.ceil((body?.length ?? 0) / sending.pieces)
  for (let piece = 0; piece < sending.pieces && body; piece++) {
    if (piece > 0) await sleep(sending.ms / (sending.pieces - 1))
    sent.write(body.subarray(piece * pieceBytes, (piece + 1) * pieceBytes))
  }
  sent.end()
  const [reply] = await response
  if (reply.statusCode !== 200 && reply.statusCode !== 201) throw new Error(`${reply.statusCode} ${await text(reply)}`)
  return reply
}

/** The sum of a reply's bytes, which take so long to be read. */
async function sumOf(reply: http.IncomingMessage, ms = 0): Promise<string> {
  const size = Number(reply.headers['content-length'])
  const startedAt = Date.now()
  const hash = createHash('sha256')
  let received = 0
  for await (const chunk of reply) {
    hash.update(chunk)
    received += chunk.length
    const early = startedAt + (ms * received) / size - Date.now()
    if (early > 0) await sleep(early)
  }
  return hash.digest('hex')
}

function formOf(content: Buffer): Pick<Question, 'method' | 'path' | 'type' | 'body'> {
  const boundary = randomBytes(16).toString('hex')
  const head = `--${boundary}\r\ncontent-disposition: form-data; name="file"; filename="plan.bin"\r\n\r\n`
  const body = Buffer.concat([Buffer.from(head), content, Buffer.from(`\r\n--${boundary}--\r\n`)])
  return { method: 'POST', path: '/files', type: `multipart/form-data; boundary=${boundary}`, body }
}

t.test(`no request is lost in ${restarts} restarts under load`, { skip: traefikProgram.skip }, async (t) => {
  const whole = t
  const database = await createTestDatabase(t)
  const env = testEnvironment(database, { TRUST_PROXY: '127.0.0.1', LOG_LEVEL: 'error' })
  const started: Server[] = []
  async function start(port: number): Promise<Server> {
    const server = await startServer(whole, { ...env, PORT: String(port) })
    started.push(server)
    return server
  }
  const ports = await Promise.all([1, 2, 3].map(freePort))
  const servers: Promise<Server>[] = ports.map(start)
  await Promise.all(servers)
  const traefik = await startTraefik(t, { BACKEND_URLS: ports.map((port) => `http://127.0.0.1:${port}`).join(',') })
  const client = { agent: new http.Agent({ keepAlive: true }), port: traefik.port('local') }
  t.teardown(() => client.agent.destroy())

  async function register(slug: string) {
    const body = { tenant: { name: slug, slug }, name: slug, email: `owner@${slug}.example`, password }
    const reply = await ask(client.port, '/api/v1/auth/register', { host: 'localhost', method: 'POST', body })
    const { access_token, user } = reply.json() as { access_token: string; user: { id: string } }
    return { token: access_token, host: `${slug}.localhost`, userId: user.id }
  }
  async function registerSeveral(slug: string, count: number) {
    const people: Awaited<ReturnType<typeof register>>[] = []
    while (people.length < count) people.push(await register(`${slug}${people.length}`))
    return people
  }
  const acme = await register('acme')
  const busy = await register('busy')
  const archive = await register('archive')

  async function read(path: string, expected: object): Promise<void> {
    const reply = await request(client, { ...acme, path })
    const answer = await json(reply)
    if (!matches(answer, expected)) throw new Error(`not what was asked for: ${JSON.stringify(answer)}`)
  }
  let names = 0
  async function rename(who: typeof acme, ms = 0): Promise<void> {
    const change = { name: `Name ${++names}` }
    const body = Buffer.from(JSON.stringify(change))
    const question = { ...who, method: 'PATCH', path: '/users/me', body, sending: { ms, pieces: ms > 0 ? 2 : 1 } }
    const answer = await json(await request(client, question))
    if (!matches(answer, change)) throw new Error(`not what was asked for: ${JSON.stringify(answer)}`)
  }
  /** Each client writes one thing at a time. Writes of the same row wait for each other, and could time out on a slow machine. */
  const takeTurns = (free: (typeof acme)[]) => (ms?: number) => {
    const who = free.shift()
    return who && rename(who, ms).finally(() => free.push(who))
  }
  const write = takeTurns(await registerSeveral('writer', 16))
  const writeSlowly = takeTurns(await registerSeveral('slow', ports.length))
  const writeBusy = takeTurns([busy])
  const uploaded: { id: string; sum: string }[] = []
  async function download(file: { id: string; sum: string }, ms = 0): Promise<void> {
    const reply = await request(client, { ...archive, path: `/files/${file.id}/content` })
    if ((await sumOf(reply, ms)) !== file.sum) throw new Error(`file ${file.id} is not what was uploaded`)
  }
  /** A write at one process can be read from the others at once. */
  async function upload(bytes: number, ms: number): Promise<{ id: string; sum: string }> {
    const content = opaqueBytes(bytes)
    const reply = await request(client, { ...archive, ...formOf(content), sending: { ms, pieces: 20 } })
    const { id, size } = (await json(reply)) as { id: string; size: number }
    const file = { id, sum: sha256(content) }
    uploaded.push(file)
    if (size !== bytes) throw new Error(`file ${id} has ${size} bytes`)
    await download(file)
    return file
  }
  const large = await upload(12 * 2 ** 20, 0)

  const load = startLoad([
    { name: 'a read', everyMs: 50, ask: () => read('/users/me', { email: 'owner@acme.example' }) },
    { name: 'another read', everyMs: 60, ask: () => read('/tenant', { slug: 'acme' }) },
    { name: 'a write', everyMs: 120, ask: () => write() },
    { name: 'a write that waits for another', everyMs: 700, ask: () => writeBusy() },
    { name: 'a body that takes its time', everyMs: 400, ask: () => write(200 + Math.random() * 2000) },
    { name: 'an upload', everyMs: 1000, ask: () => upload(3 * 2 ** 20, 2000) },
    { name: 'a download', everyMs: 1500, ask: () => download(large, 2000) }
  ])
  const long = { name: 'a body that takes longer than the notice', everyMs: 0, ask: () => writeSlowly(5000) }
  const transfers = () => ['an upload', 'a download'].filter(load.isUnderWay)
  await eventually(() => transfers().length === 2)

  // another transaction locks this row half of the time; the database ends it, however busy this process is
  let holding = true
  const holder = withClient(database.postgres, async (client) => {
    while (holding) {
      await client.query('select pg_sleep(0.5) from (select from users where id = $1 for update) held', [busy.userId])
      await sleep(500)
    }
  })

  const isUp = async (port: number) => {
    const service = await ask(client.port, '/api/http/services/backend@file', { host: 'traefik.localhost' })
    return (service.json().serverStatus as Record<string, string>)[`http://127.0.0.1:${port}`] === 'UP'
  }
  const ended: unknown[] = []
  const cut: string[][] = []
  for (let turn = 0; turn < restarts; turn++) {
    const victim = turn % ports.length
    // the process before may still be starting; the process after must be ready
    const next = (victim + 1) % ports.length
    await servers[next]
    await eventually(() => isUp(ports[next] as number), 60_000)
    if (turn % 5 === 0) for (const _ of ports) load.send(long)
    const server = (await servers[victim]) as Server
    cut.push(transfers())
    server.child.kill('SIGTERM')
    ended.push(await server.exited)
    servers[victim] = start(ports[victim] as number)
    servers[victim].catch(() => {})
  }
  await Promise.all(servers)
  holding = false
  await holder
  await load.stop()

  for (const [name, count] of Object.entries(load.answered)) t.comment(`${name}: ${count}`)
  t.strictSame(load.failures, [])
  if (load.failures.length > 0) for (const server of started) t.comment(server.output())
  t.strictSame(ended, Array(restarts).fill({ code: 0, signal: null }), 'each ended in good order')
  t.strictSame(cut, Array(restarts).fill(['an upload', 'a download']), 'with files under way in both directions')
  t.equal(load.answered[long.name], (restarts / 5) * ports.length)
  t.ok(Object.values(load.answered).reduce((sum, count) => sum + count, 0) > 1000)
  const [events] = await allRows(
    database,
    "select count(*)::int as count from audit_events where action = 'user.updated'"
  )
  t.strictSame(events, { count: names }, 'and each write was done once')

  t.test('every file that was acknowledged is there and whole, and nothing else', async (t) => {
    for (const file of uploaded) await download(file)
    const rows = await allRows(database, 'select id, status from files order by id')
    const ids = uploaded.map(({ id }) => id).sort()
    t.strictSame(
      rows,
      ids.map((id) => ({ id, status: 'ready' }))
    )
    const names = readdirSync(env.DATA_DIR as string, { recursive: true, withFileTypes: true })
      .filter((entry) => entry.isFile())
      .map(({ name }) => name)
    t.strictSame(names.sort(), ids, 'in the store too')
  })
})

const json = async (reply: http.IncomingMessage) => JSON.parse(await text(reply)) as Record<string, unknown>
const matches = (answer: Record<string, unknown>, expected: object) =>
  Object.entries(expected).every(([key, value]) => answer[key] === value)
