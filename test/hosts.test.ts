import t, { type Test } from 'tap'
import { withClient } from './databases.ts'
import {
  addMember,
  allRows,
  createTenant,
  createTestDatabase,
  password,
  post,
  type Reply,
  send,
  startApp,
  type Tenant,
  type TestApp
} from './harness.ts'
import { stopwatch } from './machine.ts'
import { bearer, me } from './requests.ts'
import { here, type Method, patch, production, visit } from './tenant-requests.ts'
import { decode, fingerprint, makeToken, rawRequest, sendRaw, singleSecret } from './tokens.ts'

// bounded in time: how soon a change is in force

/** Every operation of the document that needs a token, with its path filled in. */
async function signedInOperations(app: TestApp): Promise<{ method: Method; url: string }[]> {
  const { paths } = (await send(app, 'localhost', '/api/v1/openapi.json')).json()
  return Object.entries(paths as Record<string, Record<string, { security?: object[] }>>).flatMap(
    ([path, operations]) =>
      Object.entries(operations)
        .filter(
          ([, operation]) =>
            operation.security?.every((scheme) => Object.keys(scheme).length > 0) && operation.security.length > 0
        )
        .map(([method]) => ({
          method: method.toUpperCase() as Method,
          url: path.replaceAll(/\{[^}]+\}/g, '019a2c4e-7b1d-7c3e-9f00-3d5a1b2c4d5e')
        }))
  )
}

/** Checks that a reply is 403 `tenant_mismatch`. A reply to HEAD has no body. */
function isMismatch(t: Test, { method, url }: { method: Method; url: string }, reply: Reply): void {
  t.equal(reply.statusCode, 403, `${method} ${url}`)
  if (method !== 'HEAD') t.match(reply.json(), { status: 403, code: 'tenant_mismatch' }, `${method} ${url}`)
}

const rowsOf = (app: TestApp, tenant: Tenant) =>
  allRows(app.database, 'select to_jsonb(x) as row from tenants x where id = $1', [tenant.id]).then(
    ([each]) => each.row
  )

t.test('a token is for one agency', async (t) => {
  const app = await startApp(t, { JWT_SECRET: singleSecret })
  const acme = await createTenant(app, 'acme')
  const rival = await createTenant(app, 'rival')
  const operations = await signedInOperations(app)

  t.test('on the host of another nothing answers it but 403', async (t) => {
    t.ok(operations.length >= 12, `${operations.length} operations`)
    const { access_token } = acme.owner.tokens
    for (const operation of operations) {
      const reply = await rival.with(access_token, operation)
      isMismatch(t, operation, reply)
      t.notOk(reply.body.includes(rival.id) || reply.body.includes(rival.owner.email))
    }
    t.equal((await rival.with(access_token, patch(here, { name: 'Taken over' }))).statusCode, 403)
    t.equal((await rival.send(here)).json().name, 'The rival agency')
  })
  t.test('and that before anything is looked up', async (t) => {
    // a query of one of these rows would wait
    await withClient(app.database.postgres, async (client) => {
      await client.query('begin')
      await client.query('lock table tenants, users, memberships, sessions, audit_events in access exclusive mode')
      for (const operation of operations) {
        const elapsed = stopwatch()
        const reply = await rival.with(acme.owner.tokens.access_token, operation)
        isMismatch(t, operation, reply)
        t.ok(elapsed() < 1000)
      }
      await client.query('rollback')
    })
  })
  t.test('also for a member of both: the token decides, not the person', async (t) => {
    const tokens = await visit(app, acme, rival, 'viewer')
    t.equal((await rival.with(tokens.access_token, here)).json().id, rival.id)
    t.match((await acme.with(tokens.access_token, here)).json(), { status: 403, code: 'tenant_mismatch' })
    t.match((await rival.with(acme.owner.tokens.access_token, here)).json(), { status: 403, code: 'tenant_mismatch' })
  })
  t.test('on the general host it is for its own', async (t) => {
    for (const host of [
      'localhost',
      'api.localhost',
      '127.0.0.1',
      '127.0.0.1:8080',
      '[::1]',
      '[::1]:8080',
      'LOCALHOST:80'
    ]) {
      for (const tenant of [acme, rival]) {
        const reply = await send(app, host, { url: here, headers: bearer(tenant.owner.tokens.access_token) })
        t.match(reply.json(), { id: tenant.id, slug: tenant.slug }, host)
      }
    }
  })
  t.test('and its claims are not the place to change that', async (t) => {
    const { header, claims } = decode(acme.owner.tokens.access_token)
    const foreign = makeToken(header, { ...claims, tenant_id: rival.id }, singleSecret)
    // this token needs the secret. Even so the person must be a member, and the session must exist
    const outsider = await createTenant(app, 'outsider')
    const made = makeToken(header, { ...claims, tenant_id: outsider.id }, singleSecret)
    t.equal((await outsider.with(made, me)).statusCode, 401)
    t.equal((await rival.with(foreign, me)).statusCode, 200, 'a member of it')
    t.equal((await outsider.with(makeToken(header, { ...claims, tenant_id: outsider.id }, 'x'), me)).statusCode, 401)
  })
  t.test('what belongs to another agency is not there', async (t) => {
    const theirs = decode(rival.owner.tokens.access_token).claims.sid
    const drop = (id: unknown) => acme.send({ method: 'DELETE', url: `${me}/sessions/${id}` })
    const unknown = await drop('019a2c4e-7b1d-7c3e-9f00-3d5a1b2c4d5e')
    t.equal(unknown.statusCode, 404)
    for (const id of [theirs, rival.id, rival.owner.id]) t.strictSame(fingerprint(await drop(id)), fingerprint(unknown))
    t.equal((await rival.send(me)).statusCode, 200)
  })
  t.test('no list and no page shows anything of another agency', async (t) => {
    const canary = 'CANARY-of-the-third'
    const third = await createTenant(app, 'third')
    await third.send(patch(here, { name: canary }))
    await third.send(patch(me, { name: canary }))
    await send(app, third.host, post('/auth/login', { email: third.owner.email, password }, { 'user-agent': canary }))
    const lists = [me, here, `${me}/sessions?limit=100`, `${me}/tenants?limit=100`]
    for (const url of lists) {
      t.ok((await third.send(url)).body.includes(url.endsWith(me) || url === here ? canary : 'third'), 'the control')
      for (const tenant of [acme, rival]) {
        const { body } = await tenant.send(url)
        t.notOk(
          [canary, third.id, third.owner.id, third.owner.email].some((text) => body.includes(text)),
          url
        )
      }
    }
    t.equal((await acme.send(here)).json().usage.members, 1)
    t.equal((await rival.send(here)).json().usage.members, 2)
  })
  t.test('no tag of one agency is that of another', async (t) => {
    for (const url of [here, me]) {
      const tag = (await acme.send(url)).headers.etag as string
      t.type(tag, 'string')
      t.equal((await acme.send({ url, headers: { 'if-none-match': tag } })).statusCode, 304)
      const reply = await rival.send({ url, headers: { 'if-none-match': tag } })
      t.equal(reply.statusCode, 200, url)
      t.equal((await rival.send(patch(url, { name: 'Other' }, { 'if-match': tag }))).statusCode, 412, url)
    }
  })
  t.test('what a cache may keep is kept for its own requests only', async (t) => {
    for (const url of [here, me, `${me}/sessions`, `${me}/tenants`]) {
      const { headers } = await acme.send(url)
      t.equal(headers['cache-control'], 'private, no-cache', url)
      const vary = String(headers.vary).toLowerCase()
      t.match(vary, /\borigin\b/)
      t.match(vary, /\bauthorization\b/)
    }
    t.equal((await acme.anonymous(here)).headers['cache-control'], 'no-store')
  })
  t.test('no body says whose it is', async (t) => {
    const before = [await rowsOf(app, acme), await rowsOf(app, rival)]
    const requests = [
      ...[
        { tenant_id: rival.id },
        { id: rival.id },
        { status: 'suspended' },
        { plan: 'pro' },
        { slug: 'other' },
        { version: 9 }
      ].map((body) => patch(here, { name: 'New', ...body })),
      ...[
        { tenant_id: rival.id },
        { id: rival.owner.id },
        { role: 'owner' },
        { email: 'x@y.example' },
        { email_verified: true },
        { password_hash: 'x' }
      ].map((body) => patch(me, { name: 'New', ...body })),
      ...[{ id: rival.id }, { plan: 'pro' }, { owner_id: rival.owner.id }, { created_by: rival.owner.id }].map((body) =>
        post('/tenants', { name: 'New', slug: 'brand-new', ...body })
      ),
      patch(here, { settings: { tenant_id: rival.id } })
    ]
    for (const request of requests) {
      const reply = await acme.send(request)
      t.match(reply.json(), { status: 400, code: 'validation_failed' }, JSON.stringify(request.payload))
    }
    for (const text of [
      '{"__proto__":{"name":"x"}}',
      '{"constructor":{"prototype":{"name":"x"}}}',
      '{"\\u005f_proto__":{"name":"x"}}'
    ]) {
      const reply = await acme.send({
        method: 'PATCH',
        url: here,
        payload: text,
        headers: { 'content-type': 'application/json' }
      })
      t.equal(reply.statusCode, 400, text)
    }
    t.strictSame([await rowsOf(app, acme), await rowsOf(app, rival)], before)
    t.equal((await acme.send(me)).json().name, 'Owner of acme')
  })
})

t.test('the host', async (t) => {
  const app = await startApp(t, { TRUST_PROXY: '127.0.0.0/8' })
  const acme = await createTenant(app, 'acme')
  const rival = await createTenant(app, 'rival')
  const token = acme.owner.tokens.access_token
  const ask = (host: string, headers = {}) => send(app, host, { url: here, headers: { ...bearer(token), ...headers } })
  await app.listen({ port: 0, host: '127.0.0.1' })
  const raw = (line: string, ...headers: string[]) =>
    sendRaw(app, rawRequest(line, ...headers, `Authorization: Bearer ${token}`))

  t.test('is the only thing that names the agency', async (t) => {
    for (const headers of [
      { 'x-tenant-id': rival.id },
      { 'x-tenant': 'rival' },
      { 'x-forwarded-host': rival.host },
      { forwarded: `host=${rival.host}` },
      { forwarded: `for=127.0.0.1;host="${rival.host}";proto=https` },
      { x_forwarded_host: rival.host },
      { 'x-original-host': rival.host },
      { 'x-host': rival.host },
      { 'x-http-host-override': rival.host },
      { 'x-original-url': `http://${rival.host}/api/v1/tenant` },
      { 'x-rewrite-url': '/api/v1/users/me' },
      { 'x-forwarded-server': rival.host },
      { 'x-http-method-override': 'PATCH' }
    ]) {
      for (const host of [acme.host, 'localhost']) {
        t.match((await ask(host, headers)).json(), { id: acme.id }, `${host} ${JSON.stringify(headers)}`)
      }
      t.match(
        (await ask(rival.host, headers)).json(),
        { code: 'tenant_mismatch' },
        'nor are they a way out of the host'
      )
    }
    const reply = await ask(rival.host, {
      'x-forwarded-host': acme.host,
      forwarded: `host=${acme.host}`,
      'x-tenant-id': acme.id
    })
    t.match(reply.json(), { status: 403, code: 'tenant_mismatch' })
  })
  t.test('is the same in any case, with a port and with a dot after it', async (t) => {
    for (const host of [
      'acme.localhost',
      'ACME.localhost',
      'Acme.LocalHost',
      'acme.localhost:8080',
      'acme.localhost.',
      'acme.localhost.:443',
      'ACME.LOCALHOST.:1',
      'acme.localhost:65535'
    ]) {
      t.match((await ask(host)).json(), { id: acme.id }, host)
    }
    for (const host of ['RIVAL.LOCALHOST', 'rival.localhost.', 'rival.localhost:8080']) {
      t.match((await ask(host)).json(), { code: 'tenant_mismatch' }, host)
    }
  })
  t.test('has to be one host', async (t) => {
    for (const host of [
      ' ',
      'acme.example@rival.localhost',
      'acme.localhost@rival.localhost',
      'rival.localhost:99999',
      'rival.localhost:',
      'rival.localhost:x',
      'rival.localhost:80:80',
      'acme.localhost/rival.localhost',
      'acme.localhost,rival.localhost',
      'acme.localhost rival.localhost',
      'acme.localhost\\rival.localhost',
      'acme.localhost?x',
      'acme.localhost#x',
      '.localhost',
      '..localhost',
      'acme.localhost..',
      '[::1',
      '::1]',
      '[acme.localhost]',
      '%61cme.localhost',
      'x'.repeat(300)
    ]) {
      t.match((await ask(host)).json(), { status: 400, code: 'malformed_request' }, host)
    }
  })
  t.test('that nobody is at has no agency', async (t) => {
    for (const host of [
      'nobody.localhost',
      'a.localhost',
      `${'a'.repeat(63)}.localhost`,
      `${'a'.repeat(64)}.localhost`,
      'acme_.localhost',
      'acme-.localhost',
      'xn--acm-hoa.localhost',
      '1acme.localhost'
    ]) {
      t.match((await ask(host)).json(), { status: 404, code: 'tenant_not_found' }, host)
      t.match((await send(app, host, '/api/v1/nowhere')).json(), { status: 404, code: 'tenant_not_found' }, host)
      t.match((await send(app, host, post('/auth/login', {}))).json(), { status: 404, code: 'tenant_not_found' }, host)
    }
  })
  t.test('that is none of ours is not served', async (t) => {
    for (const host of [
      'acme.example',
      'acme.localhost.evil.example',
      'evillocalhost',
      'acmelocalhost',
      'a.acme.localhost',
      'acme.acme.localhost',
      'api.acme.localhost',
      'aggios.app'
    ]) {
      t.match((await ask(host)).json(), { status: 421, code: 'unknown_host' }, host)
      t.match((await send(app, host, '/api/v1/nowhere')).json(), { status: 421, code: 'unknown_host' }, host)
      t.match((await send(app, host, post('/auth/login', {}))).json(), { status: 421, code: 'unknown_host' }, host)
    }
  })
  t.test('does not matter to health', async (t) => {
    for (const host of [
      acme.host,
      'localhost',
      '10.1.2.3:8080',
      'nobody.localhost',
      'acme.example',
      'kubernetes.default.svc',
      '[fd00::1]'
    ]) {
      for (const url of ['/api/health', '/api/v1/health', '/api/v1/health/live', '/api/v1/health/ready']) {
        t.match((await send(app, host, url)).json(), { status: 'ok' }, `${host} ${url}`)
      }
    }
  })
  t.test('has to be said, once, and not in the target', async (t) => {
    const line = `GET ${here} HTTP/1.1`
    t.match(await raw(line, `Host: ${acme.host}`), { status: 200, body: { id: acme.id } }, 'the control')
    t.match(await raw(line, 'hOsT:ACME.localhost:8080'), { status: 200, body: { id: acme.id } })
    for (const [first, ...headers] of [
      [line],
      [`GET ${here} HTTP/1.0`],
      [line, 'Host:'],
      [line, `Host: ${acme.host}`, `Host: ${rival.host}`],
      [line, `Host: ${acme.host}`, `host: ${acme.host}`],
      [line, `Host: ${acme.host}`, 'Host:'],
      [line, `Host: ${acme.host}, ${rival.host}`],
      [line, `Host: m\xfcnchen.localhost`],
      [line, `Host: acme\0.localhost`],
      [line, `Host : ${acme.host}`],
      [`GET http://${rival.host}${here} HTTP/1.1`, `Host: ${acme.host}`],
      [`GET http://${acme.host}${here} HTTP/1.1`, `Host: ${acme.host}`],
      [`GET http://${acme.host}${here} HTTP/1.1`, `Host: ${rival.host}`],
      [`GET HTTP://${rival.host}/api/users/me HTTP/1.1`, `Host: ${acme.host}`],
      [`GET ${rival.host}${here} HTTP/1.1`, `Host: ${acme.host}`]
    ] as [string, ...string[]][]) {
      const reply = await raw(first, ...headers)
      const name = JSON.stringify([first, ...headers])
      t.equal(reply.status, 400, name)
      t.match(reply.body, { status: 400, code: 'malformed_request' }, name)
      t.notOk(reply.text.includes(rival.id) || reply.text.includes(acme.id))
    }
    for (const target of [
      `//${rival.host}${here}`,
      `/\\${rival.host}${here}`,
      `/api/v1/../v1/tenant`,
      '/api//v1/tenant'
    ]) {
      const reply = await raw(`GET ${target} HTTP/1.1`, `Host: ${acme.host}`)
      t.match(reply, { status: 404, body: { code: 'route_not_found' } }, target)
    }
  })
  t.test('that was just registered is there at once, though somebody had looked for it before', async (t) => {
    t.equal((await send(app, 'soon.localhost', here)).json().code, 'tenant_not_found')
    const soon = await createTenant(app, 'soon')
    t.equal((await soon.send(here)).json().id, soon.id)
    t.equal((await send(app, 'later.localhost', here)).json().code, 'tenant_not_found')
    t.equal((await acme.send(post('/tenants', { name: 'Later', slug: 'later' }))).statusCode, 201)
    t.equal((await send(app, 'later.localhost', here)).json().code, 'unauthenticated')
  })
})

t.test('EXTRA_HOSTS are general hosts too, in production as well', async (t) => {
  const EXTRA_HOSTS = '127.0.0.1,[::1],host.docker.internal,*.local'
  const database = await createTestDatabase(t)
  for (const env of [{}, production]) {
    const app = await startApp(t, { ...env, EXTRA_HOSTS }, database)
    const named = ['127.0.0.1:8080', '[::1]:8080', 'host.docker.internal', 'Host.Docker.Internal.:8080', 'imac.local']
    for (const host of [...named, 'a.imac.LOCAL:3000']) {
      t.match((await send(app, host, here)).json(), { status: 401, code: 'unauthenticated' }, host)
    }
    for (const host of ['docker.internal', 'x.host.docker.internal', 'local', 'evillocal', 'imac.local.evil.example']) {
      t.match((await send(app, host, here)).json(), { status: 421, code: 'unknown_host' }, host)
    }
  }
  const app = await startApp(t, { ...production, EXTRA_HOSTS }, database)
  t.match((await send(app, '127.0.0.2', here)).json(), { status: 421 }, 'no address that is not listed')
})

t.test('in production an address is no general host', async (t) => {
  const app = await startApp(t, production)
  for (const host of ['localhost', 'localhost:8080', '127.0.0.1', '10.0.0.8', '[::1]', 'aggios.app.localhost']) {
    t.match((await send(app, host, here)).json(), { status: 421, code: 'unknown_host' }, host)
    t.equal((await send(app, host, '/api/v1/health')).statusCode, 200, host)
  }
  for (const host of ['aggios.app', 'api.aggios.app', 'API.Aggios.App.', 'api.aggios.app:443']) {
    t.match((await send(app, host, here)).json(), { status: 401, code: 'unauthenticated' }, host)
  }
  t.match((await send(app, 'nobody.aggios.app', here)).json(), { status: 404, code: 'tenant_not_found' })
})

t.test("a sign-in leads to the host's agency, whatever the body names", async (t) => {
  const app = await startApp(t)
  const acme = await createTenant(app, 'acme')
  const rival = await createTenant(app, 'rival')
  await addMember(app, rival, acme.owner.id, 'member')
  const login = async (host: string, body: object) =>
    (await send(app, host, post('/auth/login', { email: acme.owner.email, password, ...body }))).json()
  t.equal(decode((await login(acme.host, {})).access_token).claims.tenant_id, acme.id)
  t.equal(decode((await login(rival.host, {})).access_token).claims.tenant_id, rival.id)
  t.equal(decode((await login(acme.host, { tenant: 'rival' })).access_token).claims.tenant_id, acme.id)
  t.equal(decode((await login('localhost', { tenant: 'rival' })).access_token).claims.tenant_id, rival.id)
  await createTenant(app, 'foreign')
  const refused = { status: 401, code: 'invalid_credentials' }
  t.match(await login('foreign.localhost', {}), refused)
  t.match(await login('localhost', { tenant: 'foreign' }), refused)
  t.match(await login('localhost', { tenant: 'nobody' }), refused)
  t.equal(decode((await login('localhost', { tenant: 'RIVAL' })).access_token).claims.tenant_id, rival.id)
  t.match(await login('localhost', { tenant_id: rival.id }), { status: 400, code: 'validation_failed' })
})
