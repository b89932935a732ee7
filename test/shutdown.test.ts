import { once } from 'node:events'
import http from 'node:http'
import type { AddressInfo } from 'node:net'
import { setTimeout as sleep } from 'node:timers/promises'
import t from 'tap'
import { protectUnsentReplies } from '../src/processes/idle-connections.ts'
import { opaqueBytes } from './bytes.ts'
import { createTestDatabase, eventually, password, startServer, testEnvironment } from './harness.ts'
import { stopwatch } from './machine.ts'

// bounded in time: how long a shutdown takes
// rehearsal: processes that end under slow clients

/*
 * Replies to slow clients, and open connections, when the process is told to stop.
 */

const agent = new http.Agent({ keepAlive: true })
t.teardown(() => agent.destroy())

async function get(port: number, path: string, headers = {}): Promise<http.IncomingMessage> {
  const request = http.get({ agent, host: '127.0.0.1', port, path, headers })
  const [reply] = (await once(request, 'response')) as [http.IncomingMessage]
  return reply
}

async function read(reply: http.IncomingMessage): Promise<Buffer> {
  const chunks: Buffer[] = []
  for await (const chunk of reply) chunks.push(chunk)
  return Buffer.concat(chunks)
}

t.test('a reply that waits in memory is not cut off, and idle connections end after it', async (t) => {
  const content = opaqueBytes(30 * 2 ** 20)
  let written: http.ServerResponse | undefined
  const server = http.createServer((request, reply) => {
    if (request.url === '/idle') return reply.end()
    written = reply.end(content)
  })
  t.teardown(() => server.closeAllConnections())
  protectUnsentReplies(server)
  server.listen(0, '127.0.0.1')
  await once(server, 'listening')
  const { port } = server.address() as AddressInfo
  const idle = await get(port, '/idle')
  const { socket } = idle
  const slow = await get(port, '/')
  await read(idle)
  t.match(written, { writableEnded: true, writableFinished: false }, 'the server has done its part')

  const closed = new Promise((done) => server.close(done))
  t.same(await read(slow), content)
  await eventually(() => written?.writableFinished === true)
  server.closeIdleConnections()
  await closed
  await eventually(() => socket.destroyed)
})

t.test('a download that began before a shutdown ends whole, and the process ends with it', async (t) => {
  const database = await createTestDatabase(t)
  // without a proxy, no notice is needed
  const server = await startServer(t, testEnvironment(database, { LOG_LEVEL: 'warn', SHUTDOWN_TIMEOUT: '60' }))
  const owner = { tenant: { name: 'Acme', slug: 'acme' }, name: 'Ada', email: 'ada@acme.example', password }
  const registered = await server.fetch('/api/v1/auth/register', {
    method: 'POST',
    headers: { 'content-type': 'application/json' },
    body: JSON.stringify(owner)
  })
  const { access_token } = (await registered.json()) as { access_token: string }
  const headers = { authorization: `Bearer ${access_token}` }
  const content = opaqueBytes(30 * 2 ** 20)
  const body = new FormData()
  body.append('file', new Blob([content]), 'plan.bin')
  const uploaded = await server.fetch('/api/v1/files', { method: 'POST', headers, body })
  t.equal(uploaded.status, 201)
  const { id } = (await uploaded.json()) as { id: string }

  const reply = await get(server.port, `/api/v1/files/${id}/content`, headers)
  t.equal(reply.headers.connection, 'keep-alive')
  server.child.kill('SIGTERM')
  await eventually(() =>
    server.fetch('/api/v1/health/live').then(
      () => false,
      () => true
    )
  )
  await sleep(500)
  t.equal(server.child.exitCode, null, 'it waits')
  t.same(await read(reply), content)
  const sinceRead = stopwatch()
  t.strictSame(await server.exited, { code: 0, signal: null })
  t.ok(sinceRead() < 20_000, 'the connection is not kept for another request')
  t.notMatch(server.output(), 'cut off')
})

t.test('behind a proxy that is late to notice, the door is shut when nobody comes any more', async (t) => {
  const database = await createTestDatabase(t)
  const server = await startServer(t, testEnvironment(database, { TRUST_PROXY: '127.0.0.1' }))
  const path = '/api/v1/health/live'
  const outcomes = new Set<unknown>()
  server.child.kill('SIGTERM')
  const toldAt = Date.now()
  // for one and a half times the notice; each on a new connection, because the server keeps none
  while (Date.now() - toldAt < 4500) {
    outcomes.add(await get(server.port, path).then((reply) => reply.resume().statusCode, String))
    await sleep(50)
  }
  t.strictSame([...outcomes], [200])
  t.strictSame(await server.exited, { code: 0, signal: null })
  await t.rejects(get(server.port, path))
})

/** A connection that is used as long as the server keeps it. */
function createClient(port: number) {
  const own = new http.Agent({ keepAlive: true, maxSockets: 1 })
  t.teardown(() => own.destroy())
  return async (): Promise<{ status: number | undefined; last: boolean }> => {
    const request = http.get({ agent: own, host: '127.0.0.1', port, path: '/api/v1/health/live' })
    const [reply] = (await once(request, 'response')) as [http.IncomingMessage]
    await read(reply)
    return { status: reply.statusCode, last: reply.headers.connection === 'close' }
  }
}

for (const workers of ['1', '2']) {
  t.test(`with nothing in front, ${workers} of them: no connection is cut off under its request`, async (t) => {
    const database = await createTestDatabase(t)
    const server = await startServer(t, testEnvironment(database, { WEB_CONCURRENCY: workers, LOG_LEVEL: 'warn' }))
    const busy = Array.from({ length: 24 }, () => createClient(server.port))
    const idle = Array.from({ length: 8 }, () => createClient(server.port))
    for (const ask of [...busy, ...idle]) t.match(await ask(), { status: 200, last: false })

    const statuses: (number | undefined)[] = []
    const failures: string[] = []
    // each until nobody opens any more
    const loads = busy.map(async (ask) => {
      for (;;) {
        try {
          statuses.push((await ask()).status)
        } catch (err) {
          const { code = String(err) } = err as NodeJS.ErrnoException
          // nothing was sent yet, so the request can go to another process
          if (code === 'ECONNREFUSED') return
          failures.push(code)
        }
      }
    })
    await eventually(() => statuses.length > 3000, 60_000)
    server.child.kill('SIGTERM')
    await Promise.all(loads)
    t.strictSame(failures, [])
    t.strictSame([...new Set(statuses)], [200])
    t.equal(server.child.exitCode, null, 'those that are idle may yet be used')
    for (const ask of idle) t.strictSame(await ask(), { status: 200, last: true })
    t.strictSame(await server.exited, { code: 0, signal: null })
    t.notMatch(server.output(), 'cut off')
  })
}
