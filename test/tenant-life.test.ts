import t from 'tap'
import { systemScope } from '../db/gate/gate-query.ts'
import { purgeTenant } from '../db/queries/directory.ts'
import { createFile } from './forms.ts'
import {
  allRows,
  commandFile,
  createTenant,
  elsewhere,
  eventually,
  password,
  post,
  run,
  send,
  startApp,
  startServer,
  temporaryFolder,
  testEnvironment
} from './harness.ts'

const deletion = (slug: string) => ({ method: 'DELETE', url: '/api/v1/tenant', payload: { slug } }) as const

t.test('an operator suspends and resumes an agency, and every process knows within a second', async (t) => {
  const app = await startApp(t)
  const acme = await createTenant(app, 'acme')
  const env = testEnvironment(app.database)
  const command = (...args: string[]) =>
    run(process.execPath, [...process.execArgv, commandFile('tenant'), ...args], {
      cwd: elsewhere,
      env: { ...process.env, ...env }
    })

  const { stderr } = await command('suspend', 'acme')
  t.equal(stderr, 'acme is suspended\n')
  await eventually(async () => (await acme.send('/api/v1/users/me')).json().code === 'tenant_suspended', 1500)
  t.match((await acme.anonymous('/api/v1/tenant')).json(), { status: 404, code: 'tenant_not_found' })
  const refreshed = await acme.anonymous(post('/auth/refresh', { refresh_token: acme.owner.tokens.refresh_token }))
  t.match(refreshed.json(), { status: 403, code: 'tenant_suspended' })

  await command('resume', 'acme')
  await eventually(async () => (await acme.send('/api/v1/users/me')).statusCode === 200, 1500)
  const actions = (await acme.send('/api/v1/audit-events')).json().data.map((each: { action: string }) => each.action)
  t.strictSame(actions.slice(0, 2), ['tenant.resumed', 'tenant.suspended'])

  await t.rejects(command('suspend', 'nowhere'), { code: 1, stderr: 'there is no agency called nowhere\n' })
  await t.rejects(command('explode', 'acme'), { code: 2, stderr: /^error: unknown command 'explode'.*\n$/ })
})

t.test('the command finds the embedded PostgreSQL of a running server', async (t) => {
  const dir = temporaryFolder(t)
  const env = { DATA_DIR: dir, RATE_LIMIT_AUTH: '0' }
  const server = await startServer(t, env)
  const body = { tenant: { name: 'Acme', slug: 'acme' }, name: 'Ada', email: 'ada@acme.example', password }
  const headers = { 'content-type': 'application/json' }
  await server.fetch('/api/v1/auth/register', { method: 'POST', headers, body: JSON.stringify(body) })
  const { stderr } = await run(process.execPath, [...process.execArgv, commandFile('tenant'), 'suspend', 'acme'], {
    cwd: elsewhere,
    env: { ...process.env, ...env }
  })
  t.equal(stderr, 'acme is suspended\n')
  server.child.kill('SIGTERM')
  await server.exited
})

t.test('an owner takes everything along, and nothing of others', async (t) => {
  const app = await startApp(t)
  const acme = await createTenant(app, 'acme')
  const rival = await createTenant(app, 'rival')
  await acme.send(post('/invitations', { email: 'ana@example.com', role: 'member' }))
  const file = await createFile(acme, 'take me along', 'notes.txt', 'text/plain', { purpose: 'contract' })
  const deleted = await createFile(acme, 'me too')
  await acme.send({ method: 'DELETE', url: `/api/v1/files/${deleted.id}` })
  await acme.send({ method: 'POST', url: '/api/v1/files/resumable', headers: { 'upload-length': '5' } })
  await createFile(rival, 'not me')
  // more than one page of one table
  await allRows(
    app.database,
    "insert into audit_events (tenant_id, action) select $1, 'test.event' from generate_series(1, 2500)",
    [acme.id]
  )
  const reply = await acme.send('/api/v1/tenant/export')
  t.equal(reply.headers['content-type'], 'application/x-ndjson; charset=utf-8')
  const lines = reply.body
    .trimEnd()
    .split('\n')
    .map((line) => JSON.parse(line))
  const of = (table: string) => lines.filter((line) => line.table === table).map(({ row }) => row)
  t.match(of('tenant'), [{ id: acme.id, slug: 'acme' }])
  t.match(of('member'), [{ user_id: acme.owner.id, role: 'owner' }])
  t.equal(of('session').length, 1)
  t.match(of('invitation'), [{ email: 'ana@example.com' }])
  t.strictSame(
    of('file').map(({ created_at, ...row }) => ({ ...row, created_at: new Date(created_at).toISOString() })),
    [
      { ...file, status: 'ready' },
      { ...deleted, status: 'deleted' }
    ],
    'the files with their sums, and not what is still arriving'
  )
  t.equal(of('audit_event').filter(({ action }) => action === 'test.event').length, 2500)
  t.equal(new Set(of('audit_event').map(({ id }) => id)).size, of('audit_event').length, 'no row twice')
  t.notMatch(reply.body, rival.id)
  t.notMatch(reply.body, 'argon2')
})

t.test('an owner deletes the agency', async (t) => {
  const app = await startApp(t, { TENANT_PURGE_AFTER: '3600' })
  const acme = await createTenant(app, 'acme')
  const rival = await createTenant(app, 'rival')
  const another = { name: 'Another', slug: 'another' }
  await acme.send(post('/tenants', another))

  t.test('only when its slug confirms it', async (t) => {
    t.match((await acme.send(deletion('rival'))).json(), { status: 400, errors: [{ path: '/body/slug' }] })
    t.equal((await acme.send('/api/v1/tenant')).statusCode, 200)
  })
  t.test('its tokens stop at once, and its people can still work elsewhere', async (t) => {
    t.equal((await acme.send(deletion('acme'))).statusCode, 202)
    t.match((await acme.send('/api/v1/users/me')).json(), { status: 403, code: 'tenant_suspended' })
    t.match((await acme.anonymous('/api/v1/tenant')).json(), { status: 404, code: 'tenant_not_found' })
    const elsewhere = await send(app, 'localhost', post('/auth/login', { email: acme.owner.email, password }))
    t.equal(elsewhere.statusCode, 200, 'the active agency is the one that is taken')
    t.equal((await rival.send('/api/v1/tenant')).statusCode, 200)
  })
  t.test('it is purged when its time has come, not before, and nothing else goes with it', async (t) => {
    t.strictSame(await app.gate.query(systemScope, purgeTenant, {}), [{ id: null }])
    await allRows(app.database, 'update tenants set purge_at = now() where id = $1', [acme.id])
    t.strictSame(await app.gate.query(systemScope, purgeTenant, {}), [{ id: acme.id }])
    t.strictSame(await app.gate.query(systemScope, purgeTenant, {}), [{ id: null }])
    for (const table of ['memberships', 'sessions', 'invitations', 'outbox']) {
      t.strictSame(await allRows(app.database, `select from ${table} where tenant_id = $1`, [acme.id]), [], table)
    }
    const rows = await allRows(app.database, 'select action from audit_events where tenant_id = $1', [acme.id])
    t.ok(rows.some(({ action }) => action === 'tenant.purged'))
    t.equal((await allRows(app.database, 'select from tenants')).length, 2)
    t.equal((await rival.send('/api/v1/members')).json().data.length, 1)
  })
  t.test('the slug is free again then', async (t) => {
    t.equal((await acme.anonymous('/api/v1/tenant')).json().code, 'tenant_not_found')
    t.equal((await rival.send(post('/tenants', { name: 'New', slug: 'acme' }))).statusCode, 201)
    t.equal((await acme.anonymous('/api/v1/tenant')).json().code, 'unauthenticated')
  })
})
