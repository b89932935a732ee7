import { once } from 'node:events'
import { existsSync } from 'node:fs'
import http from 'node:http'
import { join } from 'node:path'
import { setTimeout as sleep } from 'node:timers/promises'
import pg from 'pg'
import t from 'tap'
import { findEmbeddedUrl } from '../db/embedded.ts'
import { serializeError } from '../src/error-log.ts'
import { eventually, password, startServer, temporaryFolder } from './harness.ts'

// bounded in time: how long a process takes to end

/*
 * Ctrl-C in a terminal: the whole process group gets SIGINT, and npm passes it on once more.
 */

const dataDir = temporaryFolder(t)

const keys = /secretKey|processID|"client"|connectionParameters/

t.test('an upload is answered, and the database ends last', async (t) => {
  const server = await startServer(
    t,
    { DATA_DIR: dataDir, LOG_LEVEL: 'info', SHUTDOWN_TIMEOUT: '60' },
    { ready: false, prefix: ['setsid'] }
  )
  await eventually(
    () =>
      server.fetch('/api/v1/health/ready').then(
        ({ status }) => status === 200,
        () => false
      ),
    60_000
  )
  const registered = await server.fetch('/api/v1/auth/register', {
    method: 'POST',
    headers: { 'content-type': 'application/json' },
    body: JSON.stringify({ tenant: { name: 'Acme', slug: 'acme' }, name: 'Ada', email: 'ada@acme.example', password })
  })
  const { access_token } = (await registered.json()) as { access_token: string }

  await t.test('a connection that is lost is logged without its keys', async (t) => {
    const client = new pg.Client({ connectionString: findEmbeddedUrl(dataDir) as string })
    await client.connect()
    t.teardown(() => client.end())
    await eventually(async () => {
      // a list is read by a connection of the pool, which is idle afterwards
      await server.fetch('/api/v1/members', { headers: { authorization: `Bearer ${access_token}` } })
      await client.query(
        'select pg_terminate_backend(pid) from pg_stat_activity where usename = current_user and pid <> pg_backend_pid()'
      )
      await sleep(100)
      return /idle database connection lost/.test(server.output())
    })
    t.notMatch(server.output(), keys)
  })

  const head = '--b\r\ncontent-disposition: form-data; name="file"; filename="plan.bin"\r\n\r\n'
  const half = 'x'.repeat(50_000)
  const tail = '\r\n--b--\r\n'
  const upload = http.request(`${server.url}/api/v1/files`, {
    method: 'POST',
    headers: {
      authorization: `Bearer ${access_token}`,
      'content-type': 'multipart/form-data; boundary=b',
      'content-length': head.length + 2 * half.length + tail.length
    }
  })
  const answered = once(upload, 'response') as Promise<[http.IncomingMessage]>
  upload.write(head + half)
  await sleep(300)
  const group = -(server.child.pid as number)
  process.kill(group, 'SIGINT')
  await eventually(() => server.output().includes('shutting down'))
  server.child.kill('SIGINT')
  await sleep(300)
  upload.end(half + tail)
  const [reply] = await answered
  t.equal(reply.statusCode, 201)
  reply.resume()
  t.strictSame(await server.exited, { code: 0, signal: null })
  t.notMatch(server.output(), keys)
  for (const file of ['server.lock', 'postgres/postmaster.pid']) t.notOk(existsSync(join(dataDir, file)), file)
})

t.test('an error is logged with its facts, and nothing that hangs on it', async (t) => {
  const cause = Object.assign(new Error('reset'), { code: 'ECONNRESET', socket: { secretKey: 1 } })
  const err = Object.assign(new AggregateError([cause], 'lost', { cause }), {
    client: { secretKey: 4711 },
    command: { name: 'auth', args: ['secret'] },
    code: '57P01',
    detail: 'ada@acme.example'
  })
  const logged = serializeError(err)
  const facts = { type: 'Error', message: 'reset', code: 'ECONNRESET' }
  t.match(logged, { type: 'AggregateError', message: 'lost', code: '57P01', cause: facts, errors: [facts] })
  t.match(logged.stack, 'ctrl-c.test.ts')
  t.notMatch(JSON.stringify(logged), /secret|ada@acme|4711/)
  const circle = new Error('round')
  circle.cause = circle
  t.ok(JSON.stringify(serializeError(circle)).length < 50_000)
  for (const thrown of ['text', undefined, null, { secretKey: 1 }]) {
    t.notMatch(JSON.stringify(serializeError(thrown)), 'secretKey')
  }
})
