import t, { type Test } from 'tap'
import { withClient } from './databases.ts'
import {
  addMember,
  allRows,
  asOwner,
  createTenant,
  createTestDatabase,
  eventually,
  password,
  post,
  type Reply,
  send,
  setStatus,
  startApp,
  type Tenant,
  type TestApp,
  type Tokens
} from './harness.ts'
import { stopwatch } from './machine.ts'
import { bearer, me } from './requests.ts'
import { decode, fingerprint, makeToken, rawRequest, seconds, sendRaw, singleSecret } from './tokens.ts'

// bounded in time: how soon a change is in force

type Method = 'DELETE' | 'GET' | 'HEAD' | 'OPTIONS' | 'PATCH' | 'POST' | 'PUT'

const here = '/api/v1/tenant'
const production = {
  NODE_ENV: 'production',
  BASE_DOMAIN: 'aggios.app',
  JWT_SECRET: 'x6Jr2mQ9wLk4tZb7VhN1sYc8Ge3Df5Pa',
  PASSWORD_PEPPER: 'Qw8Zx2Lm5Tn9Rb4Kc7Hv1Jf6Gd3Sp0Ya'
}

const patch = (url: string, payload: unknown, headers = {}) =>
  ({ method: 'PATCH', url, payload: payload as object, headers }) as const

/** Tokens of a guest in an agency, with a role there. */
async function visit(app: TestApp, guest: Tenant, host: Tenant, role: string): Promise<Tokens> {
  await addMember(app, host, guest.owner.id, role)
  const reply = await guest.send(post('/auth/switch', { tenant: host.slug }))
  if (reply.statusCode !== 200) throw new Error(`switch: ${reply.statusCode} ${reply.body}`)
  return reply.json()
}

/** Every operation of the document that wants a token, with its path filled in. */
async function signedInOperations(app: TestApp): Promise<{ method: Method; url: string }[]> {
  const { paths } = (await send(app, 'localhost', '/api/v1/openapi.json')).json()
  return Object.entries(paths as Record<string, Record<string, { security?: unknown[] }>>).flatMap(
    ([path, operations]) =>
      Object.entries(operations)
        .filter(([, operation]) => operation.security && operation.security.length === 1)
        .map(([method]) => ({
          method: method.toUpperCase() as Method,
          url: path.replaceAll(/\{[^}]+\}/g, '019a2c4e-7b1d-7c3e-9f00-3d5a1b2c4d5e')
        }))
  )
}

/** A HEAD has no body to say more. */
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
    // whatever asked for one of these rows would wait
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
    // only who has the secret can make this; even then the person has to be a member, and the session to be there
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

t.test('a suspended agency', async (t) => {
  const app = await startApp(t, { JWT_SECRET: singleSecret })
  const acme = await createTenant(app, 'acme')
  const rival = await createTenant(app, 'rival')
  const guest = await visit(app, rival, acme, 'viewer')
  const fresh = await acme.signIn()
  await setStatus(app, acme, 'suspended')
  await app.revocations.readNow()
  const unknown = 'nobody.localhost'
  const same = async (
    t: Test,
    request: { method?: Method; url: string; payload?: string | object; headers?: object }
  ) => {
    const name = `${request.method ?? 'GET'} ${request.url} ${JSON.stringify(request.payload ?? '').slice(0, 40)}`
    const strange = await send(app, acme.host, request as { url: string })
    t.equal(strange.statusCode, 404, name)
    if (request.method !== 'HEAD') t.match(strange.body, /"code":"tenant_not_found"/, name)
    t.strictSame(fingerprint(strange), fingerprint(await send(app, unknown, request as { url: string })), name)
  }

  t.test('is to strangers as if it were not there, on every path', async (t) => {
    const { paths } = (await send(app, 'localhost', '/api/v1/openapi.json')).json()
    const operations = Object.entries(paths as Record<string, object>).flatMap(([path, each]) =>
      Object.keys(each).map((method) => ({
        method: method.toUpperCase() as Method,
        url: path.replace(/\{[^}]+\}/, 'x')
      }))
    )
    t.ok(operations.length > 20)
    // health and the pages about problems answer on every host
    const elsewhere = /^\/api\/v1\/(health|problems)\b/
    for (const operation of operations) if (!elsewhere.test(operation.url)) await same(t, operation)
    t.equal((await send(app, acme.host, '/api/v1/health')).statusCode, 200)
  })
  t.test('nor does a path that is not there tell', async (t) => {
    for (const url of [
      '/',
      '/nowhere',
      '/api/v1/nowhere',
      '/api/v2/tenant',
      '/favicon.ico',
      '/api/v1/tenant/',
      '/API/V1/tenant'
    ]) {
      await same(t, { url })
    }
  })
  t.test('nor a method that is not there', async (t) => {
    for (const method of ['DELETE', 'PUT', 'POST', 'OPTIONS'] as const) await same(t, { method, url: here })
  })
  t.test('nor what is wrong with a body', async (t) => {
    const method = 'POST'
    const json = { 'content-type': 'application/json' }
    for (const path of ['/auth/login', '/auth/refresh', '/auth/logout', '/auth/register']) {
      const url = `/api/v1${path}`
      await same(t, { method, url, payload: '{}', headers: json })
      await same(t, { method, url, payload: '{', headers: json })
      await same(t, { method, url, payload: '{"x":1}', headers: json })
      await same(t, { method, url, payload: '[]', headers: json })
      await same(t, { method, url: `${url}?x=1`, payload: '{}', headers: json })
      await same(t, { method, url, payload: 'x', headers: { 'content-type': 'text/plain' } })
      await same(t, { method, url, payload: JSON.stringify('x'.repeat(70_000)), headers: json })
    }
  })
  t.test('nor a token that is no good there', async (t) => {
    const { header, claims } = decode(acme.owner.tokens.access_token)
    const tokens = {
      forged: makeToken(header, claims, 'a guess'),
      expired: makeToken(header, { ...claims, exp: seconds() - 60 }, singleSecret),
      "another agency's": rival.owner.tokens.access_token,
      malformed: 'x'
    }
    for (const token of Object.values(tokens)) await same(t, { url: here, headers: bearer(token) })
    await same(t, { method: 'POST', url: '/api/v1/auth/logout', headers: bearer(tokens.forged) })
    await same(t, {
      method: 'POST',
      url: '/api/v1/auth/logout',
      headers: bearer(rival.owner.tokens.access_token)
    })
    for (const refresh_token of ['x', rival.owner.tokens.refresh_token]) {
      await same(t, { method: 'POST', url: '/api/v1/auth/refresh', payload: { refresh_token } })
      await same(t, { method: 'POST', url: '/api/v1/auth/logout', payload: { refresh_token } })
    }
    const wrong = { email: acme.owner.email, password: 'not the right password' }
    await same(t, { method: 'POST', url: '/api/v1/auth/login', payload: wrong })
  })
  t.test('tells its members, on each host, and lets them go elsewhere', async (t) => {
    for (const token of [acme.owner.tokens.access_token, guest.access_token]) {
      for (const host of [acme.host, 'localhost']) {
        for (const url of [here, me, `${me}/sessions`]) {
          const reply = await send(app, host, { url, headers: bearer(token) })
          t.match(reply.json(), { status: 403, code: 'tenant_suspended' }, `${host} ${url}`)
        }
      }
    }
    t.equal((await rival.send(me)).statusCode, 200, 'other agencies go on')
    t.match((await rival.send(post('/auth/switch', { tenant: 'acme' }))).json(), {
      status: 403,
      code: 'tenant_suspended'
    })
    t.match((await rival.send(post('/auth/switch', { tenant: 'nobody' }))).json(), { status: 404, code: 'not_found' })
  })
  t.test('takes no sign-in and no refresh, and changes nothing by them', async (t) => {
    const named = (word: string) => post('/auth/login', { email: acme.owner.email, password: word, tenant: 'acme' })
    t.match((await send(app, 'localhost', named(password))).json(), { status: 403, code: 'tenant_suspended' })
    t.match((await send(app, 'localhost', named('not the right one'))).json(), {
      status: 401,
      code: 'invalid_credentials'
    })
    const stranger = post('/auth/login', { email: rival.owner.email, password, tenant: 'acme' })
    t.match((await send(app, 'localhost', stranger)).json(), { status: 403, code: 'tenant_suspended' }, 'a viewer')
    const at = await send(app, acme.host, post('/auth/login', { email: acme.owner.email, password }))
    t.notOk(at.json().access_token)
    const sid = decode(acme.owner.tokens.access_token).claims.sid
    const session = () => allRows(app.database, 'select * from sessions where id = $1', [sid])
    const before = await session()
    for (const host of [acme.host, 'localhost']) {
      const reply = await send(app, host, post('/auth/refresh', { refresh_token: acme.owner.tokens.refresh_token }))
      t.match(reply.json(), { status: 403, code: 'tenant_suspended' }, host)
    }
    t.strictSame(await session(), before)
    const anywhere = await send(app, 'localhost', post('/auth/login', { email: rival.owner.email, password }))
    t.equal(decode(anywhere.json().access_token).claims.tenant_id, rival.id, 'who has another agency is led there')
  })
  t.test('lets its members sign out', async (t) => {
    const reply = await acme.with(fresh.access_token, post('/auth/logout', undefined))
    t.equal(reply.statusCode, 204)
    const again = await send(app, acme.host, post('/auth/logout', { refresh_token: guest.refresh_token }))
    t.equal(again.statusCode, 204)
    t.equal(
      (await send(app, 'localhost', post('/auth/refresh', { refresh_token: guest.refresh_token }))).json().code,
      'session_revoked'
    )
  })
  t.test('is back within a second when it is resumed', async (t) => {
    await setStatus(app, acme, 'active')
    const waited = await eventually(async () => (await acme.send(here)).statusCode === 200)
    t.ok(waited <= 1000, `${waited} ms`)
    t.match((await acme.anonymous(here)).json(), { status: 401, code: 'unauthenticated' })
    t.equal((await acme.signIn()).token_type, 'Bearer')
    t.match((await acme.with(fresh.access_token, me)).json(), { code: 'session_revoked' }, 'what ended stays ended')
    const refreshed = await send(
      app,
      acme.host,
      post('/auth/refresh', { refresh_token: acme.owner.tokens.refresh_token })
    )
    t.equal(refreshed.statusCode, 200)
  })
})

t.test('a suspended agency is not told from one that is not there by its own web origin either', async (t) => {
  const app = await startApp(t, production)
  const host = 'acme.aggios.app'
  const body = { tenant: { name: 'Acme', slug: 'acme' }, name: 'Ada', email: 'ada@acme.example', password }
  const registered = await send(app, 'api.aggios.app', post('/auth/register', body))
  const tenant = { id: registered.json().tenant.id, owner: { id: registered.json().user.id } } as Tenant
  await asOwner(app.database, tenant.id, tenant.owner.id, [
    ['update tenants set settings = $1 where id = $2', [{ allowed_origins: ['https://app.acme.example'] }, tenant.id]]
  ])
  await setStatus(app, tenant, 'suspended')
  await app.revocations.readNow()
  const origins = (own: string) => [`https://${own}`, 'https://app.acme.example', 'https://evil.example']
  for (const [index, origin] of origins(host).entries()) {
    for (const method of ['GET', 'OPTIONS'] as const) {
      const headers = (from: string) => ({
        origin: from,
        ...(method === 'OPTIONS' && { 'access-control-request-method': 'GET' })
      })
      const seen = await send(app, host, { method, url: here, headers: headers(origin) })
      const other = origins('nobody.aggios.app')[index] as string
      const control = await send(app, 'nobody.aggios.app', { method, url: here, headers: headers(other) })
      const allowed = (reply: Reply) => [reply.statusCode, reply.headers['access-control-allow-origin'] !== undefined]
      t.strictSame(allowed(seen), allowed(control), `${method} from ${origin}`)
    }
  }
})

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
      // who may not, is told so before anything of the request is read
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
