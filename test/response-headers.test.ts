import t from 'tap'
import { policies } from './authz-policy.ts'
import { createTenant, post, type Reply, send, startApp } from './harness.ts'
import { createWorld } from './isolation-world.ts'
import { json, signIn } from './problem-documents.ts'

t.test('the id of a request', async (t) => {
  const app = await startApp(t)
  const idFor = async (given: string) =>
    (await send(app, 'localhost', { url: '/api/v1/health/live', headers: { 'x-request-id': given } })).headers[
      'x-request-id'
    ]

  t.test('is the one that the client gave', async (t) => {
    for (const id of ['a', 'A-Z_0.9', 'x'.repeat(128), '00-4bf92f3577b34da6a3ce929d0e0e4736-01'])
      t.equal(await idFor(id), id)
  })
  t.test('is a new one where that could do harm', async (t) => {
    const harmful = [
      '',
      ' ',
      'x'.repeat(129),
      'a b',
      'a"b',
      '{"a":1}',
      'a\tb',
      'é',
      'a,b',
      '../x',
      'a\u001b[31m',
      '<b>',
      "'"
    ]
    for (const id of harmful) {
      const given = await idFor(id)
      t.not(given, id)
      t.match(given, /^[A-Za-z0-9._-]{1,128}$/, JSON.stringify(id))
    }
  })
  t.test('is another one for every request', async (t) => {
    const ids = await Promise.all(
      Array.from({ length: 50 }, async () => (await send(app, 'localhost', '/nothing')).headers['x-request-id'])
    )
    t.equal(new Set(ids).size, 50)
  })
})

t.test('what every reply carries', async (t) => {
  const app = await startApp(t, { CORS_ORIGINS: 'https://console.example' })
  const acme = await createTenant(app, 'acme')
  const etag = String((await acme.send('/api/v1/users/me')).headers.etag)
  const requests: Record<string, Promise<Reply>> = {
    'a reply': acme.send('/api/v1/users/me'),
    'nothing new': acme.send({ url: '/api/v1/users/me', headers: { 'if-none-match': etag } }),
    'no content': acme.send({ method: 'DELETE', url: '/api/v1/users/me/sessions' }),
    tokens: acme.anonymous(signIn(acme.owner.email)),
    'a refusal': acme.anonymous('/api/v1/users/me'),
    'no route': acme.anonymous('/x'),
    'no method': acme.anonymous({ method: 'PUT', url: '/api/v1/tenant' }),
    'no agency': send(app, 'ghost.localhost', '/api/v1/tenant'),
    'no host': send(app, 'example.com', '/api/v1/tenant'),
    'no JSON': acme.anonymous({ method: 'POST', url: '/api/v1/auth/login', payload: '{', headers: json }),
    'too much': acme.anonymous(post('/auth/login', { email: 'x'.repeat(70_000) })),
    'a preflight': acme.anonymous({
      method: 'OPTIONS',
      url: '/api/v1/users/me',
      headers: { origin: 'https://console.example', 'access-control-request-method': 'GET' }
    }),
    'the document': acme.anonymous('/api/v1/openapi.json'),
    'the page': acme.anonymous('/api/v1/docs'),
    'a page about a problem': acme.anonymous('/api/v1/problems/last_owner'),
    health: acme.anonymous('/api/v1/health'),
    HEAD: acme.send({ method: 'HEAD', url: '/api/v1/users/me' })
  }
  for (const [what, asked] of Object.entries(requests)) {
    t.test(what, async (t) => {
      const { headers } = await asked
      t.match(headers, {
        'x-content-type-options': 'nosniff',
        'referrer-policy': /^(?:no-referrer|strict-origin)/,
        'x-frame-options': 'DENY',
        'cross-origin-resource-policy': 'same-origin',
        'x-request-id': /^[A-Za-z0-9._-]{1,128}$/,
        'cache-control': /\S/
      })
      const hsts = String(headers['strict-transport-security'])
      t.ok(Number(/max-age=(\d+)/.exec(hsts)?.[1]) >= 31_536_000, 'HSTS of a year')
      t.match(hsts, 'includeSubDomains')
      const csp = String(headers['content-security-policy'])
      t.match(csp, "default-src 'none'")
      t.match(csp, "frame-ancestors 'none'")
      t.match(String(headers.vary).toLowerCase(), 'origin', 'Vary')
      for (const name of ['server', 'x-powered-by', 'set-cookie']) t.notOk(name in headers, name)
    })
  }
  t.test('what may be kept, and by whom', async (t) => {
    const cacheControl = async (what: string) => (await requests[what])?.headers['cache-control']
    for (const what of ['tokens', 'a refusal', 'no route', 'no JSON', 'health']) {
      t.equal(await cacheControl(what), 'no-store', what)
    }
    for (const url of ['/api/v1/users/me', '/api/v1/tenant']) {
      const { headers } = await acme.send(url)
      t.equal(headers['cache-control'], 'private, no-cache', url)
      t.match(headers.etag, /^(?:W\/)?"[^"]+"$/, url)
      t.match(String(headers.vary).toLowerCase(), 'authorization', url)
      const again = await acme.send({ url, headers: { 'if-none-match': headers.etag as string } })
      t.equal(again.statusCode, 304, url)
      t.equal(again.body, '')
      t.equal(again.headers.etag, headers.etag)
      t.equal(again.headers['cache-control'], 'private, no-cache')
    }
    for (const what of ['the document', 'a page about a problem']) t.match(await cacheControl(what), /^public\b/, what)
  })
})

/*
 * HEAD is GET without the body (RFC 9110, 9.3.2): the same refusals and headers, no effect, and no work for the body.
 */

t.test('HEAD of every operation that is read', async (t) => {
  const world = await createWorld(t)
  const { app, a, sql } = world
  const tables = [
    'audit_events',
    'files',
    'invitations',
    'memberships',
    'outbox',
    'sessions',
    'tenants',
    'uploads',
    'users'
  ]
  const sums = tables.map((name) => `(select md5(string_agg(r::text, '' order by r::text)) from ${name} r) as ${name}`)
  const rows = async () => (await sql.query(`select ${sums.join(', ')}`)).rows
  const operations = world.operations.filter(({ method }) => method === 'GET')
  t.ok(operations.length > 20, `${operations.length} operations`)
  for (const { id, path, access } of operations) {
    if (access === 'internal') continue
    const policy = policies[id]
    if (!policy) throw new Error(`${id} has no policy`)
    const { params = {}, query, headers, caller, side } = await policy.make(world, a, 'owner')
    const host = side?.host ?? 'localhost'
    const filled = path.replaceAll(/\{(\w+)\}/g, (_, name) => encodeURIComponent(params[name] ?? ''))
    const url = query ? `${filled}?${new URLSearchParams(query)}` : filled
    const own = { ...headers, host, ...(caller && { authorization: `Bearer ${caller.token}` }) }
    const before = await rows()
    const head = await app.inject({ method: 'HEAD', url, headers: own })
    t.equal(head.statusCode, policy.status, id)
    t.equal(head.body, '', id)
    t.strictSame(await rows(), before, `${id} changes nothing`)
    const get = await app.inject({ method: 'GET', url, headers: own })
    for (const name of ['content-type', 'content-disposition', 'cache-control', 'accept-ranges']) {
      t.equal(head.headers[name], get.headers[name], `${id}: ${name}`)
    }
    const refused = await app.inject({ method: 'HEAD', url, headers: { host } })
    // without the cookie of the flow it is nobody's callback
    const open = id === 'finishAtProvider' ? 400 : policy.status
    t.equal(refused.statusCode, access === 'public' ? open : 401, `${id} as nobody`)
  }
})
