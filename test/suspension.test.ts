import t, { type Test } from 'tap'
import {
  allRows,
  asOwner,
  createTenant,
  eventually,
  password,
  post,
  type Reply,
  send,
  setStatus,
  startApp,
  type Tenant
} from './harness.ts'
import { bearer, me } from './requests.ts'
import { here, type Method, production, visit } from './tenant-requests.ts'
import { decode, fingerprint, makeToken, seconds, singleSecret } from './tokens.ts'

// bounded in time: how soon a change is in force

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
