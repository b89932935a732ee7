import { once } from 'node:events'
import { existsSync, readdirSync, readFileSync, statSync, writeFileSync } from 'node:fs'
import { Agent, request as httpRequest, type IncomingMessage } from 'node:http'
import { connect, createServer, type Socket } from 'node:net'
import { join } from 'node:path'
import { setTimeout as sleep } from 'node:timers/promises'
import t, { type Test } from 'tap'
import type { Environment } from '../src/config/environment.ts'
import { createDatabase, type DatabaseUrls, dropDatabase, withClient } from './databases.ts'
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
  temporaryFolder,
  testEnvironment
} from './harness.ts'
import { stopwatch } from './machine.ts'
import { accepts, freePort } from './ports.ts'

// bounded in time: how soon a process starts and ends

/*
 * The product as what it is in the end: processes, which are started, killed and cut off from their database.
 */

/** What a process has written, each stream by itself. */
function record(server: Server) {
  const seen = { stdout: '', stderr: '' }
  for (const name of ['stdout', 'stderr'] as const) {
    server.child[name]?.on('data', (text: string) => {
      seen[name] += text
    })
  }
  return seen
}

/** Starts it, and waits until it has ended or answers. */
async function startOrFail(t: Test, env: Environment): Promise<Server> {
  const server = await startServer(t, env, { ready: false })
  await eventually(async () => server.child.exitCode !== null || (await isReady(server)), 60_000)
  return server
}

async function stop(server: Server, signal: NodeJS.Signals = 'SIGTERM') {
  server.child.kill(signal)
  return server.exited
}

type Answer = { status: number; body: Record<string, unknown>; headers: Headers; ms: number }

async function call(server: Server, method: string, path: string, payload?: object, token?: string): Promise<Answer> {
  const elapsed = stopwatch()
  const reply = await server.fetch(`/api/v1${path}`, {
    method,
    headers: {
      ...(payload && { 'content-type': 'application/json' }),
      ...(token !== undefined && { authorization: `Bearer ${token}` })
    },
    ...(payload && { body: JSON.stringify(payload) })
  })
  const text = await reply.text()
  const body = text === '' ? {} : JSON.parse(text)
  return { status: reply.status, body, headers: reply.headers, ms: elapsed() }
}

const registration = (slug: string) => ({
  tenant: { name: `The ${slug} agency`, slug },
  name: `Owner of ${slug}`,
  email: `owner@${slug}.example`,
  password
})

async function register(server: Server, slug: string): Promise<Tokens & { user: { id: string } }> {
  const { status, body } = await call(server, 'POST', '/auth/register', registration(slug))
  if (status !== 201) throw new Error(JSON.stringify(body))
  return body as never
}

const signIn = async (server: Server, slug: string) =>
  (await call(server, 'POST', '/auth/login', { email: `owner@${slug}.example`, password })).body as unknown as Tokens
const refresh = (server: Server, refresh_token: string) => call(server, 'POST', '/auth/refresh', { refresh_token })
const me = (server: Server, token: string) => call(server, 'GET', '/users/me', undefined, token)

/** How long until a token that has just died is refused by this process. */
function diesWithin(server: Server, token: string, withinMs: number): Promise<number> {
  return eventually(async () => (await me(server, token)).status === 401, withinMs)
}

/** A database of the run's server that nobody has migrated. */
async function createEmptyDatabase(t: Test, name: string): Promise<DatabaseUrls> {
  const full = `p_${process.pid}_${name}`
  const urls = await createDatabase(full, 'template1')
  t.teardown(() => dropDatabase(full))
  return urls
}

/** What PostgreSQL asks of somebody who connects: 0 is nothing at all, 10 is SCRAM. */
async function authenticationAsked(port: number, user: string, database: string): Promise<number> {
  const parameters = Buffer.from(`user\0${user}\0database\0${database}\0\0`)
  const head = Buffer.alloc(8)
  head.writeInt32BE(parameters.length + 8, 0)
  head.writeInt32BE(196_608, 4)
  const socket = connect(port, '127.0.0.1')
  socket.write(Buffer.concat([head, parameters]))
  const [reply] = (await once(socket, 'data')) as [Buffer]
  socket.destroy()
  return reply.toString('latin1', 0, 1) === 'R' ? reply.readInt32BE(5) : -1
}

const mode = (path: string) => (statSync(path).mode & 0o777).toString(8)

// two cores may have other things to do
t.setTimeout(300_000)

t.test('with a database of its own', async (t) => {
  // started in one part, used in the next
  const whole = t
  const dataDir = join(temporaryFolder(t), 'data')
  const env = { DATA_DIR: dataDir, RATE_LIMIT: '0', RATE_LIMIT_AUTH: '0', LOG_LEVEL: 'info' }
  const lock = join(dataDir, 'server.lock')
  const portOf = (server: Server) => Number(/running on 127\.0\.0\.1:(\d+)/.exec(server.output())?.[1])
  let server = await startServer(t, env, { ready: false })
  const seen = record(server)
  await eventually(() => isReady(server), 60_000)

  t.test('the first start says what it does, and where to go next', async (t) => {
    t.equal((await server.fetch('/api/health')).status, 200)
    t.match(seen.stderr, /creating the database/)
    t.match(seen.stderr, /migrated: 0001_core/)
    t.match(seen.stderr, 'ready')
    t.ok(seen.stderr.indexOf('creating') < seen.stderr.indexOf('ready'), 'in this order')
    const links = [...seen.stderr.matchAll(/http:\/\/localhost:\d+\/\S+/g)].map(([link]) => new URL(link))
    t.ok(links.length >= 2)
    for (const link of links) t.equal(Number(link.port), server.port)
    const docs = links.find(({ pathname }) => pathname.endsWith('/docs')) as URL
    t.equal((await server.fetch(docs.pathname)).status, 200)
    const shown = /-d '(\{.*\})'/.exec(seen.stderr)?.[1] as string
    const reply = await call(server, 'POST', '/auth/register', JSON.parse(shown))
    t.equal(reply.status, 201, 'the command that it shows works')
    const lines = seen.stdout.split('\n').filter((line) => line !== '')
    for (const line of lines) t.doesNotThrow(() => JSON.parse(line), 'the log is JSON, and alone on stdout')
  })

  t.test('a second start on the same folder is refused, and the first goes on', async (t) => {
    const second = await startServer(t, env, { ready: false })
    t.strictSame(await second.exited, { code: 78, signal: null })
    t.match(second.output(), dataDir)
    t.match(second.output(), String(server.child.pid))
    t.match(second.output(), 'DATA_DIR')
    t.notMatch(second.output(), /\n\s+at /, 'no stack')
    t.ok(await isReady(server))
    t.ok(existsSync(lock), 'and keeps its claim')
    const tokens = await register(server, 'unharmed')
    t.equal((await me(server, tokens.access_token)).status, 200)
  })

  t.test('its secrets are for the eyes of their owner only', async (t) => {
    const secrets = readdirSync(join(dataDir, 'secrets'))
    for (const name of ['jwt_secret', 'postgres_password', 'owner_password', 'app_password']) {
      t.ok(secrets.includes(name), name)
    }
    for (const name of secrets) {
      t.equal(mode(join(dataDir, 'secrets', name)), '600', name)
      t.ok(readFileSync(join(dataDir, 'secrets', name), 'utf8').length >= 32, name)
    }
    for (const folder of ['.', 'secrets', 'postgres']) t.equal(mode(join(dataDir, folder)), '700', folder)
    t.equal(new Set(secrets.map((name) => readFileSync(join(dataDir, 'secrets', name), 'utf8'))).size, secrets.length)
    for (const name of secrets) {
      t.notOk(server.output().includes(readFileSync(join(dataDir, 'secrets', name), 'utf8')), `${name} is not written`)
    }
  })

  t.test('nobody gets in without a password', async (t) => {
    const port = portOf(server)
    for (const user of ['postgres', 'aggios_owner', 'aggios_app', 'aggios_directory', 'root']) {
      for (const database of ['aggios', 'postgres', 'template1']) {
        t.equal(await authenticationAsked(port, user, database), 10, `${user} on ${database}`)
      }
    }
    const wrong = `postgres://postgres:wrong@127.0.0.1:${port}/postgres`
    await t.rejects(
      withClient(wrong, async () => {}),
      { code: '28P01' }
    )
    const superuser = readFileSync(join(dataDir, 'secrets', 'postgres_password'), 'utf8')
    await withClient(`postgres://postgres:${superuser}@127.0.0.1:${port}/aggios`, async (client) => {
      const rules = await client.query("select from pg_hba_file_rules where auth_method <> 'scram-sha-256'")
      t.equal(rules.rowCount, 0)
      const { rows } = await client.query(`select current_setting('listen_addresses') as addresses,
        current_setting('unix_socket_directories') as sockets, current_setting('fsync') as fsync,
        current_setting('synchronous_commit') as synchronous, current_setting('full_page_writes') as pages`)
      t.strictSame(rows, [{ addresses: '127.0.0.1', sockets: '', fsync: 'on', synchronous: 'on', pages: 'on' }])
    })
  })

  t.test('nothing that was acknowledged is lost when it is killed while many write', async (t) => {
    type Entry = { slug: string; tokens: Tokens & { user: { id: string } } }
    const acknowledged: Entry[] = []
    for (let round = 1; round <= 3; round++) {
      const unknown: string[] = []
      const before = acknowledged.length
      let killed = false
      const writers = Array.from({ length: 4 }, async (_, writer) => {
        for (let i = 0; !killed; i++) {
          const slug = `r${round}w${writer}n${i}`
          try {
            acknowledged.push({ slug, tokens: await register(server, slug) })
          } catch {
            unknown.push(slug)
          }
        }
      })
      await eventually(() => acknowledged.length >= before + 8, 30_000)
      await sleep(Math.random() * 200)
      killed = true
      const databasePort = portOf(server)
      t.match(await stop(server, 'SIGKILL'), { signal: 'SIGKILL' })
      await Promise.all(writers)
      t.ok(existsSync(lock), 'its claim is still there')

      server = await startOrFail(whole, env)
      t.equal(server.child.exitCode, null, `round ${round}: it starts again\n${server.output()}`)
      t.notOk(databasePort !== portOf(server) && (await accepts(databasePort)), 'the old database server is gone')
      const lost: string[] = []
      for (const { slug, tokens } of acknowledged) {
        const reply = await me(server, tokens.access_token)
        if (reply.status !== 200 || reply.body.id !== tokens.user.id) lost.push(`${slug}: ${reply.status}`)
      }
      t.strictSame(lost, [], `round ${round}: all ${acknowledged.length} are there`)
      for (const slug of unknown) {
        const { status } = await call(server, 'POST', '/auth/login', { email: `owner@${slug}.example`, password })
        if (status !== 200) t.equal((await register(server, slug)).token_type, 'Bearer', `${slug} is wholly absent`)
        else t.equal(status, 200, `${slug} is wholly there`)
      }
    }
    const last = acknowledged.at(-1) as Entry
    t.equal((await refresh(server, last.tokens.refresh_token)).status, 200, 'refresh tokens outlive it too')
  })

  t.test('stopped, it takes its database with it', async (t) => {
    const databasePort = portOf(server)
    t.ok(await accepts(databasePort))
    t.strictSame(await stop(server), { code: 0, signal: null })
    t.notOk(await accepts(databasePort))
    t.notOk(existsSync(join(dataDir, 'postgres', 'postmaster.pid')), 'in good order')
    t.notOk(existsSync(lock))
  })

  t.test('a claim of nobody is taken over', async (t) => {
    const claims: [what: string, text: string][] = [
      ['of a process that is another one by now', `${process.pid} 1`],
      ['that was cut off while it was written', '']
    ]
    for (const [what, text] of claims) {
      writeFileSync(lock, text)
      server = await startOrFail(t, env)
      t.equal(server.child.exitCode, null, what)
      t.equal(readFileSync(lock, 'utf8').split(' ')[0], String(server.child.pid), what)
      t.strictSame(await stop(server, 'SIGINT'), { code: 0, signal: null }, what)
    }
  })
})

t.test('of three first starts in one folder one serves, and the others say why they do not', async (t) => {
  const dataDir = join(temporaryFolder(t), 'data')
  const servers = await Promise.all(
    [1, 2, 3].map(() =>
      startOrFail(t, { DATA_DIR: dataDir, LOG_LEVEL: 'silent', RATE_LIMIT: '0', RATE_LIMIT_AUTH: '0' })
    )
  )
  const codes = servers.map(({ child }) => child.exitCode)
  t.strictSame(codes.filter((code) => code === 78).length, 2, servers.map((server) => server.output()).join('\n--\n'))
  t.strictSame(codes.filter((code) => code === null).length, 1)
  for (const server of servers) {
    if (server.child.exitCode === null) {
      const { access_token } = await register(server, 'only')
      t.equal((await me(server, access_token)).status, 200)
      t.strictSame(await stop(server), { code: 0, signal: null })
    } else t.match(server.output(), 'DATA_DIR')
  }
})

t.test('a configuration that is wrong is refused with everything that is wrong', async (t) => {
  const server = await startServer(t, { NODE_ENV: 'production', DATABASE_POOL: 'many', PORT: '80' }, { ready: false })
  const seen = record(server)
  t.strictSame(await server.exited, { code: 78, signal: null })
  for (const name of ['DATABASE_URL', 'JWT_SECRET', 'PASSWORD_PEPPER', 'DATABASE_POOL']) {
    t.match(seen.stderr, new RegExp(`^\\s*${name}: `, 'm'), name)
  }
  t.equal(seen.stdout, '')
  t.notMatch(seen.stderr, /\n\s+at /, 'no stack')
})

/** What a process says that does not start. */
async function refusal(t: Test, env: Environment): Promise<string> {
  const server = await startServer(t, env, { ready: false })
  const { code } = await server.exited
  t.ok(code !== null && code > 0, `it exits with ${code}`)
  t.notMatch(server.output(), /\n\s+at /, 'no stack')
  const secret = new URL(env.DATABASE_URL as string).password
  t.notOk(server.output().includes(secret), 'and no password')
  return server.output()
}

t.test('a start is refused', async (t) => {
  t.test('on a schema that nobody has migrated', async (t) => {
    const message = await refusal(t, testEnvironment(await createEmptyDatabase(t, 'bare')))
    t.match(message, '0001_core')
    t.match(message, 'DATABASE_OWNER_URL')
  })
  t.test('as a role that could skip row security', async (t) => {
    const urls = await createTestDatabase(t)
    const role = `member_${process.pid}`
    await allRows(urls, `create role ${role} login password 'of-a-member-of-the-owner'`)
    t.teardown(() => allRows(urls, `drop owned by ${role}; drop role ${role}`))
    const member = new URL(urls.app)
    member.username = role
    member.password = 'of-a-member-of-the-owner'
    const database = member.pathname.slice(1)
    await allRows(urls, `grant aggios_owner to ${role}; grant connect on database ${database} to ${role}`)
    const refused = [urls.owner, urls.postgres, member.href]
    const messages = await Promise.all(refused.map((url) => refusal(t, testEnvironment(urls, { DATABASE_URL: url }))))
    for (const [i, who] of ['aggios_owner', 'postgres', role].entries()) {
      t.match(messages[i], `DATABASE_URL connects as ${who}`)
      t.match(messages[i], 'aggios_app')
    }
  })
  t.test('on a port that is taken', async (t) => {
    const urls = await createTestDatabase(t)
    const other = createServer()
    const port = await freePort()
    other.listen(port, '127.0.0.1')
    await once(other, 'listening')
    t.teardown(() => other.close())
    const message = await refusal(t, testEnvironment(urls, { PORT: String(port) }))
    t.match(message, String(port))
  })
})

/** Sends what never becomes a whole request, and stays. */
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
  /** A second for the news to arrive, and another for a machine that has other things to do. */
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
    // a client that keeps its connections for as long as it may
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

  async function isAway(t: Test, asked: Answer, patienceMs: number, what: string) {
    t.match(asked.body, { status: 503, code: /^(?:unavailable|overloaded)$/, request_id: /\S/ }, what)
    t.equal(asked.status, 503, what)
    t.match(asked.headers.get('content-type'), /^application\/problem\+json/, what)
    t.ok(Number(asked.headers.get('retry-after')) >= 1, `${what}: Retry-After`)
    t.notMatch(JSON.stringify(asked.body), /ECONN|127\.0\.0\.1|Connection terminated|postgres/i, what)
    t.ok(asked.ms <= patienceMs, `${what}: after ${asked.ms} ms`)
  }
  const everything = (slug: string) =>
    Promise.all([
      me(server, access_token),
      rename('Nobody'),
      call(server, 'POST', '/auth/login', { email: 'owner@acme.example', password }),
      call(server, 'POST', '/auth/register', registration(slug)),
      refresh(server, refresh_token)
    ])

  for (const [what, patienceMs] of [
    ['cut off', 5000],
    ['silent', 10_000]
  ] as const) {
    t.test(`${what}: it says so in bounded time, and recovers by itself`, async (t) => {
      t.equal((await rename(`Before it was ${what}`)).status, 200)
      await proxy.add({ type: what === 'silent' ? 'blackhole' : 'refuse' })

      const names = ['reading', 'writing', 'signing in', 'registering', 'refreshing']
      const answers = await everything(what.replace(' ', '-'))
      for (const [i, answer] of answers.entries()) await isAway(t, answer, patienceMs, names[i] as string)
      await eventually(async () => !(await isReady(server)), 5000)
      const health = await call(server, 'GET', '/health')
      await isAway(t, health, patienceMs, 'health')
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
    // longer than a request would wait for a connection
    await sleep(4000)
    t.equal(early.child.exitCode, null, early.output())
    await proxy.clear()
    await eventually(() => isReady(early), 15_000)
  })
})
