import { once } from 'node:events'
import { existsSync, readdirSync, readFileSync, statSync, writeFileSync } from 'node:fs'
import { connect, createServer } from 'node:net'
import { join } from 'node:path'
import { setTimeout as sleep } from 'node:timers/promises'
import t from 'tap'
import { withClient } from './databases.ts'
import {
  allRows,
  createTestDatabase,
  eventually,
  isReady,
  password,
  type Server,
  startServer,
  type Tokens,
  temporaryFolder,
  testEnvironment
} from './harness.ts'
import { accepts, freePort } from './ports.ts'
import { call, createEmptyDatabase, me, refresh, refusal, register, startOrFail, stop } from './server-calls.ts'

// bounded in time: how soon a process starts and ends
// rehearsal: first starts in fresh folders

/** Records the output of a process, by stream. */
function record(server: Server) {
  const seen = { stdout: '', stderr: '' }
  for (const name of ['stdout', 'stderr'] as const) {
    server.child[name]?.on('data', (text: string) => {
      seen[name] += text
    })
  }
  return seen
}

/** The authentication that PostgreSQL demands: 0 is none, 10 is SCRAM. */
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

t.test('with a database of its own', async (t) => {
  // servers are started in one subtest and used in the next
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
