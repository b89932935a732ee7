import * as oauth from 'oauth4webapi'
import t, { type Test } from 'tap'
import { allRows, createTenant, eventually, post, send, startApp, type Tenant, type TestApp } from './harness.ts'
import { from, me } from './requests.ts'
import { decode } from './tokens.ts'

/*
 * Client credentials: short-lived access tokens for API keys, as OAuth clients ask for them.
 */

const tokenPath = '/api/v1/auth/token'
const permissions = ['files:read', 'tenant:read', 'files:write']

type Made = { id: string; key: string }

async function makeKey(tenant: Tenant, more: object = {}): Promise<Made> {
  const reply = await tenant.send(post('/api-keys', { name: 'Accounting', role: 'member', permissions, ...more }))
  if (reply.statusCode !== 201) throw new Error(reply.body)
  return reply.json()
}

/** Sends parameters as a form, on the general host. */
const ask = (
  app: TestApp,
  parameters: Record<string, string> | string,
  options: { host?: string; basic?: string } = {}
) =>
  send(app, options.host ?? 'localhost', {
    method: 'POST',
    url: tokenPath,
    payload: new URLSearchParams(parameters).toString(),
    headers: {
      'content-type': 'application/x-www-form-urlencoded',
      ...(options.basic !== undefined && { authorization: `Basic ${Buffer.from(options.basic).toString('base64')}` })
    }
  })
const grant = ({ id, key }: Made, more: Record<string, string> = {}) => ({
  ...{ grant_type: 'client_credentials', client_id: id, client_secret: key },
  ...more
})

async function start(t: Test, env = {}) {
  const app = await startApp(t, env)
  return { app, acme: await createTenant(app, 'acme'), rival: await createTenant(app, 'rival') }
}

t.test('a key gets a token, which may do what the key may', async (t) => {
  const { app, acme, rival } = await start(t)
  const made = await makeKey(acme)
  const reply = await ask(app, grant(made))
  t.equal(reply.statusCode, 200, reply.body)
  t.equal(reply.headers['cache-control'], 'no-store')
  const { access_token: token, ...rest } = reply.json()
  t.strictSame(rest, { token_type: 'Bearer', expires_in: 900, scope: permissions.join(' ') })
  const { header, claims } = decode(token)
  t.equal(header.typ, 'key-at+jwt', 'an older version refuses it')
  t.match(claims, {
    ...{ iss: 'https://api.localhost', aud: 'localhost', client_id: made.id, sub: made.id, tenant_id: acme.id },
    ...{ scope: permissions.join(' '), role: 'member', cidrs: [] }
  })
  t.equal(Number(claims.exp) - Number(claims.iat), 900)

  t.equal((await acme.with(token, '/api/v1/tenant')).statusCode, 200)
  t.equal(
    (await send(app, 'localhost', { url: '/api/v1/tenant', headers: { authorization: `Bearer ${token}` } })).statusCode,
    200
  )
  t.match((await acme.with(token, '/api/v1/members')).json(), { status: 403, code: 'forbidden' })
  t.match((await acme.with(token, me)).json(), { status: 403, code: 'forbidden' })
  t.match((await rival.with(token, '/api/v1/tenant')).json(), { status: 403, code: 'tenant_mismatch' })

  await t.test('is no token of a person, and has no session to end', async (t) => {
    const signOut = await acme.with(token, post('/auth/logout', {}))
    t.match(signOut.json(), { status: 401, code: 'invalid_token' })
    t.equal((await acme.with(token, '/api/v1/tenant')).statusCode, 200)
  })
  await t.test('whose scope can be narrowed', async (t) => {
    const narrow = (await ask(app, grant(made, { scope: 'tenant:read' }))).json()
    t.equal(narrow.scope, 'tenant:read')
    t.equal((await acme.with(narrow.access_token, '/api/v1/tenant')).statusCode, 200)
    t.match((await acme.with(narrow.access_token, '/api/v1/files')).json(), { code: 'forbidden' })
    for (const scope of ['members:read', 'tenant:read owner', 'tenant:read  files:read', 'constructor']) {
      t.match((await ask(app, grant(made, { scope }))).json(), { status: 400, error: 'invalid_scope' }, scope)
    }
  })
})

t.test('a token ends with its key', async (t) => {
  const { app, acme } = await start(t)
  const other = await startApp(t, {}, app.database)
  const made = await makeKey(acme)
  const tokenOf = async (key: string) => (await ask(app, grant({ ...made, key }))).json().access_token as string
  const works = async (token: string, on = app) =>
    (await send(on, acme.host, { url: '/api/v1/tenant', headers: { authorization: `Bearer ${token}` } })).statusCode ===
    200
  const rotate = async (overlap_seconds: number) =>
    (await acme.send(post(`/api-keys/${made.id}/rotate`, { overlap_seconds }))).json().key as string

  const first = await tokenOf(made.key)
  t.ok(await works(first, other))
  const second = await rotate(86_400)
  t.ok(await works(first), 'a rotation with a long overlap ends none')
  t.ok(await works(await tokenOf(made.key)), 'the older key still gets tokens')
  const third = await rotate(60)
  t.notOk(await works(first), 'the key before the older one has ended')
  const late = await tokenOf(second)
  t.ok(await works(late), 'and the older one goes on')
  const [row] = await allRows(
    app.database,
    'select extract(epoch from previous_until - now())::int as seconds from api_keys'
  )
  const left = Number(decode(late).claims.exp) - Date.now() / 1000
  t.ok(left <= row.seconds + 1, 'but no token outlives it')
  const last = await tokenOf(third)
  await rotate(0)
  t.notOk(await works(last))
  t.match((await ask(app, grant({ ...made, key: third }))).json(), { error: 'invalid_client' })

  const [{ key }] = [await makeKey(acme)]
  const id = (await acme.send('/api/v1/api-keys')).json().data[0].id
  const living = (await ask(app, grant({ id, key }))).json().access_token
  t.ok(await works(living, other))
  await acme.send({ method: 'DELETE', url: `/api/v1/api-keys/${id}` })
  t.notOk(await works(living), 'at once in the process that ends it')
  t.ok((await eventually(async () => !(await works(living, other)), 5000)) < 1000, 'and within a second in every other')
})

t.test('a client that is not the key, or not where it may be, is refused', async (t) => {
  const { app, acme, rival } = await start(t, { TRUST_PROXY: '10.0.0.1' })
  const made = await makeKey(acme)
  const another = await makeKey(acme)
  const wrong = made.key.slice(0, -1) + (made.key.endsWith('a') ? 'b' : 'a')
  const refused: [title: string, parameters: Record<string, string> | string, error: string, options?: object][] = [
    ['nothing', { grant_type: 'client_credentials' }, 'invalid_client'],
    ['the id of another key', grant({ ...made, id: another.id }), 'invalid_client'],
    ['no id', { grant_type: 'client_credentials', client_secret: made.key }, 'invalid_client'],
    ['a mistyped key', grant({ ...made, key: wrong }), 'invalid_client'],
    ['a person', grant({ id: acme.owner.id, key: acme.owner.tokens.access_token }), 'invalid_client'],
    ['no grant type', { client_id: made.id, client_secret: made.key }, 'invalid_request'],
    ['another grant type', grant(made, { grant_type: 'password' }), 'unsupported_grant_type'],
    ['a parameter twice', `${new URLSearchParams(grant(made))}&client_id=${made.id}`, 'invalid_request'],
    ['two ways at once', grant(made), 'invalid_request', { basic: `${made.id}:${made.key}` }],
    [
      'two clients',
      { grant_type: 'client_credentials', client_id: another.id },
      'invalid_client',
      { basic: `${made.id}:${made.key}` }
    ],
    ['the host of another agency', grant(made), 'invalid_client', { host: rival.host }]
  ]
  for (const [title, parameters, error, options] of refused) {
    const reply = await ask(app, parameters, options)
    t.match(reply.json(), { code: error, error, status: error === 'invalid_client' ? 401 : 400 }, title)
    t.match(reply.headers['content-type'], /^application\/json/, 'as OAuth clients read it')
    // a browser that reads "Basic" asks its user for a password, so only who has tried that is asked for it
    const scheme = options && 'basic' in options ? /^Basic realm="aggios"$/ : /^Bearer realm="aggios", DPoP/
    t.match(reply.headers['www-authenticate'] ?? '', error === 'invalid_client' ? scheme : /^$/, title)
  }
  t.equal(
    (await ask(app, { grant_type: 'client_credentials', unknown: 'x' }, { basic: `${made.id}:${made.key}` }))
      .statusCode,
    200
  )
  t.equal((await ask(app, grant(made), { host: acme.host })).statusCode, 200)

  const json = await send(app, 'localhost', post('/auth/token', grant(made)))
  t.match(json.json(), { status: 415, code: 'unsupported_media_type' })

  await t.test('also by its token', async (t) => {
    const bound = await makeKey(acme, { cidrs: ['192.0.2.0/24'] })
    const form = { method: 'POST', url: tokenPath, payload: new URLSearchParams(grant(bound)).toString() } as const
    const askFrom = (ip: string) => {
      const { headers, ...rest } = from(ip)
      return send(app, 'localhost', {
        ...form,
        ...rest,
        headers: { ...headers, 'content-type': 'application/x-www-form-urlencoded' }
      })
    }
    t.match((await askFrom('198.51.100.1')).json(), { error: 'invalid_client' })
    const { access_token } = (await askFrom('192.0.2.7')).json()
    const useFrom = (ip: string) => {
      const { headers, ...rest } = from(ip)
      return acme.with(access_token, { url: '/api/v1/tenant', ...rest, headers })
    }
    t.equal((await useFrom('192.0.2.8')).statusCode, 200)
    t.match((await useFrom('198.51.100.1')).json(), { status: 403, code: 'forbidden' })
  })
})

t.test('an OAuth client of others finds the way by itself', async (t) => {
  const app = await startApp(t)
  const acme = await createTenant(app, 'acme')
  const made = await makeKey(acme)
  await app.listen({ host: '127.0.0.1', port: 0 })
  const { port } = app.server.address() as { port: number }
  /** Sends what is for https://api.localhost to the server of this test. */
  const customFetch = (url: string, init: { method?: string; headers?: Record<string, string>; body?: unknown }) => {
    const { pathname } = new URL(url)
    return fetch(`http://127.0.0.1:${port}${pathname}`, init as RequestInit)
  }
  const options = { [oauth.customFetch]: customFetch as never }
  const issuer = new URL('https://api.localhost')
  const found = await oauth.discoveryRequest(issuer, { algorithm: 'oauth2', ...options })
  const server = await oauth.processDiscoveryResponse(issuer, found)
  t.strictSame(server.grant_types_supported, ['client_credentials'])

  for (const authenticate of [oauth.ClientSecretBasic, oauth.ClientSecretPost]) {
    const client = { client_id: made.id }
    const parameters = new URLSearchParams({ scope: 'files:read' })
    const reply = await oauth.clientCredentialsGrantRequest(server, client, authenticate(made.key), parameters, {
      ...options,
      [oauth.allowInsecureRequests]: true
    })
    const token = await oauth.processClientCredentialsResponse(server, client, reply)
    t.match(token, { token_type: 'bearer', expires_in: 900, scope: 'files:read' })
    t.equal((await acme.with(token.access_token, '/api/v1/files')).statusCode, 200)

    const refused = await oauth.clientCredentialsGrantRequest(
      ...([server, client, authenticate(made.key), new URLSearchParams({ scope: 'members:read' })] as const),
      { ...options, [oauth.allowInsecureRequests]: true }
    )
    await t.rejects(oauth.processClientCredentialsResponse(server, client, refused), {
      error: 'invalid_scope'
    } as never)
  }
  t.equal(
    (await send(app, acme.host, '/.well-known/oauth-authorization-server')).statusCode,
    404,
    'an agency is no issuer'
  )
})
