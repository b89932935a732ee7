import type { InjectOptions } from 'fastify'
import t from 'tap'
import {
  allRows,
  createTenant,
  createTestDatabase,
  eventually,
  password,
  post,
  type Reply,
  send,
  setStatus,
  startApp,
  type TestApp
} from './harness.ts'
import { isProblemOfRequest, signIn, written } from './problem-documents.ts'

type Asked = { host: string; url?: string; token?: string | undefined }

/** The origin that a reply allows. undefined: none. */
async function allowedOrigin(app: TestApp, { host, url = '/api/v1/users/me', token }: Asked, origin: string) {
  const headers = { origin, ...(token !== undefined && { authorization: `Bearer ${token}` }) }
  return (await send(app, host, { url, headers })).headers['access-control-allow-origin']
}

function preflight(app: TestApp, host: string, url: string, origin: string, method = 'PATCH'): Promise<Reply> {
  const headers = {
    origin,
    'access-control-request-method': method,
    'access-control-request-headers': 'authorization,content-type,if-match'
  }
  return send(app, host, { method: 'OPTIONS', url, headers })
}

const corsHeaders = (reply: Reply) => Object.keys(reply.headers).filter((name) => name.startsWith('access-control-'))

async function allowOrigins(app: TestApp, host: string, token: string, origins: string[] | null): Promise<void> {
  const reply = await send(app, host, {
    method: 'PATCH',
    url: '/api/v1/tenant',
    payload: { settings: { allowed_origins: origins } },
    headers: { authorization: `Bearer ${token}` }
  })
  if (reply.statusCode !== 200) throw new Error(reply.body)
}

t.test('which web pages may call, in development', async (t) => {
  const app = await startApp(t, { CORS_ORIGINS: 'https://console.example' })
  const acme = await createTenant(app, 'acme')
  const rival = await createTenant(app, 'rival')
  await allowOrigins(app, acme.host, acme.owner.tokens.access_token, ['https://app.acme.example'])
  await allowOrigins(app, rival.host, rival.owner.tokens.access_token, ['https://app.rival.example'])

  const local = [
    'http://localhost',
    'http://localhost:3000',
    'http://acme.localhost',
    'http://rival.localhost:5173'
  ].concat(...['http://127.0.0.1', 'http://127.0.0.1:5173', 'http://[::1]:3000'])
  for (const host of ['localhost', acme.host]) {
    for (const origin of [...local, 'https://console.example'])
      t.equal(await allowedOrigin(app, { host }, origin), origin, `${origin} at ${host}`)
  }
  t.equal(await allowedOrigin(app, acme, 'https://app.acme.example'), 'https://app.acme.example')
  const strangers = [
    ...[
      'null',
      'https://evil.example',
      'http://localhost.evil.example',
      'http://evillocalhost',
      'http://localhost:3000.evil'
    ],
    ...[
      'http://127.0.0.1.evil.example',
      'http://127.0.0.10',
      'https://127.0.0.1',
      'capacitor://localhost',
      'http://localhost:',
      'http://localhost:999999',
      'http://localhost/',
      'http://user@localhost',
      'HTTP://LOCALHOST'
    ],
    ...[
      'http://app.acme.example',
      'https://app.acme.example:444',
      'https://app.acme.example.evil',
      'https://app.acme.example/'
    ],
    ...[
      'https://app.rival.example',
      'https://console.example.evil',
      'http://console.example',
      'https://CONSOLE.example',
      '*',
      ''
    ]
  ]
  for (const origin of strangers) t.equal(await allowedOrigin(app, acme, origin), undefined, origin)
})

t.test('in production', async (t) => {
  const database = await createTestDatabase(t)
  const app = await startApp(
    t,
    {
      NODE_ENV: 'production',
      BASE_DOMAIN: 'aggios.app',
      JWT_SECRET: 'a key of the tests that is long enough for production',
      PASSWORD_PEPPER: 'a pepper of the tests that is long enough for production',
      CORS_ORIGINS: 'https://console.example,capacitor://localhost'
    },
    database
  )
  const general = { host: 'api.aggios.app' }
  const register = async (slug: string) => {
    const body = { tenant: { name: slug, slug }, name: 'Owner', email: `owner@${slug}.example`, password }
    const reply = await send(app, general.host, post('/auth/register', body))
    if (reply.statusCode !== 201) throw new Error(reply.body)
    const { tenant, user, access_token } = reply.json()
    return { slug, host: `${slug}.aggios.app`, token: access_token as string, id: tenant.id, owner: { id: user.id } }
  }
  const acme = await register('acme')
  const rival = await register('rival')
  await allowOrigins(app, acme.host, acme.token, ['https://app.acme.example', 'ionic://localhost'])
  const own = 'https://acme.aggios.app'

  t.test("an agency's host lets its own page in, those that it lists, and those of the operator", async (t) => {
    for (const origin of [own, 'https://app.acme.example', 'https://console.example']) {
      t.equal(await allowedOrigin(app, acme, origin), origin)
    }
    for (const origin of ['capacitor://localhost', 'ionic://localhost']) {
      t.equal(await allowedOrigin(app, acme, origin), origin, 'and the apps that are listed')
    }
    t.equal(await allowedOrigin(app, rival, 'capacitor://localhost'), 'capacitor://localhost')
    t.equal(await allowedOrigin(app, rival, 'ionic://localhost'), undefined)
    t.equal(await allowedOrigin(app, general, 'capacitor://localhost'), 'capacitor://localhost')
  })
  t.test('and nobody else', async (t) => {
    const strangers = [
      ...[
        'null',
        '',
        '*',
        'https://evil.example',
        'https://rival.aggios.app',
        'https://aggios.app',
        'https://api.aggios.app'
      ],
      ...[
        'http://acme.aggios.app',
        'https://acme.aggios.app:8443',
        'https://acme.aggios.app:443',
        'https://acme.aggios.app.'
      ],
      ...[
        'https://acme.aggios.app.evil.com',
        'https://evilacme.aggios.app',
        'https://acme.evilaggios.app',
        'https://ACME.aggios.app'
      ],
      ...[
        'https://x.acme.aggios.app',
        'https://acme.aggios.app/',
        'https://evil@acme.aggios.app',
        `${own} https://evil.example`
      ],
      ...[`https://evil.example,${own}`, 'http://localhost:3000', 'http://acme.localhost', 'http://app.acme.example'],
      ...['https://app.acme.example:444', 'https://app.acme.example.evil.com', 'https://console.example.evil.com']
    ]
    for (const origin of strangers) t.equal(await allowedOrigin(app, acme, origin), undefined, origin)
    for (const origin of ['https://evil.example', 'null']) {
      t.strictSame(corsHeaders(await send(app, acme.host, { url: '/api/v1/health', headers: { origin } })), [], origin)
    }
  })
  t.test('the general host lets in the page of any agency', async (t) => {
    for (const origin of [own, 'https://rival.aggios.app', 'https://console.example']) {
      t.equal(await allowedOrigin(app, general, origin), origin)
    }
    const strangers = [
      ...[
        'null',
        'https://ghost.aggios.app',
        'https://evil.example',
        'http://acme.aggios.app',
        'https://acme.aggios.app:8443'
      ],
      ...[
        'https://acme.aggios.app.evil.com',
        'https://app.acme.example',
        'https://a.b.aggios.app',
        'http://localhost:3000'
      ]
    ]
    for (const origin of strangers) t.equal(await allowedOrigin(app, general, origin), undefined, origin)
  })
  t.test('a preflight needs no token, and names what may be sent', async (t) => {
    for (const host of [acme.host, general.host]) {
      const reply = await preflight(app, host, '/api/v1/users/me', own)
      t.equal(reply.statusCode, 204, host)
      t.equal(reply.headers['access-control-allow-origin'], own)
      const methods = String(reply.headers['access-control-allow-methods'])
      for (const method of ['GET', 'POST', 'PUT', 'PATCH', 'DELETE']) t.match(methods, method)
      const headers = String(reply.headers['access-control-allow-headers']).toLowerCase()
      const tracing = ['traceparent', 'tracestate', 'baggage', 'sentry-trace']
      for (const name of ['authorization', 'content-type', 'if-match', 'if-none-match', 'idempotency-key', ...tracing])
        t.match(headers, name)
      t.notMatch(headers, '*')
      t.match(String(reply.headers.vary).toLowerCase(), 'origin')
    }
  })
  t.test('the preflight of a stranger is told nothing', async (t) => {
    for (const origin of ['https://evil.example', 'null', 'http://acme.aggios.app', 'https://rival.aggios.app']) {
      t.strictSame(corsHeaders(await preflight(app, acme.host, '/api/v1/users/me', origin)), [], origin)
    }
  })
  t.test('a page can read the headers that the contract and tus name, and never sends cookies', async (t) => {
    const reply = await send(app, acme.host, {
      url: '/api/v1/users/me',
      headers: { origin: own, authorization: `Bearer ${acme.token}` }
    })
    t.equal(reply.statusCode, 200)
    t.strictSame(String(reply.headers['access-control-expose-headers']).toLowerCase().split(/,\s*/).sort(), [
      ...[
        'accept-ranges',
        'content-disposition',
        'content-range',
        'dpop-nonce',
        'etag',
        'idempotency-replayed',
        'location'
      ],
      ...['ratelimit', 'ratelimit-policy', 'retry-after', 'tus-extension', 'tus-max-size', 'tus-resumable'],
      ...['tus-version', 'upload-expires', 'upload-length', 'upload-offset', 'www-authenticate', 'x-request-id']
    ])
    t.notOk('access-control-allow-credentials' in reply.headers)
    t.match(String(reply.headers.vary).toLowerCase(), 'origin')
    const [withOrigin, without] = await Promise.all([
      send(app, acme.host, { url: '/api/v1/health', headers: { origin: own } }),
      send(app, acme.host, '/api/v1/health')
    ])
    for (const { headers } of [withOrigin, without])
      t.match(String(headers.vary).toLowerCase(), 'origin', 'caches can tell')
  })
  t.test('errors let the page read them', async (t) => {
    const request = (options: InjectOptions | string, host = acme.host) => {
      const { headers, ...others } = typeof options === 'string' ? { url: options, headers: {} } : options
      return send(app, host, { ...others, headers: { ...headers, origin: 'https://console.example' } })
    }
    const errors: [status: number, reply: Reply][] = [
      [401, await request('/api/v1/users/me')],
      [401, await request(signIn('nobody@acme.example'))],
      [403, await request({ url: '/api/v1/users/me', headers: { authorization: `Bearer ${rival.token}` } })],
      [404, await request('/x')],
      [404, await request('/api/v1/tenant', 'ghost.aggios.app')],
      [405, await request({ method: 'PUT', url: '/api/v1/tenant' })],
      [400, await request(post('/auth/login', {}))],
      [400, await request('/api/v1/health?x=1')],
      [413, await request(post('/auth/login', { email: 'x'.repeat(70_000) }))],
      [
        415,
        await request({
          method: 'POST',
          url: '/api/v1/auth/login',
          payload: 'x',
          headers: { 'content-type': 'text/plain' }
        })
      ],
      [421, await request('/api/v1/tenant', 'elsewhere.example')]
    ]
    for (const [status, reply] of errors) {
      t.equal(reply.statusCode, status)
      t.equal(reply.headers['access-control-allow-origin'], 'https://console.example', `${status}`)
      t.match(reply.headers['access-control-expose-headers'], /X-Request-Id/i, `${status}`)
      t.match(String(reply.headers.vary).toLowerCase(), 'origin', `${status}`)
    }
  })
  t.test('also the error about a URL that can not be read', async (t) => {
    const reply = await send(app, acme.host, { url: '/api/v1/problems/%zz', headers: { origin: own } })
    t.equal(reply.statusCode, 400)
    t.equal(reply.headers['access-control-allow-origin'], own)
  })
  t.test('a list that changes is in force at once', async (t) => {
    await allowOrigins(app, acme.host, acme.token, ['https://new.acme.example'])
    t.equal(await allowedOrigin(app, acme, 'https://new.acme.example'), 'https://new.acme.example')
    t.equal(await allowedOrigin(app, acme, 'https://app.acme.example'), undefined)
    await allowOrigins(app, acme.host, acme.token, null)
    t.equal(await allowedOrigin(app, acme, 'https://new.acme.example'), undefined)
  })
  t.test('a list holds web origins of https only', async (t) => {
    for (const origin of [
      '*',
      'null',
      'http://app.acme.example',
      'https://a.example/',
      'https://*.a.example',
      'a.example'
    ]) {
      await t.rejects(allowOrigins(app, acme.host, acme.token, [origin]), /validation_failed/, origin)
    }
  })
  t.test('bare addresses and localhost are for health checks only', async (t) => {
    for (const host of ['localhost', 'localhost:8080', '127.0.0.1', '10.1.2.3:8080', '[::1]', '[::1]:8080']) {
      for (const url of ['/api/v1/health', '/api/health', '/api/v1/health/live', '/api/v1/health/ready']) {
        t.equal((await send(app, host, url)).statusCode, 200, `${host}${url}`)
      }
      for (const url of ['/api/v1/users/me', '/api/v1/openapi.json', '/x']) {
        isProblemOfRequest(t, written(await send(app, host, url)), 421, 'unknown_host', `${host}${url}`)
      }
      const reply = await send(app, host, signIn('owner@acme.example'))
      t.equal(reply.json().code, 'unknown_host')
    }
    for (const host of ['aggios.app', 'API.Aggios.App.', 'api.aggios.app:443']) {
      t.equal((await send(app, host, '/api/v1/openapi.json')).statusCode, 200, host)
    }
  })
  t.test('the page of a suspended agency is a stranger on the general host', async (t) => {
    await setStatus(app, rival as never, 'suspended')
    await eventually(async () => (await allowedOrigin(app, general, 'https://rival.aggios.app')) === undefined, 5000)
    t.equal(await allowedOrigin(app, general, own), own)
  })
  t.test('an error inside is as opaque, and the page can read it', async (t) => {
    await allRows(app.database, 'alter table users rename to users_elsewhere')
    const reply = await send(app, acme.host, {
      url: '/api/v1/users/me',
      headers: { origin: own, authorization: `Bearer ${acme.token}`, 'cache-control': 'no-cache' }
    })
    isProblemOfRequest(t, written(reply), 500, 'internal_error', 'production')
    t.equal(reply.headers['access-control-allow-origin'], own)
  })
})

t.test('who asks too often is told when to come back, and a page can read it', async (t) => {
  const app = await startApp(t, { RATE_LIMIT_AUTH: '2/1m', CORS_ORIGINS: 'https://console.example' })
  const attempt = () =>
    send(app, 'localhost', {
      ...post('/auth/login', { email: 'nobody@x.example', password: 'x' }),
      headers: { origin: 'https://console.example' }
    })
  t.equal((await attempt()).statusCode, 401)
  t.equal((await attempt()).statusCode, 401)
  const reply = await attempt()
  isProblemOfRequest(t, written(reply), 429, 'rate_limited', 'the third')
  t.ok(Number(reply.headers['retry-after']) >= 1)
  t.match(reply.headers, { 'ratelimit-policy': /"\w+";q=2;w=60/, ratelimit: /"\w+";r=0;t=\d+/ })
  t.equal(reply.headers['access-control-allow-origin'], 'https://console.example')
})
