import { spawn } from 'node:child_process'
import { once } from 'node:events'
import { readFileSync, statSync } from 'node:fs'
import { join } from 'node:path'
import t from 'tap'
import {
  allRows,
  commandFile,
  elsewhere,
  post,
  run,
  send,
  startApp,
  startServer,
  temporaryFolder,
  testEnvironment
} from './harness.ts'

type Seeded = {
  host: string
  tenant_id: string
  user_id: string
  email: string
  access_token: string
  refresh_token: string
}
type TokenFile = { password: string; users: Seeded[] }

const seed = (env: object, ...args: string[]) =>
  run(process.execPath, [...process.execArgv, commandFile('seed'), ...args], {
    cwd: elsewhere,
    env: { ...process.env, ...env }
  })

const readTokens = (file: string): TokenFile => JSON.parse(readFileSync(file, 'utf8'))
const bearer = ({ access_token }: Seeded) => ({ authorization: `Bearer ${access_token}` })

t.test('seeded people are real ones', async (t) => {
  const app = await startApp(t)
  const env = testEnvironment(app.database)
  const file = join(temporaryFolder(t), 'tokens.json')
  const { stderr } = await seed(env, '--tenants', '3', '--users', '4', '--tokens', file)
  const { password, users } = readTokens(file)
  const [owner, admin, member] = users as [Seeded, Seeded, Seeded]

  t.test('as many as were asked for, in agencies of one size, and progress is shown', async (t) => {
    t.match(stderr, /^12 of 12 people after/m)
    t.match(stderr, `everybody's password is ${password}`)
    t.equal(users.length, 12)
    t.strictSame(
      await allRows(app.database, 'select count(*)::int as people from memberships group by tenant_id'),
      Array(3).fill({ people: 4 })
    )
  })
  t.test('each token verifies on a running server, as the person it was made for', async (t) => {
    for (const user of users) {
      const reply = await send(app, user.host, { url: '/api/v1/users/me', headers: bearer(user) })
      t.match(reply.json(), { id: user.user_id, email: user.email, tenant_id: user.tenant_id, email_verified: true })
    }
  })
  t.test('the first two of an agency lead it', async (t) => {
    const roles = []
    for (const user of [owner, admin, member]) {
      const reply = await send(app, user.host, { url: '/api/v1/users/me', headers: bearer(user) })
      roles.push(reply.json().role)
    }
    t.strictSame(roles, ['owner', 'admin', 'member'])
  })
  t.test('they refresh, and sign in with the one password', async (t) => {
    const refreshed = await send(app, member.host, post('/auth/refresh', { refresh_token: member.refresh_token }))
    t.equal(refreshed.statusCode, 200)
    const signedIn = await send(app, member.host, post('/auth/login', { email: member.email, password }))
    t.equal(signedIn.statusCode, 200)
  })
  t.test('another agency sees none of them', async (t) => {
    const rival = users.find(({ tenant_id }) => tenant_id !== owner.tenant_id) as Seeded
    const members = await send(app, rival.host, { url: '/api/v1/members', headers: bearer(rival) })
    t.equal(members.json().data.length, 4)
    t.notOk(members.json().data.some(({ user_id }: Seeded) => user_id === owner.user_id))
    const stranger = await send(app, owner.host, { url: '/api/v1/members', headers: bearer(rival) })
    t.match(stranger.json(), { status: 403, code: 'tenant_mismatch' })
  })
  t.test('one hash is shared, and the file is for nobody else', async (t) => {
    t.equal((await allRows(app.database, 'select distinct password_hash from users')).length, 1)
    t.equal(statSync(file).mode & 0o077, 0)
  })
  t.test('a name is used once', async (t) => {
    await t.rejects(seed(env), { code: 1, stderr: /load-… already/ })
    t.equal((await allRows(app.database, 'select from users')).length, 12)
  })
  t.test('some of them signed in, spread over the agencies', async (t) => {
    const some = join(temporaryFolder(t), 'tokens.json')
    await seed(env, '--name', 'some', '--tenants', '4', '--users', '5', '--sessions', '4', '--tokens', some)
    const agencies = readTokens(some).users.map(({ tenant_id }) => tenant_id)
    t.equal(agencies.length, 4)
    t.equal(new Set(agencies).size, 4)
  })
  t.test('a file that cannot be written is noticed before anybody is made', async (t) => {
    const before = await allRows(app.database, 'select count(*)::int as people from users')
    const file = join(temporaryFolder(t), 'nowhere', 'tokens.json')
    await t.rejects(seed(env, '--name', 'unwritten', '--tokens', file), { code: 1, stderr: /^ENOENT.*\n$/ })
    t.strictSame(await allRows(app.database, 'select count(*)::int as people from users'), before)
  })
  t.test('a seeding that is ended keeps what it made, and its file is whole', async (t) => {
    const half = join(temporaryFolder(t), 'tokens.json')
    const args = [
      ...process.execArgv,
      commandFile('seed'),
      '--name',
      'half',
      '--tenants',
      '5000',
      '--users',
      '10',
      '--tokens',
      half
    ]
    const child = spawn(process.execPath, args, {
      cwd: elsewhere,
      env: { ...process.env, ...env },
      stdio: ['ignore', 'ignore', 'pipe']
    })
    let said = ''
    child.stderr.setEncoding('utf8').on('data', (text: string) => {
      if (said === '') child.kill('SIGTERM')
      said += text
    })
    const [code] = await once(child, 'close')
    t.equal(code, 1)
    const { users } = readTokens(half)
    t.match(said, `ended early: ${users.length} people`)
    t.ok(users.length > 0 && users.length < 50_000)
    const made = `select email from users where email like '%@half-%' order by email`
    t.strictSame(
      (await allRows(app.database, made)).map(({ email }) => email),
      users.map(({ email }) => email).sort()
    )
  })
  t.test('row security is as it was', async (t) => {
    const open = `select relname from pg_class where relnamespace = 'public'::regnamespace and relkind in ('r', 'p')
      and not (relrowsecurity and relforcerowsecurity) and relname not like 'kysely%'`
    t.strictSame(await allRows(app.database, open), [])
  })
})

t.test('it refuses what it should not do', async (t) => {
  const production = {
    NODE_ENV: 'production',
    DATABASE_URL: 'postgres://aggios_app@127.0.0.1:1/nowhere',
    JWT_SECRET: 'b8Jc0wqk1Uo7mPz5vXr2Tn9Ye4Sa6Dg3',
    PASSWORD_PEPPER: 'h5Fz8Lx1Vb4Nq7Wm0Kt3Rj6Yc9Up2Gs5'
  }
  await t.rejects(seed(production), { code: 78, stderr: /--yes-production/ })
  await t.rejects(seed({}, '--users', '5001'), { code: 2, stderr: /^error: .*'5001'.* 5000\b.*\n$/ })
  await t.rejects(seed({}, '--verbose'), { code: 2, stderr: /^error: unknown option '--verbose'.*\n$/ })
  t.match(await seed({}, '--help'), { stdout: /^Usage: npm run seed -- .*--yes-production/s, stderr: '' })
  const nowhere = JSON.parse(process.env.TEST_POSTGRES as string).app.replace('DATABASE', 'nowhere')
  await t.rejects(seed({ DATABASE_URL: nowhere }), { code: 1, stderr: /^database "nowhere" does not exist\n$/ })
  await t.rejects(seed({ PORT: 'none' }), { code: 78, stderr: /PORT/ })
})

t.test('the embedded PostgreSQL is found while a server runs, and started where none does', async (t) => {
  const dir = temporaryFolder(t)
  const env = { DATA_DIR: join(dir, 'data') }
  const files = [join(dir, 'before.json'), join(dir, 'during.json')] as const
  await seed(env, '--name', 'before', '--tenants', '1', '--users', '2', '--tokens', files[0])
  const server = await startServer(t, env)
  await seed(env, '--name', 'during', '--tenants', '1', '--users', '2', '--tokens', files[1])
  for (const user of files.flatMap((file) => readTokens(file).users)) {
    const reply = await server.fetch('/api/v1/users/me', { headers: bearer(user) })
    t.match(await reply.json(), { email: user.email })
  }
})
