import { setTimeout as sleep } from 'node:timers/promises'
import t, { type Test } from 'tap'
import {
  createTenant,
  createTestDatabase,
  password,
  post,
  type Reply,
  send,
  setStatus,
  startApp,
  startServer,
  type TestApp,
  testEnvironment
} from './harness.ts'
import { callsOf, keysOf, needsRedis, startRedis } from './redis.ts'
import { bearer, from, me } from './requests.ts'

// bounded in time: windows of limits

const proxied = { TRUST_PROXY: '10.0.0.0/8' }

const stranger = (app: TestApp, ip: string, url = me) => send(app, 'localhost', { url, ...from(ip) })

/** Sends a request so many times, one after the other. Resolves to the last reply. */
async function repeat(count: number, request: () => Promise<Reply>): Promise<Reply> {
  let last: Reply | undefined
  for (let i = 0; i < count; i++) last = await request()
  return last as Reply
}

function isRefusal(t: Test, reply: Reply, name: string) {
  t.match(reply.json(), { status: 429, code: 'rate_limited' }, name)
  t.match(reply.headers.ratelimit, new RegExp(`"${name}";r=0;t=\\d+`))
  const [, left] = new RegExp(`"${name}";r=0;t=(\\d+)`).exec(String(reply.headers.ratelimit)) ?? []
  const wait = Number(reply.headers['retry-after'])
  t.ok(Number.isInteger(wait) && wait >= 1 && wait >= Number(left), `${name}: Retry-After ${wait}, t=${left}`)
}

t.test('what is allowed passes, and one more is refused', async (t) => {
  const app = await startApp(t, { RATE_LIMIT: '5/1m', RATE_LIMIT_TENANT: '8/1m', ...proxied })
  const acme = await createTenant(app, 'acme')
  const second = await acme.signIn()
  const rival = await createTenant(app, 'rival')

  t.test('of a person, and then of their agency', async (t) => {
    for (let left = 4; left >= 0; left--) {
      const reply = await acme.send(me)
      t.equal(reply.statusCode, 200)
      t.equal(reply.headers['ratelimit-policy'], '"tenant";q=8;w=60, "user";q=5;w=60')
      t.match(reply.headers.ratelimit, new RegExp(`^"tenant";r=${left + 3};t=(60|59), "user";r=${left};t=(60|59)$`))
    }
    isRefusal(t, await acme.send(me), 'user')
    t.equal((await acme.with(second.access_token, me)).statusCode, 429, 'another session of the same person')
  })
  t.test('however the header of the token is written', async (t) => {
    const { access_token } = acme.owner.tokens
    for (const authorization of [`bearer ${access_token}`, `BEARER ${access_token}`]) {
      t.equal((await send(app, acme.host, { url: me, headers: { authorization } })).statusCode, 429)
    }
    // a header that is no bearer counts for the address only
    for (const authorization of [`n1 Bearer ${access_token}`, `Bearer  ${access_token}`]) {
      const reply = await send(app, acme.host, { url: me, headers: { authorization }, remoteAddress: '192.0.2.1' })
      t.equal(reply.statusCode, 401)
      t.match(reply.headers.ratelimit, /^"anonymous";/)
    }
  })
  t.test('others are not concerned', async (t) => {
    t.match((await rival.send(me)).headers.ratelimit, /^"tenant";r=7;t=\d+, "user";r=4;t=\d+$/)
  })
  t.test('routes and methods that there are not count as well, health does not', async (t) => {
    t.equal((await repeat(3, () => rival.send('/api/v1/nothing'))).statusCode, 404)
    t.equal((await rival.send({ method: 'DELETE', url: '/api/v1/members' })).statusCode, 405)
    isRefusal(t, await rival.send('/api/v1/nothing'), 'user')
    isRefusal(t, await rival.send({ method: 'DELETE', url: '/api/v1/members' }), 'user')
    for (const path of ['/health', '/health/live', '/health/ready']) {
      const reply = await repeat(10, () => stranger(app, '192.0.2.9', `/api/v1${path}`))
      t.equal(reply.statusCode, 200)
      t.equal(reply.headers.ratelimit, undefined)
    }
  })
})

t.test('of an agency, by all its people together', async (t) => {
  const app = await startApp(t, { RATE_LIMIT_TENANT: '6/2s' })
  const acme = await createTenant(app, 'acme')
  const rival = await createTenant(app, 'rival')
  t.equal((await repeat(6, () => acme.send(me))).statusCode, 200)
  const refusal = await acme.send(me)
  isRefusal(t, refusal, 'tenant')
  t.equal((await rival.send(me)).statusCode, 200, 'another agency')
  await sleep(Number(refusal.headers['retry-after']) * 1000 + 50)
  t.equal((await acme.send(me)).statusCode, 200, 'when the time is over')
})

t.test('strangers are limited by address, before anything is looked up', async (t) => {
  const app = await startApp(t, { RATE_LIMIT: '5/1m', ...proxied })
  const acme = await createTenant(app, 'acme')
  let lookups = 0
  const { query } = app.gate
  app.gate.query = (settings, statement, values) => {
    if (statement.name === 'find_tenant' || statement.name === 'tenant_entry') lookups++
    return query(settings, statement, values)
  }
  const spend = (ip: string) => repeat(5, () => stranger(app, ip))
  t.equal((await spend('198.51.100.1')).statusCode, 401)
  isRefusal(t, await stranger(app, '198.51.100.1'), 'anonymous')

  t.test('hosts of agencies, known or not, are not asked for', async (t) => {
    for (const host of ['nobody.localhost', 'acme.localhost']) {
      t.equal((await send(app, host, { url: me, ...from('198.51.100.1') })).statusCode, 429, host)
    }
    t.equal(lookups, 0)
  })
  t.test('preflights are answered all the same, those above ten times the limit from memory', async (t) => {
    const preflight = (host: string) =>
      send(app, host, {
        method: 'OPTIONS',
        url: me,
        remoteAddress: '10.0.0.1',
        headers: {
          'x-forwarded-for': '198.51.100.1',
          origin: 'http://localhost:3000',
          'access-control-request-method': 'GET'
        }
      })
    for (let i = 0; i < 60; i++) t.equal((await preflight(`nobody${i}.localhost`)).statusCode, 204)
    t.equal(lookups, 50)
    t.equal((await preflight('acme.localhost')).headers['access-control-allow-origin'], 'http://localhost:3000')
  })
  t.test('a good token never touches the count of its address, nor the other way round', async (t) => {
    const signedIn = {
      url: me,
      remoteAddress: '10.0.0.1',
      headers: { 'x-forwarded-for': '198.51.100.1', ...bearer(acme.owner.tokens.access_token) }
    }
    t.equal((await send(app, acme.host, signedIn)).statusCode, 200, 'in the office of the stranger')
    t.match((await stranger(app, '198.51.100.7')).headers.ratelimit, /"anonymous";r=4/)
    await repeat(2, () =>
      send(app, acme.host, { ...signedIn, headers: { ...signedIn.headers, 'x-forwarded-for': '198.51.100.7' } })
    )
    t.match((await stranger(app, '198.51.100.7')).headers.ratelimit, /"anonymous";r=3/)
  })
  t.test('a token that is not good counts for its address', async (t) => {
    const forged = {
      url: me,
      remoteAddress: '10.0.0.1',
      headers: { 'x-forwarded-for': '198.51.100.8', ...bearer('forged') }
    }
    const reply = await send(app, acme.host, forged)
    t.equal(reply.json().code, 'invalid_token')
    t.match(reply.headers.ratelimit, /^"anonymous";r=4;t=\d+$/)
  })
  t.test('nobody uses up what belongs to an agency by naming it', async (t) => {
    const before = (await acme.send(me)).headers.ratelimit as string
    for (let i = 0; i < 20; i++)
      await send(app, acme.host, {
        url: me,
        ...from(`198.51.100.${100 + i}`),
        headers: { 'x-forwarded-for': `198.51.100.${100 + i}`, 'x-tenant-id': acme.id }
      })
    const after = (await acme.send(me)).headers.ratelimit as string
    const left = (text: string) => Number(/"user";r=(\d+)/.exec(text)?.[1])
    t.equal(left(after), left(before) - 1)
  })
  t.test('nothing that a client writes makes it another', async (t) => {
    const statuses = []
    for (let i = 0; i < 7; i++) {
      const headers = {
        'x-forwarded-for': `203.0.113.${i}`,
        forwarded: `for=203.0.113.${i}`,
        'x-real-ip': `203.0.113.${i}`,
        'true-client-ip': `203.0.113.${i}`
      }
      statuses.push((await send(app, 'localhost', { url: me, remoteAddress: '192.0.2.77', headers })).statusCode)
    }
    t.strictSame(statuses, [401, 401, 401, 401, 401, 429, 429])
  })
  t.test('one IPv6 network is one, however it is written; two clients of a proxy are two', async (t) => {
    const spellings = [
      '2001:db8:9:9::1',
      '2001:DB8:9:9:ffff::2',
      '2001:0db8:0009:0009:0:0:0:3',
      '2001:db8:9:9:0:0:192.0.2.1',
      '2001:db8:9:9::5'
    ]
    for (const ip of spellings) t.equal((await stranger(app, ip)).statusCode, 401, ip)
    isRefusal(t, await stranger(app, '2001:db8:9:9:abcd::1'), 'anonymous')
    t.equal((await stranger(app, '2001:db8:9:a::1')).statusCode, 401)
    for (let i = 0; i < 5; i++) await stranger(app, i % 2 ? '::ffff:192.0.2.60' : '192.0.2.60')
    isRefusal(t, await stranger(app, '::ffff:192.0.2.60'), 'anonymous')
    t.equal((await stranger(app, '192.0.2.61')).statusCode, 401)
  })
  t.test('a page can read why', async (t) => {
    const headers = { 'x-forwarded-for': '198.51.100.1', origin: 'http://acme.localhost:3000' }
    const reply = await send(app, acme.host, { url: me, remoteAddress: '10.0.0.1', headers })
    t.equal(reply.statusCode, 429)
    t.equal(reply.headers['access-control-allow-origin'], 'http://acme.localhost:3000')
  })
  t.test('a suspended agency and one that is not there look the same', async (t) => {
    await setStatus(app, acme, 'suspended')
    await app.revocations.readNow()
    const seen = async (host: string, ip: string) => {
      const replies = []
      for (let i = 0; i < 6; i++) {
        const { statusCode, headers } = await send(app, host, {
          ...post('/auth/refresh', { refresh_token: 'x' }),
          ...from(ip)
        })
        replies.push([statusCode, String(headers.ratelimit).replaceAll(/t=\d+/g, 't'), headers['ratelimit-policy']])
      }
      return replies
    }
    t.strictSame(await seen(acme.host, '203.0.113.50'), await seen('nobody.localhost', '203.0.113.51'))
  })
})

t.test('a route can be counted by itself', async (t) => {
  const app = await startApp(t, { RATE_LIMIT_AUTH: '3/1m' })
  const acme = await createTenant(app, 'acme')
  const invite = (number: number) =>
    acme.send(post('/invitations', { email: `new${number}@acme.example`, role: 'member' }))
  for (let i = 0; i < 3; i++) t.equal((await invite(i)).statusCode, 201)
  isRefusal(t, await invite(4), 'route')
  t.equal((await acme.send('/api/v1/invitations')).statusCode, 200, 'others go on')
})

t.test('200 at once get no further than the limit', async (t) => {
  const app = await startApp(t, { RATE_LIMIT: '20/1m' })
  const replies = await Promise.all(Array.from({ length: 200 }, () => send(app, 'localhost', me)))
  t.equal(replies.filter(({ statusCode }) => statusCode === 401).length, 20)
})

t.test('through Redis', needsRedis, async (t) => {
  const redis = await startRedis(t)
  const env = { REDIS_URL: redis.url }

  t.test('three processes share a quota to within 2 %, and never exceed it', async (t) => {
    const database = await createTestDatabase(t)
    const apps = await Promise.all([1, 2, 3].map(() => startApp(t, { ...env, RATE_LIMIT: '1000/1h' }, database)))
    await redis.admin.config('RESETSTAT')
    const passed = [0, 0, 0]
    // unequal numbers of requests, several at once on each process
    await Promise.all(
      [0, 1, 2, 0, 1, 0, 2, 0, 0, 0].map(async (index) => {
        for (let i = 0; i < (index === 0 ? 130 : 120); i++) {
          const { statusCode } = await send(apps[index] as TestApp, 'localhost', me)
          if (statusCode === 401) passed[index] = (passed[index] as number) + 1
          else if (statusCode !== 429) t.fail(`${statusCode}`)
        }
      })
    )
    const total = passed.reduce((sum, each) => sum + each, 0)
    t.comment(`${passed.join(' + ')} = ${total} of 1000`)
    t.ok(total <= 1000 && total >= 980, `${total} have passed`)
    t.ok(
      passed.every((each) => each > 50),
      'each process had its part'
    )
    const { evalsha = 0 } = await callsOf(redis.admin)
    t.ok(evalsha < 400, `${evalsha} commands for 1,260 requests`)
  })

  t.test('what is leased costs no command, and neither does what is refused', async (t) => {
    const app = await startApp(t, { ...env, RATE_LIMIT: '6000/1h', ...proxied })
    // until the address is known to be busy
    await repeat(200, () => stranger(app, '198.51.100.1'))
    await redis.admin.config('RESETSTAT')
    t.equal((await repeat(300, () => stranger(app, '198.51.100.1'))).statusCode, 401)
    const { evalsha = 0 } = await callsOf(redis.admin)
    t.ok(evalsha > 0 && evalsha <= 15, `${evalsha} commands for 300 requests`)

    const tight = await startApp(t, { ...env, RATE_LIMIT: '3/1h', ...proxied })
    await repeat(4, () => stranger(tight, '198.51.100.2'))
    await redis.admin.config('RESETSTAT')
    t.equal((await repeat(50, () => stranger(tight, '198.51.100.2'))).statusCode, 429)
    t.equal((await callsOf(redis.admin)).evalsha ?? 0, 0)
  })

  t.test('200 at once on several processes get no further than the limit', async (t) => {
    const database = await createTestDatabase(t)
    const tight = { ...env, ...proxied, RATE_LIMIT_AUTH: '10/1m' }
    const apps = await Promise.all([1, 2, 3].map(() => startApp(t, tight, database)))
    const acme = await createTenant(apps[0] as TestApp, 'acme')
    const replies = await Promise.all(
      Array.from({ length: 200 }, (_, i) =>
        send(apps[i % 3] as TestApp, 'localhost', {
          ...post('/auth/login', { email: acme.owner.email, password: 'not the right one' }),
          ...from(`198.51.${i % 50}.${i}`)
        })
      )
    )
    t.equal(replies.filter(({ statusCode }) => statusCode === 401).length, 10)
    t.equal(replies.filter(({ statusCode }) => statusCode === 429).length, 190)
    const elsewhere = { ...post('/auth/login', { email: acme.owner.email, password }), ...from('203.0.113.1') }
    for (const app of apps) t.equal((await send(app, 'localhost', elsewhere)).statusCode, 429)
  })

  t.test('clocks that differ by minutes make no difference', async (t) => {
    const database = await createTestDatabase(t)
    const start = (ahead: number) => {
      const shift = `data:text/javascript,const now=Date.now;Date.now=()=>now()+${ahead}`
      const more = { ...env, RATE_LIMIT: '40/8s', NODE_OPTIONS: `--import=${encodeURI(shift)}` }
      return startServer(t, testEnvironment(database, more))
    }
    const servers = await Promise.all([start(90_000), start(-90_000)])
    /** The number of requests that pass, of so many on both processes. */
    const pass = async () => {
      const statuses = []
      for (let i = 0; i < 60; i++) statuses.push((await (servers[i % 2] as (typeof servers)[0]).fetch(me)).status)
      return statuses.filter((status) => status === 401).length
    }
    t.equal(await pass(), 40)
    await sleep(8100)
    t.equal(await pass(), 40, 'in the next window too')
  })

  t.test('every key is ours and has an end, and says nobody\u2019s name', async (t) => {
    const keys = await keysOf(redis.admin)
    t.ok(keys.length > 3)
    for (const [name, ttl] of keys) {
      t.match(name, /^aggios:quota:[\w-]{22}:\d+$/)
      t.ok(ttl > 0 && ttl <= 3_600_000, `${name} ends in ${ttl} ms`)
    }
  })
})

t.test('what needs no token keeps nobody at the same address from anything else', async (t) => {
  const app = await startApp(t, { RATE_LIMIT: '5/1m', RATE_LIMIT_AUTH: '100/1m', ...proxied })
  const acme = await createTenant(app, 'acme')
  const office = from('198.51.100.1')
  const ask = (request: object) =>
    send(app, acme.host, { ...request, ...office, headers: { ...office.headers, 'content-type': 'application/json' } })
  const get = (url: string) => ({ method: 'GET', url: `/api/v1${url}` })
  const put = (url: string, payload: object) => ({ method: 'POST', url: `/api/v1${url}`, payload })
  const id = '019a2c4e-7b1d-4c3e-9f00-3d5a1b2c4d5e'
  // one after the other is spent, and what comes after is as it was
  const routes: [what: string, allowed: number, request: (i: number) => object][] = [
    ['an image', 50, (i) => get(`/images/${id}/${id.slice(0, -2)}${10 + i}`)],
    ['a link to a file', 50, (i) => get(`/files/links/token-${i}/content`)],
    ['the document', 5, () => get('/openapi.json')],
    ['the page of the document', 5, () => get('/docs')],
    ['what the page needs', 5, () => get('/docs/static/swagger-ui.css')],
    ['a kind of problem', 5, () => get('/problems/not_found')],
    ['a new session', 5, () => put('/auth/refresh', { refresh_token: 'x' })],
    ['an end of a session', 5, () => put('/auth/logout', { refresh_token: 'x' })],
    ['what is not there', 5, (i) => get(`/nothing-${i}`)],
    ['an invitation', 5, () => put('/invitations/accept', { token: 'x' })],
    ['a new agency', 5, () => put('/auth/register', {})],
    ['a code', 5, () => put('/auth/mfa', { mfa_token: 'x', code: '123456' })],
    ['a sign-in with a passkey', 5, () => put('/auth/passkeys', {})],
    ['options for a passkey', 5, () => put('/auth/passkeys/options', {})],
    ['options for a second factor', 5, () => put('/auth/mfa/passkey/options', { mfa_token: 'x' })],
    ['a new factor', 5, () => put('/auth/mfa/totp', { mfa_token: 'x' })],
    ['options for a new passkey', 5, () => put('/auth/mfa/passkeys/options', { mfa_token: 'x' })],
    ['a new passkey', 5, () => put('/auth/mfa/passkeys', {})],
    ['a mail for a new password', 5, (i) => put('/auth/password/forgot', { email: `nobody-${i}@acme.example` })],
    ['a new password', 5, () => put('/auth/password/reset', { token: 'x', password })],
    ['a confirmed address', 5, () => put('/auth/email/verify', { token: 'x' })],
    ['the list of providers', 5, () => get('/auth/providers')],
    ['a sign-in at a provider', 5, () => get('/auth/oauth/nobody')],
    ['a link of an identity', 5, () => get('/auth/oauth/nobody/link')],
    ['an answer of a provider', 5, () => get('/auth/oauth/nobody/callback')],
    ['a code of a sign-in', 5, () => put('/auth/oauth/token', { code: 'x', code_verifier: 'x'.repeat(43) })],
    ['a token for a key', 5, () => put('/auth/token', {})],
    ['where tokens are', 5, () => ({ method: 'GET', url: '/.well-known/oauth-authorization-server' })],
    ['a sign-in', 5, () => put('/auth/login', { email: acme.owner.email, password })]
  ]
  for (const [what, allowed, request] of routes) {
    for (let i = 0; i < allowed; i++) {
      const { statusCode, body } = await ask(request(i))
      if (statusCode === 429) t.fail(`${what}, ${i}: ${body}`)
    }
    isRefusal(t, await ask(request(allowed)), 'anonymous')
  }
  const { statusCode } = await ask({ ...get('/users/me') })
  t.equal(statusCode, 429, 'what needs a token counts with what is not there')
  const signedIn = { ...office.headers, ...bearer(acme.owner.tokens.access_token) }
  t.equal((await send(app, acme.host, { url: me, ...office, headers: signedIn })).statusCode, 200)

  t.test('and every route that needs none is tried here', async (t) => {
    const document = app.swagger() as { paths: Record<string, Record<string, { security?: unknown[] }>> }
    const isPublic = (path: string) =>
      Object.values(document.paths[path] ?? {}).some(({ security }) => !security?.length)
    const tried = routes.map(([, , request]) => (request(0) as { url: string }).url)
    const open = Object.keys(document.paths).filter((path) => isPublic(path) && !path.includes('/health'))
    t.ok(open.length > 5, open.join(', '))
    t.strictSame(
      open.filter((path) => !tried.some((url) => new RegExp(`^${path.replaceAll(/\{\w+\}/g, '[^/]+')}$`).test(url))),
      ['/api/v1/openapi.yaml']
    )
  })
})
