import t from 'tap'
import { createTenant, password, post, send, startApp } from './harness.ts'

t.test('the flow of the first clients', async (t) => {
  const app = await startApp(t)
  const acme = await createTenant(app, 'acme')
  const call = (method: 'GET' | 'POST', url: string, payload?: object, headers = {}) =>
    send(app, 'localhost:8080', { method, url, headers, ...(payload && { payload }) })

  t.equal((await call('GET', '/api/health')).json().status, 'ok')
  const signedIn = await call('POST', '/api/auth/login', { email: acme.owner.email, password })
  t.equal(signedIn.statusCode, 200)
  const tokens = signedIn.json()
  t.strictSame(Object.keys(tokens).sort(), ['access_token', 'expires_in', 'refresh_token', 'token_type'])
  t.match(tokens, { token_type: 'Bearer', expires_in: 86_400 })
  const claims = JSON.parse(Buffer.from(tokens.access_token.split('.')[1], 'base64url').toString())
  t.match(claims, { user_id: acme.owner.id, email: acme.owner.email, tenant_id: acme.id, role: 'owner' })
  t.equal(claims.exp - claims.iat, 86_400)

  const authorization = `Bearer ${tokens.access_token}`
  const me = await call('GET', '/api/users/me', undefined, { authorization })
  t.match(me.json(), { id: acme.owner.id, email: acme.owner.email, tenant_id: acme.id, role: 'owner' })

  const refreshed = await call('POST', '/api/auth/refresh', { refresh_token: tokens.refresh_token })
  t.equal(refreshed.statusCode, 200)
  t.strictSame(Object.keys(refreshed.json()).sort(), ['access_token', 'expires_in', 'refresh_token', 'token_type'])
  t.not(refreshed.json().refresh_token, tokens.refresh_token)

  t.equal((await call('POST', '/api/logout', undefined, { authorization })).statusCode, 204)
  t.match((await call('GET', '/api/users/me', undefined, { authorization })).json(), { code: 'session_revoked' })
  const late = await call('POST', '/api/auth/refresh', { refresh_token: refreshed.json().refresh_token })
  t.match(late.json(), { status: 401, code: 'session_revoked' })
  t.equal((await call('POST', '/api/logout', undefined, { authorization })).statusCode, 204, 'again')
})

t.test('signing up', async (t) => {
  const app = await startApp(t)
  const acme = await createTenant(app, 'acme')
  const body = {
    tenant: { name: 'Rival', slug: 'rival' },
    name: 'Bea',
    email: 'bea@rival.example',
    password
  }
  const register = (change: object) => send(app, 'localhost', post('/auth/register', { ...body, ...change }))

  t.test('a slug that is taken or reserved is refused alike', async (t) => {
    for (const slug of ['acme', 'api', 'www', 'admin', 'traefik', 'minio', 'minio-console', 'grafana']) {
      t.match((await register({ tenant: { name: 'X', slug } })).json(), { status: 409, code: 'slug_taken' }, slug)
    }
  })
  t.test('an address that has an identity is refused, and its agency is not made', async (t) => {
    const reply = await register({ email: acme.owner.email.toUpperCase() })
    t.match(reply.json(), { status: 409, code: 'email_taken' })
    t.match((await send(app, 'rival.localhost', '/api/v1/tenant')).json(), { code: 'tenant_not_found' })
  })
  t.test('every mistake is named at once', async (t) => {
    const reply = await register({ tenant: { name: '', slug: 'A_b' }, email: 'nobody', tenant_id: acme.id })
    t.equal(reply.statusCode, 400)
    t.equal(reply.headers['content-type'], 'application/problem+json; charset=utf-8')
    const paths = reply.json().errors.map((each: { path: string }) => each.path)
    for (const path of ['/body/tenant/name', '/body/tenant/slug', '/body/email', '/body/tenant_id']) {
      t.ok(paths.includes(path), path)
    }
  })
  t.test('it works then', async (t) => {
    const reply = await register({})
    t.equal(reply.statusCode, 201)
    t.match(reply.json(), { user: { role: 'owner', email: 'bea@rival.example' }, tenant: { slug: 'rival' } })
    t.equal((await send(app, 'rival.localhost', '/api/v1/tenant')).json().code, 'unauthenticated')
  })
})
