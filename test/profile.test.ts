import t from 'tap'
import {
  addMember,
  allRows,
  asOwner,
  createTenant,
  password,
  post,
  send,
  startApp,
  type Tenant,
  type Tokens
} from './harness.ts'
import { bearer, me } from './requests.ts'
import { here, patch, visit } from './tenant-requests.ts'

t.test('the person', async (t) => {
  const app = await startApp(t)
  const acme = await createTenant(app, 'acme')
  const rival = await createTenant(app, 'rival')
  const visitor = await visit(app, acme, rival, 'viewer')

  t.test('is shown as a member of the agency of the token', async (t) => {
    const body = (await acme.send(me)).json()
    t.strictSame(Object.keys(body).sort(), [
      'avatar_url',
      'created_at',
      'email',
      'email_verified',
      'id',
      'mfa_enabled',
      'name',
      'role',
      'tenant_id',
      'updated_at'
    ])
    t.match(body, {
      id: acme.owner.id,
      email: acme.owner.email,
      name: 'Owner of acme',
      tenant_id: acme.id,
      role: 'owner',
      email_verified: false
    })
    t.match((await rival.with(visitor.access_token, me)).json(), {
      id: acme.owner.id,
      tenant_id: rival.id,
      role: 'viewer'
    })
    t.strictSame(
      (await send(app, acme.host, { url: '/api/users/me', headers: bearer(acme.owner.tokens.access_token) })).json(),
      body
    )
  })
  t.test('has a tag for each agency, and a 304', async (t) => {
    const one = await acme.send(me)
    const two = await rival.with(visitor.access_token, me)
    t.not(one.headers.etag, two.headers.etag)
    const again = await acme.send({ url: me, headers: { 'if-none-match': one.headers.etag } })
    t.equal(again.statusCode, 304)
    t.equal(again.body, '')
    t.equal(
      (await rival.with(visitor.access_token, { url: me, headers: { 'if-none-match': one.headers.etag } })).statusCode,
      200
    )
  })
  t.test('changes its name, in every agency, and it is recorded where it was done', async (t) => {
    const before = await acme.send(me)
    const reply = await acme.send(patch(me, { name: 'Ada Lovelace' }, { 'if-match': before.headers.etag }))
    t.match(reply.json(), { id: acme.owner.id, name: 'Ada Lovelace' })
    t.not(reply.headers.etag, before.headers.etag)
    t.ok(Date.parse(reply.json().updated_at) > Date.parse(before.json().updated_at))
    t.equal((await rival.with(visitor.access_token, me)).json().name, 'Ada Lovelace')
    t.match((await acme.send(patch(me, { name: 'X' }, { 'if-match': before.headers.etag }))).json(), {
      status: 412,
      code: 'precondition_failed'
    })
    const rows = await allRows(app.database, "select * from audit_events where action = 'user.updated'")
    t.match(rows, [
      {
        tenant_id: acme.id,
        actor_id: acme.owner.id,
        detail: { before: { name: 'Owner of acme' }, after: { name: 'Ada Lovelace' } }
      }
    ])
    const same = await acme.send(patch(me, {}))
    t.strictSame(same.json(), reply.json())
    t.equal(same.headers.etag, reply.headers.etag)
    const members = await allRows(app.database, "select from audit_events where action = 'user.updated'")
    t.equal(members.length, 1, 'and nothing is recorded of nothing')
  })
  t.test('may do so in any role', async (t) => {
    t.equal((await rival.with(visitor.access_token, patch(me, { name: 'As a viewer' }))).statusCode, 200)
    t.equal((await acme.send(me)).json().name, 'As a viewer')
    t.equal((await rival.send(me)).json().name, 'Owner of rival', 'of nobody else')
  })
  t.test('has a name that is one', async (t) => {
    for (const name of ['', '   ', 'a\u0007b', 'x'.repeat(101), null, 1]) {
      t.match(
        (await acme.send(patch(me, { name }))).json(),
        { status: 400, errors: [{ path: '/body/name' }] },
        JSON.stringify(name)
      )
    }
    for (const name of ['Ada', 'Zoë Ñandú', '王小明', "O'Brien; drop table users", '🦊'.repeat(100)]) {
      t.equal((await acme.send(patch(me, { name }))).json().name, name)
    }
  })
})

t.test('the end of an identity', async (t) => {
  const app = await startApp(t)
  const acme = await createTenant(app, 'acme')
  const rival = await createTenant(app, 'rival')
  const ada = await createTenant(app, 'ada')
  const drop = (tenant: Tenant, body: unknown) => tenant.send({ method: 'DELETE', url: me, payload: body as object })

  t.test('demands the password', async (t) => {
    t.match((await drop(ada, { password: 'not the right password' })).json(), {
      status: 401,
      code: 'invalid_credentials'
    })
    for (const body of [{}, { password: '' }, { password: 7 }, { password, id: rival.owner.id }]) {
      t.match((await drop(ada, body)).json(), { status: 400, code: 'validation_failed' })
    }
    t.equal((await ada.anonymous({ method: 'DELETE', url: me, payload: { password } })).json().code, 'unauthenticated')
    t.equal((await ada.send(me)).statusCode, 200)
  })
  t.test('is refused to the last owner of an agency, and then nothing has changed', async (t) => {
    const tokens = await visit(app, ada, acme, 'member')
    t.match((await drop(ada, { password })).json(), { status: 409, code: 'last_owner' })
    const there = await acme.with(tokens.access_token, { method: 'DELETE', url: me, payload: { password } })
    t.match(there.json(), { status: 409, code: 'last_owner' }, 'from wherever it is asked')
    t.equal((await ada.send(me)).statusCode, 200)
    t.equal((await acme.with(tokens.access_token, me)).statusCode, 200)
    await addMember(app, ada, rival.owner.id, 'admin')
    t.match((await drop(ada, { password })).json(), { status: 409, code: 'last_owner' }, 'an admin is no owner')
  })
  t.test('takes sessions and memberships with it, everywhere, and only its own', async (t) => {
    await asOwner(app.database, ada.id, rival.owner.id, [
      ["update memberships set role = 'owner' where user_id = $1", [rival.owner.id]]
    ])
    const here2: Tokens = (await ada.send(post('/auth/switch', { tenant: 'acme' }))).json()
    const reply = await drop(ada, { password })
    t.equal(reply.statusCode, 204)
    for (const token of [ada.owner.tokens.access_token, here2.access_token]) {
      const asked = await send(app, 'localhost', { url: me, headers: bearer(token) })
      t.match(asked.json(), { status: 401, code: 'session_revoked' })
    }
    for (const { refresh_token } of [ada.owner.tokens, here2]) {
      t.equal((await send(app, 'localhost', post('/auth/refresh', { refresh_token }))).statusCode, 401)
    }
    t.match((await send(app, 'localhost', post('/auth/login', { email: ada.owner.email, password }))).json(), {
      status: 401,
      code: 'invalid_credentials'
    })
    const count = (text: string) => allRows(app.database, text, [ada.owner.id]).then((rows) => rows.length)
    t.equal(await count('select from users where id = $1'), 0)
    t.equal(await count('select from memberships where user_id = $1'), 0)
    t.equal(await count('select from sessions where user_id = $1'), 0)
    const rows = await allRows(
      app.database,
      "select tenant_id, actor_id from audit_events where action = 'user.deleted'"
    )
    t.strictSame(
      rows.map(({ tenant_id }) => tenant_id).sort(),
      [acme.id, ada.id].sort(),
      'each agency has it on record'
    )
    t.equal((await acme.send(here)).json().usage.members, 1)
    t.equal((await rival.send(me)).statusCode, 200)
    t.equal((await rival.send(post('/auth/switch', { tenant: 'ada' }))).statusCode, 200, 'the agency goes on')
  })
  t.test('frees the address', async (t) => {
    const body = { tenant: { name: 'Again', slug: 'again' }, name: 'Ada', email: ada.owner.email, password }
    const reply = await send(app, 'localhost', post('/auth/register', body))
    t.equal(reply.statusCode, 201)
    t.not(reply.json().user.id, ada.owner.id)
    t.match((await send(app, ada.host, post('/auth/login', { email: ada.owner.email, password }))).json(), {
      code: 'invalid_credentials'
    })
  })
  t.test('of two owners at the same moment leaves one', async (t) => {
    const one = await createTenant(app, 'one')
    const two = await createTenant(app, 'two')
    await addMember(app, one, two.owner.id, 'owner')
    await addMember(app, two, one.owner.id, 'owner')
    const replies = await Promise.all([drop(one, { password }), drop(two, { password })])
    t.strictSame(replies.map(({ statusCode }) => statusCode).sort(), [204, 409])
    t.equal(
      (
        await allRows(app.database, "select from memberships where role = 'owner' and tenant_id in ($1, $2)", [
          one.id,
          two.id
        ])
      ).length,
      2
    )
  })
  t.test('and who is a member of nothing is told so', async (t) => {
    const lone = await createTenant(app, 'lone')
    await asOwner(app.database, lone.id, lone.owner.id, [
      ['delete from memberships where user_id = $1', [lone.owner.id]]
    ])
    const login = (word: string) =>
      send(app, 'localhost', post('/auth/login', { email: lone.owner.email, password: word }))
    t.match((await login(password)).json(), { status: 403, code: 'not_a_member' })
    t.match((await login('not the right password')).json(), { status: 401, code: 'invalid_credentials' })
    t.match((await send(app, acme.host, post('/auth/login', { email: lone.owner.email, password }))).json(), {
      status: 401,
      code: 'invalid_credentials'
    })
  })
})
