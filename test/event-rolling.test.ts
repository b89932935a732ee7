import { setTimeout as sleep } from 'node:timers/promises'
import t from 'tap'
import { type Message, openEvents } from './event-reader.ts'
import {
  allRows,
  createTestDatabase,
  eventually,
  password,
  type Server,
  startServer,
  testEnvironment
} from './harness.ts'
import { ask, program, startTraefik } from './traefik.ts'

// bounded in time: how long a deploy takes
// rehearsal: rolling deploys under readers of events

/*
 * Two processes behind Traefik are replaced one by one, while people change things and others read the events. No reader misses one.
 */

const restarts = 6
const people = 2
const readersEach = 8

t.test(`no event is missed in ${restarts} restarts`, { skip: program.skip }, async (t) => {
  const whole = t
  const database = await createTestDatabase(t)
  const env = testEnvironment(database, { TRUST_PROXY: '127.0.0.1', LOG_LEVEL: 'error' })
  const start = (port: number) => startServer(whole, { ...env, PORT: String(port) })
  const servers: Server[] = [await startServer(whole, env), await startServer(whole, env)]
  const ports = servers.map(({ port }) => port)
  const traefik = await startTraefik(t, { BACKEND_URLS: ports.map((port) => `http://127.0.0.1:${port}`).join(',') })
  const port = traefik.port('local')

  async function register(slug: string) {
    const body = { tenant: { name: slug, slug }, name: slug, email: `owner@${slug}.example`, password }
    const reply = await ask(port, '/api/v1/auth/register', { host: 'localhost', method: 'POST', body })
    const { access_token, tenant } = reply.json() as { access_token: string; tenant: { id: string } }
    return { token: access_token, host: `${slug}.localhost`, id: tenant.id }
  }
  const agencies: Awaited<ReturnType<typeof register>>[] = []
  for (let n = 0; n < people; n++) agencies.push(await register(`agency${n}`))

  let reading = true
  let connects = 0
  /** Reads as a client does: comes again with the last id when the stream has ended. */
  async function read({ token, host }: (typeof agencies)[number], messages: Message[]): Promise<void> {
    let lastId = ''
    while (reading) {
      connects++
      const reader = await openEvents(t, { port, host, token, ...(lastId && { lastId }) }).catch(() => undefined)
      while (reading && reader?.isOpen()) await sleep(20)
      if (reader?.status === 200) {
        messages.push(...reader.messages)
        lastId = reader.lastId() || lastId
        reader.close()
      }
      if (reading) await sleep(200)
    }
  }
  const seen = agencies.map(() => Array.from({ length: readersEach }, (): Message[] => []))
  const readers = agencies.flatMap((agency, index) => (seen[index] ?? []).map((messages) => read(agency, messages)))
  await sleep(1000)

  let writing = true
  let written = 0
  const failures: unknown[] = []
  const headersOf = (token: string) => ({ authorization: `Bearer ${token}` })
  async function write({ token, host }: (typeof agencies)[number]): Promise<void> {
    for (let n = 0; writing; n++) {
      const body = { name: `Name ${n}` }
      const reply = await ask(port, '/api/v1/tenant', { host, method: 'PATCH', headers: headersOf(token), body })
      if (reply.status === 200) written++
      else failures.push(reply.status)
      await sleep(30)
    }
  }
  const writers = agencies.map(write)

  const isUp = async (backend: number | undefined) => {
    const service = await ask(port, '/api/http/services/backend@file', { host: 'traefik.localhost' })
    return (service.json().serverStatus as Record<string, string>)[`http://127.0.0.1:${backend}`] === 'UP'
  }
  for (let turn = 0; turn < restarts; turn++) {
    const victim = turn % servers.length
    await eventually(() => isUp(ports[1 - victim]), 60_000)
    const server = servers[victim] as Server
    server.child.kill('SIGTERM')
    t.strictSame(await server.exited, { code: 0, signal: null })
    servers[victim] = await start(ports[victim] as number)
  }
  writing = false
  await Promise.all(writers)
  // what was written last is placed and sent
  await sleep(5000)
  reading = false
  await Promise.all(readers)

  t.strictSame(failures, [])
  t.comment(`${written} changes, ${connects} connections of ${people * readersEach} readers`)
  t.ok(connects > people * readersEach * 2, 'readers came again')
  for (const [index, { id }] of agencies.entries()) {
    const rows = await allRows(
      database,
      `select id from events join audit_events using (tenant_id, created_at, id)
       where tenant_id = $1 and action = 'tenant.updated' order by position`,
      [id]
    )
    const ids = rows.map((row) => row.id as string)
    t.ok(ids.length > 50, `${ids.length} events`)
    for (const messages of seen[index] ?? []) {
      const mine = messages.filter(({ event }) => event === 'tenant.updated').map((message) => message.id)
      t.strictSame(mine, ids)
      t.notOk(
        messages.some(({ event }) => event === 'reset'),
        'nobody had to begin anew'
      )
    }
  }
})
