import { once } from 'node:events'
import { readdirSync } from 'node:fs'
import { Agent, request as httpRequest, type IncomingMessage } from 'node:http'
import { connect, type Socket } from 'node:net'
import { join } from 'node:path'
import { setTimeout as sleep } from 'node:timers/promises'
import t, { type Test } from 'tap'
import { withClient } from './databases.ts'
import { startFaultProxy } from './fault-proxy.ts'
import {
  allRows,
  createTestDatabase,
  eventually,
  isReady,
  password,
  root,
  type Server,
  startServer,
  type Tokens,
  testEnvironment
} from './harness.ts'
import { stopwatch } from './machine.ts'
import { accepts } from './ports.ts'
import {
  type Answer,
  call,
  createEmptyDatabase,
  me,
  refresh,
  refusal,
  register,
  registration,
  startOrFail,
  stop
} from './server-calls.ts'

// bounded in time: how soon a process starts and ends
// rehearsal: five processes on one database, and their deaths

/*
 * Several processes on one database: they are started, killed, and cut off from the database.
 */

const signIn = async (server: Server, slug: string) =>
  (await call(server, 'POST', '/auth/login', { email: `owner@${slug}.example`, password })).body as unknown as Tokens

/** Waits until this process refuses a token that was just revoked. Resolves to the milliseconds. */
function diesWithin(server: Server, token: string, withinMs: number): Promise<number> {
  return eventually(async () => (await me(server, token)).status === 401, withinMs)
}

/** Sends half of a request, and keeps the connection open. */
async function sendHalf(t: Test, server: Server): Promise<Socket> {
  const socket = connect(server.port, '127.0.0.1')
  t.teardown(() => socket.destroy())
  socket.on('error', () => {})
  await once(socket, 'connect')
  const head = 'POST /api/v1/auth/login HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n'
  socket.write(`${head}Expect: 100-continue\r\nContent-Length: 100\r\n\r\n`)
  const [text] = (await once(socket.setEncoding('latin1'), 'data')) as [string]
  t.match(text, /^HTTP\/1\.1 100 /, 'the server waits for the rest')
  return socket
}

t.test('five processes on one database', async (t) => {
  const urls = await createEmptyDatabase(t, 'five')
  const env = testEnvironment(urls, { DATABASE_OWNER_URL: urls.owner, DATABASE_POOL: '4', LOG_LEVEL: 'warn' })
  const servers = await Promise.all(
    ['5', '5', '10', '2', '30'].map((SHUTDOWN_TIMEOUT) => startOrFail(t, { ...env, SHUTDOWN_TIMEOUT }))
  )
  const [one, two, draining, impatient, patient] = servers as [Server, Server, Server, Server, Server]
  const both = [one, two]
  /** A second until a revocation is in force, and another one for a busy machine. */
  const soon = 2000

  t.test('which they found empty and started on at once: one migrates it, and all serve', async (t) => {
    for (const server of servers) t.equal(server.child.exitCode, null, server.output())
    t.equal(servers.filter((server) => server.output().includes('migrated:')).length, 1)
    const steps = readdirSync(join(root, 'db', 'migrations')).map((file) => file.replace(/\.ts$/, ''))
    const applied = await allRows(urls, 'select name from kysely_migration order by name')
    t.strictSame(
      applied.map(({ name }) => name),
      steps.sort()
    )
    const { access_token } = await register(one, 'acme')
    for (const server of servers) t.equal((await me(server, access_token)).status, 200)
  })

  t.test('fifty uses of one refresh token at once give one successor', async (t) => {
    const first = await register(one, 'parallel')
    const replies = await Promise.all(
      Array.from({ length: 50 }, (_, i) => refresh(both[i % 2] as Server, first.refresh_token))
    )
    t.strictSame([...new Set(replies.map(({ status }) => status))], [200])
    t.equal(new Set(replies.map(({ body }) => body.refresh_token)).size, 1)
    t.not(replies[0]?.body.refresh_token, first.refresh_token)
    for (const server of both) {
      const successor = await refresh(server, replies[0]?.body.refresh_token as string)
      t.equal(successor.status, 200, 'which works, for whoever asks')
    }
  })

  t.test('a token that was used before ends the family, everywhere', async (t) => {
    const first = await register(one, 'reuse')
    const second = (await refresh(two, first.refresh_token)).body as unknown as Tokens
    const third = (await refresh(one, second.refresh_token)).body as unknown as Tokens
    const bystander = await signIn(two, 'reuse')
    for (const server of both)
      for (const { access_token } of [first, second, third]) t.equal((await me(server, access_token)).status, 200)

    const reused = await refresh(one, first.refresh_token)
    t.match(reused, { status: 401, body: { code: 'refresh_token_reused' } })
    for (const server of both) {
      for (const { access_token } of [first, second, third]) {
        t.ok((await diesWithin(server, access_token, soon)) <= soon)
        t.equal((await me(server, access_token)).body.code, 'session_revoked')
      }
      for (const { refresh_token } of [second, third]) t.equal((await refresh(server, refresh_token)).status, 401)
      t.equal((await me(server, bystander.access_token)).status, 200, 'another session of theirs lives')
    }
  })

  t.test('who signs out at one is signed out at the other', async (t) => {
    await register(one, 'leaving')
    for (const [here, there] of [
      [one, two],
      [two, one]
    ] as const) {
      const tokens = await signIn(here, 'leaving')
      t.equal((await me(there, tokens.access_token)).status, 200)
      t.equal((await call(here, 'POST', '/auth/logout', undefined, tokens.access_token)).status, 204)
      t.equal((await me(here, tokens.access_token)).body.code, 'session_revoked', 'here at once')
      t.ok((await diesWithin(there, tokens.access_token, soon)) <= soon, 'there soon')
      t.equal((await refresh(there, tokens.refresh_token)).status, 401)
    }
  })

  t.test('a changed password ends the other sessions at both', async (t) => {
    const current = await register(one, 'changing')
    const other = await signIn(two, 'changing')
    const change = { current_password: password, new_password: 'another horse, another battery' }
    t.equal((await call(one, 'POST', '/users/me/password', change, current.access_token)).status, 204)
    t.ok((await diesWithin(two, other.access_token, soon)) <= soon)
    for (const server of both) t.equal((await me(server, current.access_token)).status, 200, 'this one lives')
  })

  t.test('an agency that is registered at one is known at the other', async (t) => {
    const host = 'fresh.localhost'
    const statusAt = (server: Server) =>
      new Promise<number>((done, fail) => {
        const options = { host: '127.0.0.1', port: server.port, path: '/api/v1/tenant', headers: { host } }
        httpRequest(options, (reply) => done(reply.resume().statusCode ?? 0))
          .on('error', fail)
          .end()
      })
    for (const server of both) t.equal(await statusAt(server), 404, 'nobody yet')
    await register(one, 'fresh')
    t.equal(await statusAt(one), 401, 'here at once')
    await eventually(async () => (await statusAt(two)) === 401, 5000)
  })

  t.test('a shutdown lets a request that is being served finish, and nothing new begin', async (t) => {
    const server = draining
    const { access_token, user } = await register(server, 'draining')
    // a client that keeps its connections open
    const agent = new Agent({ keepAlive: true })
    t.teardown(() => agent.destroy())
    const idle = connect(server.port, '127.0.0.1').setEncoding('latin1')
    t.teardown(() => idle.destroy())
    let idleText = ''
    idle
      .on('error', () => {})
      .on('data', (chunk: string) => {
        idleText += chunk
      })
    idle.write('GET /api/v1/health/live HTTP/1.1\r\nHost: localhost\r\n\r\n')
    await eventually(() => idleText.includes('{"status":"ok"}'))

    const reply = await withClient(urls.postgres, async (holder) => {
      await holder.query('begin')
      await holder.query('select from users where id = $1 for update', [user.id])
      const slow = new Promise<IncomingMessage>((done, fail) => {
        const request = httpRequest({
          agent,
          host: '127.0.0.1',
          port: server.port,
          method: 'PATCH',
          path: '/api/v1/users/me',
          headers: {
            authorization: `Bearer ${access_token}`,
            'content-type': 'application/json'
          }
        })
        request.on('response', done).on('error', fail).end('{"name":"Served in time"}')
      })
      await eventually(async () => {
        const { rowCount } = await holder.query(
          "select from pg_stat_activity where datname = current_database() and wait_event_type = 'Lock'"
        )
        return rowCount === 1
      })
      server.child.kill('SIGTERM')
      await eventually(async () => {
        const refused = await server.fetch('/api/v1/health/ready').then(
          ({ status }) => status === 503,
          () => true
        )
        return refused
      }, 1500)
      if (!idle.destroyed && idle.writable) idle.write('GET /api/v1/health/ready HTTP/1.1\r\nHost: localhost\r\n\r\n')
      await holder.query('commit')
      return slow
    })
    const sinceRelease = stopwatch()
    t.equal(reply.statusCode, 200)
    t.equal(reply.headers.connection, 'close', 'and its connection does not stay')
    let body = ''
    for await (const chunk of reply) body += chunk
    t.match(JSON.parse(body), { name: 'Served in time' })
    t.strictSame(await server.exited, { code: 0, signal: null })
    const endedAfter = sinceRelease()
    t.ok(endedAfter < 5000, `it ended ${endedAfter} ms after the last reply`)
    t.notMatch(server.output(), 'cut off', 'because all was done, not because time was up')
    await eventually(() => idle.closed || idle.readableEnded)
    t.notMatch(idleText.slice(idleText.indexOf('{"status":"ok"}') + 15), 'HTTP/1.1 200', 'who was idle gets no more')
    t.strictSame(await allRows(urls, 'select name from users where id = $1', [user.id]), [{ name: 'Served in time' }])
  })

  t.test('a shutdown does not wait for ever', async (t) => {
    const server = impatient
    const socket = await sendHalf(t, server)
    const signalledAt = Date.now()
    const sinceSignal = stopwatch()
    t.strictSame(await stop(server, 'SIGINT'), { code: 0, signal: null })
    const ms = Date.now() - signalledAt
    t.ok(ms >= 500, `it was patient for ${ms} ms`)
    t.ok(sinceSignal() <= 3000, `and no longer than it may: ${ms} ms`)
    await eventually(() => socket.closed || socket.readableEnded)
  })

  t.test('a shutdown is at once when it is asked for twice', async (t) => {
    const server = patient
    await sendHalf(t, server)
    server.child.kill('SIGTERM')
    await eventually(async () => !(await accepts(server.port)))
    t.equal(server.child.exitCode, null, 'it waits')
    // what comes sooner is taken for the same signal
    await sleep(700)
    const sinceSignal = stopwatch()
    const { code } = await stop(server, 'SIGTERM')
    t.ok(code !== 0, `it does not claim success: ${code}`)
    t.ok(sinceSignal() < 2000)
  })

  t.test('on passwords that need another pepper no process starts', async (t) => {
    const message = await refusal(t, testEnvironment(urls, { PASSWORD_PEPPER: 'some other pepper' }))
    t.match(message, 'PASSWORD_PEPPER')
  })

  t.test('the shutdown of a process that nobody uses is short', async (t) => {
    for (const server of both) {
      const sinceSignal = stopwatch()
      t.strictSame(await stop(server), { code: 0, signal: null })
      t.ok(sinceSignal() < 3000)
    }
  })
})

t.test('without its database', async (t) => {
  const urls = await createTestDatabase(t)
  const proxy = await startFaultProxy(t, Number(new URL(urls.app).port))
  const env = testEnvironment(urls, { DATABASE_URL: proxy.through(urls.app) })
  const server = await startServer(t, env)
  const { access_token, refresh_token } = await register(server, 'acme')
  const rename = (name: string) => call(server, 'PATCH', '/users/me', { name }, access_token)

  async function isAway(t: Test, asked: Answer, timeoutMs: number, what: string) {
    t.match(asked.body, { status: 503, code: /^(?:unavailable|overloaded)$/, request_id: /\S/ }, what)
    t.equal(asked.status, 503, what)
    t.match(asked.headers.get('content-type'), /^application\/problem\+json/, what)
    t.ok(Number(asked.headers.get('retry-after')) >= 1, `${what}: Retry-After`)
    t.notMatch(JSON.stringify(asked.body), /ECONN|127\.0\.0\.1|Connection terminated|postgres/i, what)
    t.ok(asked.ms <= timeoutMs, `${what}: after ${asked.ms} ms`)
  }
  const everything = (slug: string) =>
    Promise.all([
      me(server, access_token),
      rename('Nobody'),
      call(server, 'POST', '/auth/login', { email: 'owner@acme.example', password }),
      call(server, 'POST', '/auth/register', registration(slug)),
      refresh(server, refresh_token)
    ])

  for (const [what, timeoutMs] of [
    ['cut off', 5000],
    ['silent', 10_000]
  ] as const) {
    t.test(`${what}: it says so in bounded time, and recovers by itself`, async (t) => {
      t.equal((await rename(`Before it was ${what}`)).status, 200)
      await proxy.add({ type: what === 'silent' ? 'blackhole' : 'refuse' })

      const names = ['reading', 'writing', 'signing in', 'registering', 'refreshing']
      const answers = await everything(what.replace(' ', '-'))
      for (const [i, answer] of answers.entries()) {
        // registering hashes a password before it asks the database, which takes as long as the machine lets it
        const bound = names[i] === 'registering' ? Number.POSITIVE_INFINITY : timeoutMs
        await isAway(t, answer, bound, names[i] as string)
      }
      await eventually(async () => !(await isReady(server)), 5000)
      const health = await call(server, 'GET', '/health')
      await isAway(t, health, timeoutMs, 'health')
      t.match(health.body, { checks: { database: { status: 'down' } } })
      t.equal((await call(server, 'GET', '/health/live')).status, 200, 'the process lives')
      t.equal((await call(server, 'GET', '/nothing')).status, 404, 'what needs no database needs none')

      await proxy.clear()
      const ms = await eventually(() => isReady(server), 10_000)
      t.ok(ms <= 10_000, `ready ${ms} ms after`)
      await eventually(async () => (await me(server, access_token)).status === 200, 5000)
      t.equal((await rename(`After it was ${what}`)).status, 200)
      t.equal((await me(server, access_token)).body.name, `After it was ${what}`)
      t.equal((await call(server, 'POST', '/auth/login', { email: 'owner@acme.example', password })).status, 200)
      t.equal(server.child.exitCode, null, 'it is the same process')
    })
  }

  t.test('a process that starts before its database waits for it', async (t) => {
    await proxy.add({ type: 'refuse' })
    const early = await startServer(t, { ...env, DATABASE_OWNER_URL: proxy.through(urls.owner) }, { ready: false })
    await sleep(1500)
    t.equal(early.child.exitCode, null, early.output())
    await proxy.clear()
    await eventually(() => isReady(early), 15_000)
  })

  t.test('a process that starts while its database is slow asks it again', async (t) => {
    await proxy.add({ type: 'blackhole' })
    const early = await startServer(t, env, { ready: false })
    // longer than a request waits for a connection
    await sleep(4000)
    t.equal(early.child.exitCode, null, early.output())
    await proxy.clear()
    await eventually(() => isReady(early), 15_000)
  })
})
