import { setTimeout as sleep } from 'node:timers/promises'
import t from 'tap'
import { systemScope } from '../db/gate/gate-query.ts'
import { withClient } from './databases.ts'
import {
  addMember,
  allRows,
  createTenant,
  createTestDatabase,
  eventually,
  post,
  type Reply,
  send,
  startApp,
  startServer,
  type Tenant,
  type TestApp,
  testEnvironment
} from './harness.ts'

const invitation = (email: string, key: string | undefined, role = 'viewer') =>
  post('/invitations', { email, role }, key === undefined ? {} : { 'idempotency-key': key })
const newTenant = (slug: string, key: string) => post('/tenants', { name: 'More', slug }, { 'idempotency-key': key })

const replayed = (reply: Reply) => reply.headers['idempotency-replayed'] === 'true'

/** Counts the rows of an invitation, its mails and its events. */
const traces = (app: TestApp, email: string) =>
  allRows(
    app.database,
    `select i.id, (select count(*)::int from outbox o where o.subject_id = i.id) as mails,
      (select count(*)::int from audit_events a where a.target_id = i.id) as events
    from invitations i where i.email = $1`,
    [email]
  )

const keys = (app: TestApp) =>
  allRows(app.database, 'select tenant_id, user_id, route, key from idempotency_keys order by key, tenant_id, user_id')

/** Makes the owner of a new agency a member of this one. Resolves to their token here. */
async function join(app: TestApp, tenant: Tenant, slug: string, role: string): Promise<string> {
  const own = await createTenant(app, slug)
  await addMember(app, tenant, own.owner.id, role)
  const reply = await send(
    app,
    'localhost',
    post('/auth/switch', { tenant: tenant.slug }, { authorization: `Bearer ${own.owner.tokens.access_token}` })
  )
  return reply.json().access_token
}

t.test('a request that is sent again', async (t) => {
  const app = await startApp(t, { SMTP_URL: 'smtp://127.0.0.1:9' })
  const acme = await createTenant(app, 'acme')

  t.test('gets the same bytes, and makes nothing', async (t) => {
    const first = await acme.send(invitation('ada@example.com', '"one"'))
    t.equal(first.statusCode, 201)
    t.notOk(replayed(first))
    for (const key of ['"one"', 'one']) {
      const again = await acme.send(invitation('ada@example.com', key))
      t.equal(again.statusCode, 201)
      t.ok(replayed(again))
      t.equal(again.body, first.body)
      t.equal(again.headers['content-type'], first.headers['content-type'])
      t.not(again.headers['x-request-id'], first.headers['x-request-id'])
    }
    t.match(await traces(app, 'ada@example.com'), [{ id: first.json().id, mails: 1, events: 1 }])
  })
  t.test('gets them also when what was made has changed or gone since', async (t) => {
    const first = await acme.send(invitation('gone@example.com', 'gone'))
    await acme.send({ method: 'DELETE', url: `/api/v1/invitations/${first.json().id}` })
    const again = await acme.send(invitation('gone@example.com', 'gone'))
    t.equal(again.body, first.body)
    t.strictSame(await traces(app, 'gone@example.com'), [])
  })
  t.test('may have its members in another order', async (t) => {
    const first = await acme.send(invitation('order@example.com', 'order'))
    const again = await acme.send(
      post('/invitations', { role: 'viewer', email: 'order@example.com' }, { 'idempotency-key': 'order' })
    )
    t.equal(again.body, first.body)
  })
  t.test('with another body is refused, and the first reply stays', async (t) => {
    const first = await acme.send(invitation('first@example.com', 'reused'))
    for (const other of [
      invitation('other@example.com', 'reused'),
      invitation('first@example.com', 'reused', 'admin')
    ]) {
      t.match((await acme.send(other)).json(), { status: 422, code: 'idempotency_key_reused' })
    }
    t.strictSame(await traces(app, 'other@example.com'), [])
    t.equal((await acme.send(invitation('first@example.com', 'reused'))).body, first.body)
  })
  t.test('without a key is another request', async (t) => {
    t.equal((await acme.send(invitation('plain@example.com', undefined))).statusCode, 201)
    t.match((await acme.send(invitation('plain@example.com', undefined))).json(), { code: 'already_invited' })
    t.match((await acme.send(invitation('plain@example.com', 'a new key'.replaceAll(' ', '-')))).json(), {
      code: 'already_invited'
    })
  })
  t.test('makes an agency once, with its tag', async (t) => {
    const first = await acme.send(newTenant('more', 'more'))
    const again = await acme.send(newTenant('more', 'more'))
    t.equal(first.statusCode, 201)
    t.ok(replayed(again))
    t.equal(again.body, first.body)
    t.match(first.headers.etag, /^"1-[0-9a-f]{12}-1-0"$/)
    t.equal(again.headers.etag, first.headers.etag)
    const rows = await allRows(
      app.database,
      `select m.user_id, m.role, (select count(*)::int from audit_events a where a.tenant_id = t.id) as events
      from tenants t join memberships m on m.tenant_id = t.id where slug = 'more'`
    )
    t.strictSame(rows, [{ user_id: acme.owner.id, role: 'owner', events: 1 }])
    const stored = (await keys(app)).filter((row) => row.key === 'more')
    t.match(stored, [{ tenant_id: acme.id, user_id: acme.owner.id, route: 'POST /api/v1/tenants' }])
    t.equal((await send(app, 'more.localhost', '/api/v1/health/ready')).statusCode, 200, 'and its host is known')
  })
  t.test('can be read by a page of another origin', async (t) => {
    const { headers } = await acme.send(invitation('ada@example.com', 'one'))
    t.equal(headers['idempotency-replayed'], 'true')
    const origin = 'http://acme.localhost'
    const again = await acme.send({
      ...invitation('ada@example.com', 'one'),
      headers: { 'idempotency-key': 'one', origin }
    })
    t.match(again.headers['access-control-expose-headers'], /Idempotency-Replayed/)
  })
})

t.test('a refusal stores nothing, and the key can be used again', async (t) => {
  const app = await startApp(t)
  const acme = await createTenant(app, 'acme')
  await createTenant(app, 'rival')

  t.match((await acme.send(invitation('not an address', 'k1'))).json(), { code: 'validation_failed' })
  t.match((await acme.send(invitation(acme.owner.email, 'k1'))).json(), { code: 'already_a_member' })
  t.match((await acme.send(newTenant('rival', 'k2'))).json(), { code: 'slug_taken' })
  t.match((await acme.send(newTenant('www', 'k2'))).json(), { code: 'slug_taken' })
  t.strictSame(await keys(app), [])

  // a reply that can't be stored is not carried out either
  const rename = (name: string, to: string) =>
    withClient(app.database.owner, (owner) => owner.query(`alter table ${name} rename to ${to}`))
  await rename('audit_events', 'elsewhere')
  t.match((await acme.send(invitation('ada@example.com', 'k1'))).json(), { status: 500 })
  await rename('elsewhere', 'audit_events')
  t.strictSame(await keys(app), [])
  t.strictSame(await traces(app, 'ada@example.com'), [])

  t.equal((await acme.send(invitation('ada@example.com', 'k1'))).statusCode, 201)
  t.equal((await acme.send(newTenant('second', 'k2'))).statusCode, 201)
  t.match(
    (await keys(app)).map(({ key, tenant_id }) => [key, tenant_id]),
    [
      ['k1', acme.id],
      ['k2', acme.id]
    ]
  )
})

t.test('a key', async (t) => {
  const app = await startApp(t)
  const acme = await createTenant(app, 'acme')
  const rival = await createTenant(app, 'rival')
  let count = 0
  const ask = (key: string) => acme.send(invitation(`person-${++count}@example.com`, key))

  t.test('is 1 to 255 visible characters, in quotes or bare', async (t) => {
    const good = [
      'a',
      '"b"',
      'c'.repeat(255),
      `"${'d'.repeat(255)}"`,
      '"an \\"inner\\" one"'.replaceAll(' ', '_'),
      "it's",
      '"\\\\"'
    ]
    for (const key of good) t.equal((await ask(key)).statusCode, 201, key.slice(0, 20))
    const long = `"${'\\"'.repeat(255)}"`
    t.equal((await ask(long)).statusCode, 201, 'as long as it may be once it is unquoted')
    const bad = ['', '""', '"', '"open', 'open"', 'a"b', 'e'.repeat(256), `"${'f'.repeat(256)}"`, 'a b', '"a b"', 'é']
    for (const key of [...bad, '"a";b=1', '"a", "b"', '"\\n"', 'a\\b', '\u007f']) {
      t.match((await ask(key)).json(), { status: 400, code: 'validation_failed' }, key.slice(0, 20))
    }
    const twice = await acme.send({
      ...invitation('twice@example.com', undefined),
      headers: { 'idempotency-key': ['a1', 'a2'] as never }
    })
    t.equal(twice.statusCode, 400, 'and there is one')
  })
  t.test('of another agency, person or route is another one', async (t) => {
    const colleague = await join(app, acme, 'colleague', 'admin')
    const mine = await acme.send(invitation('same@example.com', 'same'))
    const theirs = await rival.send(invitation('same@example.com', 'same'))
    t.equal(theirs.statusCode, 201)
    t.notOk(replayed(theirs))
    t.not(theirs.json().id, mine.json().id)
    const other = await acme.with(colleague, invitation('same@example.com', 'same'))
    t.match(other.json(), { code: 'already_invited' }, 'who finds the address invited, and is not told the reply')
    t.equal((await acme.with(colleague, invitation('theirs@example.com', 'same'))).statusCode, 201)
    t.equal((await acme.send(newTenant('same', 'same'))).statusCode, 201)
    t.equal((await acme.send(invitation('same@example.com', 'same'))).body, mine.body)
    t.equal((await keys(app)).filter(({ key }) => key === 'same').length, 4)
  })
  t.test('of one person in two agencies is two', async (t) => {
    await addMember(app, rival, acme.owner.id, 'admin')
    const reply = await acme.send(post('/auth/switch', { tenant: 'rival' }))
    const elsewhere = reply.json().access_token
    const here = await acme.send(invitation('two@example.com', 'two'))
    const there = await rival.with(elsewhere, invitation('two@example.com', 'two'))
    t.equal(there.statusCode, 201)
    t.not(there.json().id, here.json().id)
  })
  t.test('does nothing where nothing is made', async (t) => {
    const call = {
      method: 'PATCH',
      url: '/api/v1/users/me',
      payload: { name: 'Ada' },
      headers: { 'idempotency-key': 'p' }
    } as const
    const [first, second] = [await acme.send(call), await acme.send({ ...call, payload: { name: 'Eve' } })]
    t.equal(first.json().name, 'Ada')
    t.equal(second.json().name, 'Eve')
    t.strictSame(
      (await keys(app)).filter(({ key }) => key === 'p'),
      []
    )
  })
  t.test('can not be made to hold what is secret', async (t) => {
    const document = app.swagger() as unknown as { paths: Record<string, Record<string, Record<string, never>>> }
    const operations = Object.values(document.paths).flatMap((path) => Object.values(path))
    const takesKey = operations.filter(({ parameters = [] }: { parameters?: { name: string }[] }) =>
      parameters.some(({ name }) => name === 'idempotency-key')
    ) as unknown as { operationId: string; responses: Record<string, unknown> }[]
    const replies = takesKey.map(({ operationId, responses }) => {
      const { content } = (responses['201'] ?? responses['202']) as {
        content: Record<string, { schema: { $ref: string } }>
      }
      return [operationId, content['application/json']?.schema.$ref.split('/').at(-1)]
    })
    t.strictSame(Object.fromEntries(replies), {
      createInvitation: 'Invitation',
      createTenant: 'Tenant',
      replayWebhook: 'WebhookReplay',
      replayWebhookDelivery: 'WebhookDelivery',
      testWebhook: 'WebhookDelivery'
    })
    const bodies = (await allRows(app.database, 'select body from idempotency_keys')).map(({ body }) => body).join()
    t.notMatch(bodies, /token|secret|password/)
  })
})

t.test('while the first request runs', async (t) => {
  const app = await startApp(t)
  const acme = await createTenant(app, 'acme')
  const rival = await createTenant(app, 'rival')
  await withClient(app.database.postgres, async (blocker) => {
    await blocker.query('begin; lock table invitations in share mode')
    const running = acme.send(invitation('slow@example.com', 'slow'))
    await eventually(async () => (await waiting(app)) === 1)
    const again = await acme.send(invitation('slow@example.com', 'slow'))
    t.match(again.json(), { status: 409, code: 'idempotency_key_in_use' })
    t.equal(again.headers['retry-after'], '1')
    t.match((await acme.send(invitation('else@example.com', 'slow'))).json(), { code: 'idempotency_key_in_use' })
    const theirs = rival.send(invitation('slow@example.com', 'slow'))
    await eventually(async () => (await waiting(app)) === 2)
    await blocker.query('rollback')
    t.equal((await running).statusCode, 201)
    t.equal((await theirs).statusCode, 201, 'another agency waits for nobody but the table')
    t.equal((await acme.send(invitation('slow@example.com', 'slow'))).body, (await running).body)
  })
})

/** The number of statements of the server that wait for a lock. */
async function waiting(app: TestApp): Promise<number> {
  const text = `select from pg_stat_activity where datname = current_database() and usename = 'aggios_app' and wait_event_type = 'Lock'`
  return (await allRows(app.database, text)).length
}

t.test('a repetition is a request like any other', async (t) => {
  const app = await startApp(t)
  const acme = await createTenant(app, 'acme')
  const admin = await join(app, acme, 'admins', 'admin')
  const { user_id } = JSON.parse(Buffer.from(admin.split('.')[1] as string, 'base64url').toString())
  const again = (token: string) => acme.with(token, invitation('ada@example.com', 'k'))
  t.equal((await again(admin)).statusCode, 201)
  t.ok(replayed(await again(admin)))

  t.test('of somebody who is no longer allowed to it is refused', async (t) => {
    const lowered = await acme.send({ method: 'PATCH', url: `/api/v1/members/${user_id}`, payload: { role: 'viewer' } })
    t.equal(lowered.statusCode, 200)
    t.match((await again(admin)).json(), { status: 401, code: 'token_expired' })
    const [home] = await allRows(app.database, "select id from tenants where slug = 'admins'")
    t.ok(home)
    const signedIn = await send(
      app,
      acme.host,
      post('/auth/login', { email: 'owner@admins.example', password: 'correct horse battery' })
    )
    const viewer = await again(signedIn.json().access_token)
    t.match(viewer.json(), { status: 403, code: 'forbidden' })
    t.notMatch(viewer.body, 'ada@example.com')
  })
  t.test('on the host of another agency it is refused', async (t) => {
    const rival = await createTenant(app, 'rival')
    const call = invitation('ada@example.com', 'k')
    const reply = await rival.with(acme.owner.tokens.access_token, call)
    t.match(reply.json(), { status: 403, code: 'tenant_mismatch' })
  })
  t.test('of somebody who has left finds nothing, and nothing of theirs is kept', async (t) => {
    t.equal((await keys(app)).filter((row) => row.user_id === user_id).length, 1)
    t.equal((await acme.send({ method: 'DELETE', url: `/api/v1/members/${user_id}` })).statusCode, 204)
    t.strictSame(
      (await keys(app)).filter((row) => row.user_id === user_id),
      []
    )
    t.match((await again(admin)).json(), { status: 401, code: 'session_revoked' })
  })
  t.test('of somebody who leaves at that moment makes nothing that nobody may ask for', async (t) => {
    const token = await join(app, acme, 'leaver', 'admin')
    const [leaver] = await allRows(app.database, "select id from users where email = 'owner@leaver.example'")
    await withClient(app.database.postgres, async (other) => {
      // without a revocation, as if this process had not read it yet
      await other.query('begin')
      await other.query('delete from memberships where tenant_id = $1 and user_id = $2', [acme.id, leaver?.id])
      const asked = acme.with(token, invitation('late@example.com', 'late'))
      await eventually(async () => (await waiting(app)) === 1)
      await other.query('commit')
      t.match((await asked).json(), { status: 401, code: 'session_revoked' })
    })
    t.strictSame(await traces(app, 'late@example.com'), [])
  })
  t.test('of somebody whose identity has ended finds nothing', async (t) => {
    const token = await join(app, acme, 'ended', 'admin')
    await createTenant(app, 'keeper')
    t.equal((await acme.with(token, invitation('last@example.com', 'last'))).statusCode, 201)
    const [person] = await allRows(app.database, "select id from users where email = 'owner@ended.example'")
    // so that their own agency keeps an owner
    const [own] = await allRows(app.database, "select id from tenants where slug = 'ended'")
    const other = await createTenant(app, 'heir')
    await addMember(app, { id: own?.id } as Tenant, other.owner.id, 'owner')
    const reply = await acme.with(token, {
      method: 'DELETE',
      url: '/api/v1/users/me',
      payload: { password: 'correct horse battery' }
    })
    t.equal(reply.statusCode, 204)
    t.strictSame(
      (await keys(app)).filter((row) => row.user_id === person?.id),
      []
    )
  })
})

t.test('after a day', async (t) => {
  const app = await startApp(t, { TENANT_PURGE_AFTER: '0' })
  const acme = await createTenant(app, 'acme')
  const expire = (key: string) =>
    allRows(app.database, "update idempotency_keys set expires_at = now() - interval '1 second' where key = $1", [key])
  const first = await acme.send(invitation('ada@example.com', 'old'))

  t.test('and not before, a key is new', async (t) => {
    const [row] = await allRows(
      app.database,
      "select extract(epoch from expires_at - now())::int as seconds from idempotency_keys where key = 'old'"
    )
    t.ok(row?.seconds > 86_400 - 60 && row?.seconds <= 86_400, `it is kept for ${row?.seconds} s more`)
    await acme.send({ method: 'DELETE', url: `/api/v1/invitations/${first.json().id}` })
    await expire('old')
    const again = await acme.send(invitation('ada@example.com', 'old'))
    t.equal(again.statusCode, 201)
    t.notOk(replayed(again))
    t.not(again.json().id, first.json().id)
    t.equal((await acme.send(invitation('ada@example.com', 'old'))).body, again.body)
  })
  t.test('it stands for whatever comes next', async (t) => {
    await expire('old')
    t.equal((await acme.send(invitation('eve@example.com', 'old'))).statusCode, 201)
  })
  t.test('it is swept, whosever it is, and the others stay', async (t) => {
    const rival = await createTenant(app, 'rival')
    await rival.send(invitation('ada@example.com', 'dead'))
    await acme.send(invitation('bob@example.com', 'alive'))
    await expire('dead')
    const { sweepIdempotencyKeys } = await import('../db/queries/directory.ts')
    t.strictSame(await app.gate.query(systemScope, sweepIdempotencyKeys, { batch: 100 }), [{ removed: 1 }])
    t.strictSame(
      (await keys(app)).map(({ key }) => key),
      ['alive', 'old']
    )
  })
  t.test('and with its agency it goes at once', async (t) => {
    t.equal((await acme.send({ method: 'DELETE', url: '/api/v1/tenant', payload: { slug: 'acme' } })).statusCode, 202)
    await sleep(10)
    const { purgeTenant } = await import('../db/queries/directory.ts')
    await app.gate.query(systemScope, purgeTenant, {})
    t.strictSame(await keys(app), [])
  })
})

t.test('fifty at once on two processes', async (t) => {
  const database = await createTestDatabase(t)
  const env = testEnvironment(database, { DATABASE_POOL: '30' })
  const servers = await Promise.all([startServer(t, env), startServer(t, env)])
  const app = await startApp(t, {}, database)
  const acme = await createTenant(app, 'acme')
  const authorization = `Bearer ${acme.owner.tokens.access_token}`

  for (const [path, payload] of [
    ['/invitations', { email: 'ada@example.com', role: 'viewer' }],
    ['/tenants', { name: 'More', slug: 'more' }]
  ] as const) {
    const ask = async (index: number) => {
      const reply = await servers[index % 2]?.fetch(`/api/v1${path}`, {
        method: 'POST',
        headers: { authorization, 'content-type': 'application/json', 'idempotency-key': 'fifty' },
        body: JSON.stringify(payload)
      })
      return { status: reply?.status, replayed: reply?.headers.get('idempotency-replayed'), body: await reply?.text() }
    }
    const replies = await Promise.all(Array.from({ length: 50 }, (_, index) => ask(index)))
    const good = replies.filter(({ status }) => status === 201)
    t.equal(good.filter((reply) => reply.replayed === null).length, 1, `one of ${good.length} made it`)
    t.equal(new Set(good.map(({ body }) => body)).size, 1, 'and all say the same')
    for (const { status, body } of replies) {
      if (status !== 201) t.match(JSON.parse(String(body)), { status: 409, code: 'idempotency_key_in_use' })
    }
    const later = await ask(51)
    t.equal(later.body, good[0]?.body)
    t.equal(later.replayed, 'true')
  }
  t.match(await traces(app, 'ada@example.com'), [{ mails: 1, events: 1 }])
  t.equal((await allRows(database, "select from tenants where slug = 'more'")).length, 1)
})
