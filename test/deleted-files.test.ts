import t from 'tap'
import { withClient } from './databases.ts'
import { contentOf, listNames, usageOf } from './file-requests.ts'
import { createFile, disagreements, type FileReply, storedObjects } from './forms.ts'
import {
  addMember,
  allRows,
  createTenant,
  eventually,
  password,
  post,
  startApp,
  type Tenant,
  type TestApp
} from './harness.ts'

/** Adds a member to an agency, and signs them in there. */
async function signInAs(app: TestApp, tenant: Tenant, role: string): Promise<{ id: string; token: string }> {
  const other = await createTenant(app, `${role}-of-${tenant.slug}`)
  await addMember(app, tenant, other.owner.id, role)
  const reply = await tenant.anonymous(post('/auth/login', { email: other.owner.email, password }))
  return { id: other.owner.id, token: reply.json().access_token }
}

t.test('a deleted file', async (t) => {
  const app = await startApp(t)
  const acme = await createTenant(app, 'acme')
  const [admin, member, viewer] = [
    await signInAs(app, acme, 'admin'),
    await signInAs(app, acme, 'member'),
    await signInAs(app, acme, 'viewer')
  ]
  const act = (token: string, method: 'DELETE' | 'POST', url: string) => acme.with(token, { method, url })
  const remove = (token: string, file: FileReply, query = '') =>
    act(token, 'DELETE', `/api/v1/files/${file.id}${query}`)
  const restore = (token: string, file: FileReply) => act(token, 'POST', `/api/v1/files/${file.id}/restore`)
  const usage = () => usageOf(acme)

  t.test('is nowhere but among the deleted ones, and comes back whole', async (t) => {
    const file = await createFile(acme, 'precious', 'precious.txt')
    t.equal((await remove(acme.owner.tokens.access_token, file)).statusCode, 204)
    for (const [method, path] of [
      ['GET', ''],
      ['GET', '/content'],
      ['GET', '/url'],
      ['DELETE', ''],
      ['POST', '/complete']
    ] as const) {
      t.equal(
        (await acme.send({ method, url: `/api/v1/files/${file.id}${path}` })).statusCode,
        404,
        `${method} ${path}`
      )
    }
    t.strictSame(await listNames(acme, {}), [])
    t.strictSame(await listNames(acme, { deleted: 'true' }), ['precious.txt'])
    t.equal(await usage(), 8, 'it takes room as long as it can come back')
    t.strictSame((await restore(acme.owner.tokens.access_token, file)).json(), file)
    t.equal((await acme.send(contentOf(file))).body, 'precious')
    t.match((await restore(acme.owner.tokens.access_token, file)).json(), { status: 409, code: 'conflict' })
    t.equal((await remove(acme.owner.tokens.access_token, file, '?permanent=true')).statusCode, 204)
  })
  t.test('is deleted and restored by its member, or any admin', async (t) => {
    const own = await createFile(acme, 'own', 'own.txt', 'text/plain', { token: member.token })
    const others = await createFile(acme, 'others', 'others.txt')
    t.match((await remove(viewer.token, own)).json(), { status: 403, code: 'forbidden' })
    t.match((await remove(member.token, others)).json(), { status: 403, code: 'forbidden' })
    t.equal((await remove(member.token, own)).statusCode, 204)
    t.match((await restore(viewer.token, own)).json(), { status: 403, code: 'forbidden' })
    t.equal((await restore(member.token, own)).statusCode, 200)
    t.equal((await remove(admin.token, own)).statusCode, 204)
    t.equal((await remove(admin.token, others)).statusCode, 204)
    t.match((await restore(member.token, others)).json(), { status: 403, code: 'forbidden' })
    t.match((await remove(member.token, others, '?permanent=true')).json(), { status: 403, code: 'forbidden' })
    t.equal((await restore(admin.token, others)).statusCode, 200)
    for (const file of [own, others]) await remove(admin.token, file, '?permanent=true')
  })
  t.test('is gone for good when that is asked for, and when its time is over', async (t) => {
    const [asked, late] = [await createFile(acme, 'asked'), await createFile(acme, 'late')]
    await remove(admin.token, asked)
    await remove(admin.token, asked, '?permanent=true')
    await remove(admin.token, late)
    t.equal((await restore(admin.token, asked)).statusCode, 404, 'there is no way back')
    await allRows(app.database, 'update files set expires_at = now() where id = $1', [late.id])
    t.equal((await restore(admin.token, late)).statusCode, 404)
    await app.objectSweep.run()
    await eventually(async () => (await usage()) === 0)
    t.strictSame(await disagreements(app, acme), [])
    t.strictSame(await listNames(acme, { deleted: 'true' }), [])
    for (const method of ['DELETE', 'GET'] as const) {
      t.equal((await acme.send({ method, url: `/api/v1/files/${asked.id}` })).statusCode, 404)
    }
  })
  t.test('has left its tracks in the audit log, one for each change', async (t) => {
    const { data } = (await acme.send('/api/v1/audit-events?limit=100')).json()
    const count = (action: string) => data.filter((event: { action: string }) => event.action === action).length
    t.equal(count('file.created'), 5)
    t.equal(count('file.restored'), 3)
    t.equal(count('file.deleted'), 10)
    t.equal(count('authz.denied'), 5)
  })
})

t.test('nothing is restored where nothing is kept', async (t) => {
  const app = await startApp(t, { FILE_RESTORE_FOR: '0' })
  const acme = await createTenant(app, 'acme')
  const file = await createFile(acme, 'x')
  t.equal((await acme.send({ method: 'DELETE', url: `/api/v1/files/${file.id}` })).statusCode, 204)
  t.equal((await acme.send({ method: 'POST', url: `/api/v1/files/${file.id}/restore` })).statusCode, 404)
  await eventually(async () => (await disagreements(app, acme)).length === 0 && storedObjects(app).objects.size === 0)
})

t.test('what is to be removed is held by nobody who asks for it, for a sweep leaves out what is held', async (t) => {
  const app = await startApp(t)
  const acme = await createTenant(app, 'acme')
  const [late, gone] = [await createFile(acme, 'late'), await createFile(acme, 'gone')]
  await allRows(app.database, "update files set status = 'deleted', expires_at = now() where id = $1", [late.id])
  await allRows(app.database, "update files set status = 'removing', expires_at = now() where id = $1", [gone.id])
  t.strictSame(await listNames(acme, { deleted: 'true' }), [])
  await withClient(app.database.postgres, async (sweep) => {
    await sweep.query('begin')
    t.equal((await sweep.query('select from files for update')).rowCount, 2)
    for (const { id } of [late, gone]) {
      // a request that tried to lock the row would wait, and be refused with 503
      t.equal((await acme.send({ method: 'POST', url: `/api/v1/files/${id}/restore` })).statusCode, 404)
      t.equal((await acme.send({ method: 'DELETE', url: `/api/v1/files/${id}?permanent=true` })).statusCode, 404)
    }
    await sweep.query('rollback')
  })
  await app.objectSweep.run()
  t.strictSame(await disagreements(app, acme), [])
  t.equal(storedObjects(app).objects.size, 0)
})
