import t from 'tap'
import {
  addMember,
  allRows,
  createTenant,
  createTestDatabase,
  password,
  post,
  send,
  startApp,
  type Tenant
} from './harness.ts'
import { bearer, me } from './requests.ts'
import { here, patch, production, visit } from './tenant-requests.ts'
import { decode } from './tokens.ts'

t.test('the agency', async (t) => {
  const app = await startApp(t)
  const acme = await createTenant(app, 'acme')
  const rival = await createTenant(app, 'rival')

  t.test('is shown as it is', async (t) => {
    const reply = await acme.send(here)
    t.equal(reply.statusCode, 200)
    const body = reply.json()
    t.strictSame(Object.keys(body).sort(), [
      'created_at',
      'id',
      'logo_url',
      'name',
      'plan',
      'settings',
      'slug',
      'status',
      'updated_at',
      'usage'
    ])
    t.match(body, {
      id: acme.id,
      slug: 'acme',
      name: 'The acme agency',
      status: 'active',
      settings: {},
      usage: { members: 1 }
    })
    t.match(body.created_at, /^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z$/)
    t.match(reply.headers.etag, /^"[^"]+"$/)
  })
  t.test('is not sent again to who has it', async (t) => {
    const { headers } = await acme.send(here)
    const etag = headers.etag as string
    const get = (tag: string) => acme.send({ url: here, headers: { 'if-none-match': tag } })
    for (const tag of [etag, `W/${etag}`, `"x", ${etag}`, `"x",W/${etag}`, '*']) {
      const reply = await get(tag)
      t.equal(reply.statusCode, 304, tag)
      t.equal(reply.body, '')
      t.equal(reply.headers.etag, etag)
      t.equal(reply.headers['cache-control'], headers['cache-control'])
      t.equal(reply.headers.vary, headers.vary)
    }
    for (const tag of ['"x"', 'x', '', etag.replaceAll('"', ''), etag.slice(0, -1), '"', 'W/', ',,,']) {
      t.equal((await get(tag)).statusCode, 200, tag)
    }
  })
  t.test('is changed member by member', async (t) => {
    const before = await acme.send(here)
    const renamed = await acme.send(patch(here, { name: 'Acme & Söhne' }))
    t.match(renamed.json(), { id: acme.id, slug: 'acme', name: 'Acme & Söhne', settings: {} })
    t.not(renamed.headers.etag, before.headers.etag)
    const origins = ['https://app.acme.example', 'http://intranet.acme.example:8080']
    const allowed = await acme.send(patch(here, { settings: { allowed_origins: origins } }))
    t.match(allowed.json(), { name: 'Acme & Söhne', settings: { allowed_origins: origins } }, 'the name stays')
    const settled = await acme.send(patch(here, { settings: {} }))
    t.strictSame(settled.json(), allowed.json(), 'the settings stay')
    const emptied = await acme.send(patch(here, { settings: { allowed_origins: [] } }))
    t.strictSame(emptied.json().settings, { allowed_origins: [] })
    const removed = await acme.send(patch(here, { settings: { allowed_origins: null } }))
    t.strictSame(removed.json().settings, {})
    const now = await acme.send(here)
    t.strictSame(now.json(), removed.json())
    t.equal(now.headers.etag, removed.headers.etag)
    t.equal((await rival.send(here)).json().name, 'The rival agency')
  })
  t.test('is not changed by nothing', async (t) => {
    const before = await acme.send(here)
    const audit = () =>
      allRows(app.database, "select from audit_events where action = 'tenant.updated'").then((rows) => rows.length)
    const count = await audit()
    for (const body of [{}, { name: before.json().name }, { settings: {} }]) {
      const reply = await acme.send(patch(here, body))
      t.equal(reply.statusCode, 200)
      t.strictSame(reply.json(), before.json())
      t.equal(reply.headers.etag, before.headers.etag)
    }
    t.equal(await audit(), count)
  })
  t.test('takes a name that is one, and origins that are', async (t) => {
    for (const name of ['', ' ', '\t', 'a\nb', 'a\0b', 'x'.repeat(101), null, 7, ['x']]) {
      t.match(
        (await acme.send(patch(here, { name }))).json(),
        { status: 400, errors: [{ path: '/body/name' }] },
        JSON.stringify(name)
      )
    }
    for (const origin of [
      '*',
      'null',
      '',
      'acme.example',
      '//acme.example',
      'https://',
      'https://app.acme.example/',
      'https://app.acme.example/path',
      'https://app.acme.example?x',
      'https://APP.acme.example',
      'https://app.acme.example:443',
      'http://app.acme.example:80',
      'https://user@app.acme.example',
      'https://app.acme.example:99999',
      'https://*.acme.example',
      'https://app.acme.example,https://evil.example',
      ' https://app.acme.example',
      'https://app.acme.example\n',
      'javascript:alert(1)',
      'file:///etc/passwd',
      'ws://app.acme.example'
    ]) {
      const reply = await acme.send(patch(here, { settings: { allowed_origins: ['https://good.example', origin] } }))
      t.match(
        reply.json(),
        { status: 400, code: 'validation_failed', errors: [{ path: '/body/settings/allowed_origins/1' }] },
        JSON.stringify(origin)
      )
    }
    for (const value of [
      'https://a.example',
      [1],
      [null],
      {},
      Array.from({ length: 51 }, (_, index) => `https://a${index}.example`),
      ['https://a.example', 'https://a.example']
    ]) {
      t.match((await acme.send(patch(here, { settings: { allowed_origins: value } }))).json(), {
        status: 400,
        code: 'validation_failed'
      })
    }
    const both = await acme.send(patch(here, { settings: { allowed_origins: ['x', 'https://good.example', 'y'] } }))
    t.strictSame(
      both.json().errors.map(({ path }: { path: string }) => path),
      ['/body/settings/allowed_origins/0', '/body/settings/allowed_origins/2']
    )
    t.strictSame((await acme.send(here)).json().settings, {})
  })
  t.test('is changed only by who has seen the newest', async (t) => {
    const old = (await acme.send(here)).headers.etag as string
    const change = (name: string, tag: string) => acme.send(patch(here, { name }, { 'if-match': tag }))
    const first = await change('First', old)
    t.equal(first.statusCode, 200)
    for (const tag of [old, `W/${old}`, '"x"', 'x', '', `${old}, "x"`]) {
      t.match((await change('Second', tag)).json(), { status: 412, code: 'precondition_failed' }, tag)
    }
    t.equal((await acme.send(here)).json().name, 'First')
    t.equal((await change('Third', `"x", ${first.headers.etag}`)).statusCode, 200)
    t.equal((await change('Fourth', '*')).statusCode, 200)
    const weak = `W/${(await acme.send(here)).headers.etag}`
    t.equal((await change('Fifth', weak)).statusCode, 200, 'a proxy that compresses makes tags weak')
    t.equal((await change('Sixth', weak)).statusCode, 412)
    const known = (await acme.send(here)).headers.etag as string
    const replies = await Promise.all(Array.from({ length: 30 }, (_, index) => change(`Name ${index}`, known)))
    t.equal(replies.filter(({ statusCode }) => statusCode === 200).length, 1, 'of thirty at once one')
    t.equal(replies.filter(({ statusCode }) => statusCode === 412).length, 29)
  })
  t.test('records what was changed', async (t) => {
    const { name } = (await acme.send(here)).json()
    const reply = await acme.send(patch(here, { name: 'Recorded' }))
    const [row] = await allRows(
      app.database,
      "select * from audit_events where action = 'tenant.updated' order by created_at desc limit 1"
    )
    t.match(row, {
      tenant_id: acme.id,
      actor_id: acme.owner.id,
      target_id: acme.id,
      request_id: reply.headers['x-request-id'],
      detail: { before: { name }, after: { name: 'Recorded' } }
    })
  })
  t.test('is read by every role and changed by admins and owners', async (t) => {
    for (const [role, status] of [
      ['viewer', 403],
      ['member', 403],
      ['admin', 200],
      ['owner', 200]
    ] as const) {
      const guest = await createTenant(app, `guest-${role}`)
      const { access_token } = await visit(app, guest, acme, role)
      t.equal((await acme.with(access_token, here)).statusCode, 200, role)
      t.equal((await acme.with(access_token, me)).json().role, role)
      const before = (await acme.send(here)).json().name
      const reply = await acme.with(access_token, patch(here, { name: `By ${role}` }))
      t.equal(reply.statusCode, status, role)
      t.equal((await acme.send(here)).json().name, status === 200 ? `By ${role}` : before)
      if (status === 200) continue
      t.match(reply.json(), { status: 403, code: 'forbidden' })
      t.match(reply.headers['www-authenticate'], /^Bearer .*error="insufficient_scope"/)
      // a caller without the right is refused before the request is parsed
      t.equal((await acme.with(access_token, patch(here, { nonsense: true }))).statusCode, 403)
      t.equal((await acme.with(access_token, patch(here, {}, { 'if-match': '"x"' }))).statusCode, 403)
    }
  })
  t.test('takes no http origins in production', async (t) => {
    const database = await createTestDatabase(t)
    const strict = await startApp(t, production, database)
    const body = { tenant: { name: 'Acme', slug: 'acme' }, name: 'Ada', email: 'ada@acme.example', password }
    const { access_token } = (await send(strict, 'api.aggios.app', post('/auth/register', body))).json()
    const change = (origin: string) =>
      send(strict, 'acme.aggios.app', patch(here, { settings: { allowed_origins: [origin] } }, bearer(access_token)))
    t.match((await change('http://app.acme.example')).json(), {
      status: 400,
      errors: [{ path: '/body/settings/allowed_origins/0' }]
    })
    t.equal((await change('https://app.acme.example')).statusCode, 200)
    for (const origin of ['capacitor://localhost', 'ionic://localhost']) {
      t.equal((await change(origin)).statusCode, 200, `the app of ${origin}`)
    }
  })
})

t.test('the agencies of a person', async (t) => {
  const app = await startApp(t)
  const acme = await createTenant(app, 'acme')
  const rival = await createTenant(app, 'rival')
  await addMember(app, rival, acme.owner.id, 'viewer')
  const mine = `${me}/tenants`

  t.test('can be more than one: who makes another one owns it', async (t) => {
    const reply = await acme.send(post('/tenants', { name: 'Second', slug: 'second' }))
    t.equal(reply.statusCode, 201)
    t.match(reply.json(), { name: 'Second', slug: 'second', status: 'active', settings: {}, usage: { members: 1 } })
    t.not(reply.json().id, acme.id)
    const switched = await acme.send(post('/auth/switch', { tenant: 'second' }))
    const { access_token } = switched.json()
    t.match(decode(access_token).claims, { tenant_id: reply.json().id, role: 'owner' })
    t.equal(
      (await send(app, 'second.localhost', { url: here, headers: bearer(access_token) })).json().id,
      reply.json().id
    )
    t.match(
      (await send(app, 'second.localhost', { url: here, headers: bearer(rival.owner.tokens.access_token) })).json(),
      { code: 'tenant_mismatch' }
    )
    t.match((await rival.send(post('/auth/switch', { tenant: 'second' }))).json(), { status: 404 })
    const rows = await allRows(app.database, 'select * from audit_events where tenant_id = $1', [reply.json().id])
    t.match(rows[0], { action: 'tenant.registered', actor_id: acme.owner.id, target_id: reply.json().id })
  })
  t.test('have names that are free and fit for a host', async (t) => {
    const create = (slug: unknown, name: unknown = 'X') => acme.send(post('/tenants', { slug, name }))
    for (const slug of ['acme', 'rival', 'second', 'api', 'www', 'admin', 'traefik', 'localhost', 'xn--acm-hoa']) {
      t.match((await create(slug)).json(), { status: 409, code: 'slug_taken' }, slug)
    }
    for (const slug of [
      '',
      'a',
      'ab',
      'Acme',
      'acme.x',
      'acme_x',
      '-acme',
      'acme-',
      '1acme',
      'a'.repeat(41),
      'acmé',
      'acme\n',
      ' acme',
      null,
      7
    ]) {
      t.match((await create(slug)).json(), { status: 400, code: 'validation_failed' }, JSON.stringify(slug))
    }
    t.equal((await create('abc')).statusCode, 201)
    t.equal((await create('a'.repeat(40))).statusCode, 201)
    t.match((await send(app, 'localhost', post('/tenants', { slug: 'anon', name: 'X' }))).json(), {
      code: 'unauthenticated'
    })
  })
  t.test('take a name once, of twenty who want it at the same moment', async (t) => {
    const people = [acme, rival]
    const replies = await Promise.all(
      Array.from({ length: 20 }, (_, index) =>
        (people[index % 2] as Tenant).send(post('/tenants', { name: 'Race', slug: 'race' }))
      )
    )
    t.equal(replies.filter(({ statusCode }) => statusCode === 201).length, 1)
    t.equal(replies.filter(({ statusCode }) => statusCode === 409).length, 19)
    t.equal((await allRows(app.database, "select from tenants where slug = 'race'")).length, 1)
    await allRows(
      app.database,
      "delete from memberships where tenant_id = (select id from tenants where slug = 'race')"
    )
    await allRows(app.database, "delete from tenants where slug = 'race'")
  })
  t.test('are listed by name, page by page', async (t) => {
    const all = (await acme.send(`${mine}?limit=100`)).json()
    t.equal(all.next_cursor, null)
    t.strictSame(
      all.data.map(({ slug }: { slug: string }) => slug),
      ['a'.repeat(40), 'abc', 'acme', 'rival', 'second']
    )
    t.strictSame(Object.keys(all.data[0]).sort(), ['id', 'name', 'role', 'slug'])
    t.match(all.data[3], { id: rival.id, name: 'The rival agency', slug: 'rival', role: 'viewer' })
    const seen = []
    let cursor = ''
    for (let page = 0; page < 5; page++) {
      const body = (await acme.send(`${mine}?limit=2${cursor}`)).json()
      seen.push(...body.data)
      if (body.next_cursor === null) break
      t.equal(body.data.length, 2)
      cursor = `&cursor=${body.next_cursor}`
      if (page === 0) await acme.send(post('/tenants', { name: 'Early', slug: 'aaa-early' }))
    }
    t.strictSame(seen, all.data, 'each once, though another one was made meanwhile')
    t.strictSame(
      (await rival.send(mine)).json().data.map(({ slug }: { slug: string }) => slug),
      ['rival']
    )
  })
  t.test('have cursors of their own', async (t) => {
    const { next_cursor } = (await acme.send(`${mine}?limit=1`)).json()
    for (const [tenant, url] of [
      [rival, `${mine}?cursor=${next_cursor}`],
      [acme, `${me}/sessions?cursor=${next_cursor}`],
      [acme, `${mine}?cursor=${next_cursor.slice(0, -2)}`],
      [acme, `${mine}?cursor=${Buffer.from('["zzz"]').toString('base64url')}`],
      [acme, `${mine}?cursor=x`]
    ] as [Tenant, string][]) {
      t.match((await tenant.send(url)).json(), { status: 400, code: 'invalid_cursor' }, url)
    }
    for (const query of ['limit=0', 'limit=101', 'limit=x', 'offset=1', 'limit=1&limit=1']) {
      t.match((await acme.send(`${mine}?${query}`)).json(), { status: 400, code: 'validation_failed' }, query)
    }
  })
})
