import { once } from 'node:events'
import { METHODS } from 'node:http'
import { connect } from 'node:net'
import type { InjectOptions } from 'fastify'
import t, { type Test } from 'tap'
import { catalogue } from '../src/http/problems.ts'
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
import { listen } from './requests.ts'

/** What must never leave: stacks, paths, SQL, the words of driver, framework and parser. */
const inside =
  /\bat .+:\d+:\d+|node_modules|\/work\/|\.ts\b|\b(?:select|insert into|update|delete from)\b.*\b(?:from|values|set|where)\b|FST_|HPE_|ERR_|ECONN|\brelation\b|postgres|kysely|fastify/i

type Written = { status: number; headers: Record<string, unknown>; body: string }

const written = (reply: Reply): Written => ({ status: reply.statusCode, headers: reply.headers, body: reply.body })

/** Holds a refusal against what every one of them must be. */
function isProblem(t: Test, reply: Written, status: number, code: string, what: string): void {
  t.equal(reply.status, status, `${what}: status`)
  t.match(reply.headers['content-type'], /^application\/problem\+json(?:;|$)/, `${what}: media type`)
  const problem = JSON.parse(reply.body)
  t.match(problem, { status, code, type: `/api/v1/problems/${code}`, title: /\S/ }, `${what}: document`)
  t.equal('errors' in problem, code === 'validation_failed', `${what}: errors`)
  t.notMatch(reply.body, inside, `${what}: opaque`)
}

/** Also that it says which request it was: what never was a request has no id. */
function isProblemOfRequest(t: Test, reply: Written, status: number, code: string, what: string): void {
  isProblem(t, reply, status, code, what)
  const id = reply.headers['x-request-id']
  t.match(id, /^[A-Za-z0-9._-]{1,128}$/, `${what}: X-Request-Id`)
  t.equal(JSON.parse(reply.body).request_id, id, `${what}: request_id`)
}

/** Writes bytes to a socket and reads until the other side closes it, or `patienceMs` have gone. */
async function exchange(port: number, bytes: string | string[], patienceMs = 5000) {
  const socket = connect({ port, host: '127.0.0.1', allowHalfOpen: true })
  let text = ''
  let closed = false
  socket.setEncoding('latin1').on('data', (chunk: string) => {
    text += chunk
  })
  socket.on('error', () => {})
  const end = new Promise<void>((done) => {
    const timer = setTimeout(done, patienceMs)
    for (const event of ['end', 'close']) {
      socket.once(event, () => {
        closed = true
        clearTimeout(timer)
        done()
      })
    }
  })
  await once(socket, 'connect')
  for (const part of [bytes].flat()) socket.write(part, 'latin1')
  await end
  socket.destroy()
  return { text, closed, replies: repliesIn(text) }
}

function repliesIn(text: string): Written[] {
  return text.split(/(?=HTTP\/1\.1 \d{3} )/).flatMap((each) => {
    const match = /^HTTP\/1\.1 (\d{3})[^\r]*\r\n([\s\S]*?)\r\n\r\n([\s\S]*)$/.exec(each)
    if (!match) return []
    const headers = Object.fromEntries(
      (match[2] as string).split('\r\n').map((line): [string, string] => {
        const at = line.indexOf(':')
        return [line.slice(0, at).toLowerCase(), line.slice(at + 1).trim()]
      })
    )
    return [{ status: Number(match[1]), headers, body: match[3] as string }]
  })
}

const json = { 'content-type': 'application/json' }
const signIn = (email: string) => post('/auth/login', { email, password })

t.test('every refusal is a problem document', async (t) => {
  const app = await startApp(t)
  const acme = await createTenant(app, 'acme')
  const { authorization } = { authorization: `Bearer ${acme.owner.tokens.access_token}` }
  const body = (payload: string, headers = {}): InjectOptions => ({
    method: 'POST',
    url: '/api/v1/auth/login',
    payload,
    headers: { ...json, ...headers }
  })
  const refusals: [what: string, host: string, request: InjectOptions | string, status: number, code: string][] = [
    ['no such route', 'localhost', '/api/v1/nothing', 404, 'route_not_found'],
    ['the root', 'localhost', '/', 404, 'route_not_found'],
    ['a file that scanners ask for', 'localhost', '/.git/config', 404, 'route_not_found'],
    ['metrics', 'localhost', '/metrics', 404, 'route_not_found'],
    ['another case', 'localhost', '/API/v1/health', 404, 'route_not_found'],
    ['a path that climbs', 'localhost', '/api/v1/../../etc/passwd', 404, 'route_not_found'],
    ['DELETE of nothing', 'localhost', { method: 'DELETE', url: '/x' }, 404, 'route_not_found'],
    ['POST of health', 'localhost', { method: 'POST', url: '/api/v1/health' }, 405, 'method_not_allowed'],
    ['GET of login', 'localhost', '/api/v1/auth/login', 405, 'method_not_allowed'],
    ['GET of an alias', 'localhost', '/api/logout', 405, 'method_not_allowed'],
    ['TRACE', 'localhost', { method: 'TRACE' as 'GET', url: '/api/v1/users/me' }, 405, 'method_not_allowed'],
    ['half a JSON', 'localhost', body('{"email":'), 400, 'malformed_json'],
    ['two JSONs', 'localhost', body('{}{}'), 400, 'malformed_json'],
    ['NaN', 'localhost', body('{"email":NaN}'), 400, 'malformed_json'],
    ['__proto__', 'localhost', body('{"__proto__":{"admin":true}}'), 400, 'malformed_json'],
    ['__proto__ escaped', 'localhost', body('{"\\u005f_proto__":{"admin":true}}'), 400, 'malformed_json'],
    ['__proto__ inside', 'localhost', body('{"email":{"__proto__":{}}}'), 400, 'malformed_json'],
    ['constructor', 'localhost', body('{"constructor":{"prototype":{"a":1}}}'), 400, 'malformed_json'],
    ['a bare number', 'localhost', body('1'), 400, 'validation_failed'],
    ['null', 'localhost', body('null'), 400, 'validation_failed'],
    ['an array', 'localhost', body('[]'), 400, 'validation_failed'],
    ['deep arrays', 'localhost', body('['.repeat(30_000) + ']'.repeat(30_000)), 400, 'validation_failed'],
    ['no body', 'localhost', { method: 'POST', url: '/api/v1/auth/login' }, 400, 'validation_failed'],
    ['a huge body', 'localhost', body(JSON.stringify({ email: 'x'.repeat(70_000) })), 413, 'payload_too_large'],
    ['plain text', 'localhost', body('{}', { 'content-type': 'text/plain' }), 415, 'unsupported_media_type'],
    ['an unknown parameter', 'localhost', '/api/v1/health?verbose=1', 400, 'validation_failed'],
    ['no such problem page', 'localhost', '/api/v1/problems/nothing', 404, 'not_found'],
    ['no token', acme.host, '/api/v1/users/me', 401, 'unauthenticated'],
    [
      'half a token',
      acme.host,
      { url: '/api/v1/users/me', headers: { authorization: 'Bearer x' } },
      401,
      'invalid_token'
    ],
    ['a wrong password', acme.host, signIn('nobody@acme.example'), 401, 'invalid_credentials'],
    ['no such session', acme.host, { ...post('/auth/refresh', { refresh_token: 'x' }) }, 401, 'invalid_refresh_token'],
    [
      'a bad id',
      acme.host,
      { method: 'DELETE', url: '/api/v1/users/me/sessions/1', headers: { authorization } },
      400,
      'validation_failed'
    ],
    [
      'a bad cursor',
      acme.host,
      { url: '/api/v1/users/me/tenants?cursor=x', headers: { authorization } },
      400,
      'invalid_cursor'
    ],
    ['no such agency', 'ghost.localhost', '/api/v1/users/me', 404, 'tenant_not_found'],
    ['no such agency, no such route', 'ghost.localhost', '/x', 404, 'tenant_not_found'],
    ['another host', 'www.example.com', '/api/v1/users/me', 421, 'unknown_host'],
    ['another host, no such route', 'www.example.com', '/x', 421, 'unknown_host'],
    ['a host that is none', 'a b', '/api/v1/users/me', 400, 'malformed_request'],
    [
      'a taken slug',
      'localhost',
      post('/auth/register', { tenant: { name: 'A', slug: 'acme' }, name: 'A', email: 'a@a.example', password }),
      409,
      'slug_taken'
    ],
    [
      'an old ETag',
      acme.host,
      { method: 'PATCH', url: '/api/v1/users/me', payload: {}, headers: { authorization, 'if-match': '"0"' } },
      412,
      'precondition_failed'
    ],
    [
      'the last owner',
      acme.host,
      { method: 'DELETE', url: '/api/v1/users/me', payload: { password }, headers: { authorization } },
      409,
      'last_owner'
    ]
  ]
  for (const [what, host, request, status, code] of refusals) {
    t.test(what, async (t) => isProblemOfRequest(t, written(await send(app, host, request)), status, code, what))
  }

  t.test('405 names the methods that there are', async (t) => {
    const allowed = async (url: string, method = 'PUT') => {
      const reply = await send(app, 'localhost', { method: method as 'PUT', url })
      t.equal(reply.statusCode, 405, url)
      return String(reply.headers.allow)
        .split(/,\s*/)
        .filter((each) => each !== 'OPTIONS')
        .sort()
    }
    t.strictSame(await allowed('/api/v1/users/me'), ['DELETE', 'GET', 'HEAD', 'PATCH'])
    t.strictSame(await allowed('/api/users/me'), ['DELETE', 'GET', 'HEAD', 'PATCH'])
    t.strictSame(await allowed('/api/v1/auth/login'), ['POST'])
    t.strictSame(await allowed('/api/v1/health', 'POST'), ['GET', 'HEAD'])
    t.strictSame(await allowed('/api/v1/users/me/sessions/0'), ['DELETE'])
  })
  t.test('also where another path has a parameter in its place', async (t) => {
    const unfinished = ['GET', 'HEAD', 'OPTIONS']
    const paths: [path: string, methods: string[]][] = [
      ['/files/uploads', [...unfinished, 'POST']],
      ['/files/%75ploads', [...unfinished, 'POST']],
      ['/files/resumable', ['OPTIONS', 'POST']],
      ['/invitations/accept', ['OPTIONS', 'POST']],
      ['/audit-events/export', unfinished],
      [`/files/${acme.id}`, ['DELETE', ...unfinished]]
    ]
    for (const [path, methods] of paths) {
      const url = `/api/v1${path}`
      if (path !== '/files/resumable') {
        const reply = await acme.send({ method: 'OPTIONS', url })
        t.equal(reply.statusCode, 204, path)
        t.equal(reply.headers.allow, methods.join(', '), path)
      }
      for (const method of ['GET', 'POST', 'PUT', 'PATCH', 'DELETE'] as const) {
        if (methods.includes(method)) continue
        const reply = await acme.send({ method, url })
        t.match(reply.json(), { status: 405, code: 'method_not_allowed' }, `${method} ${path}`)
        t.equal(reply.headers.allow, methods.join(', '), `${method} ${path}`)
      }
    }
  })
  t.test('every method that HTTP has, whatever comes with it', async (t) => {
    // of CONNECT Node makes no request
    const others = METHODS.filter((each) => !['CONNECT', 'GET', 'HEAD', 'PATCH', 'DELETE', 'OPTIONS'].includes(each))
    t.ok(others.includes('QUERY') && others.includes('PROPFIND') && others.includes('POST'))
    const bodies: InjectOptions[] = [
      {},
      { payload: '{"half":', headers: json },
      { payload: 'x', headers: { 'content-type': 'text/plain' } },
      { payload: 'x', headers: { 'content-type': 'none' } },
      { payload: `"${'x'.repeat(70_000)}"`, headers: json }
    ]
    for (const method of others) {
      for (const body of bodies) {
        const what = `${method} with ${String(body.payload ?? 'nothing').slice(0, 10)}`
        const reply = await send(app, 'localhost', { ...body, method: method as 'POST', url: '/api/v1/users/me' })
        t.equal(reply.headers.allow, 'DELETE, GET, HEAD, OPTIONS, PATCH', what)
        isProblemOfRequest(t, written(reply), 405, 'method_not_allowed', what)
        const nowhere = await send(app, 'localhost', { ...body, method: method as 'POST', url: '/api/v1/nothing' })
        isProblemOfRequest(t, written(nowhere), 404, 'route_not_found', what)
      }
    }
  })
  t.test('on a socket too', async (t) => {
    const port = await listen(app)
    for (const method of METHODS.filter((each) => each !== 'CONNECT')) {
      const { replies } = await exchange(
        port,
        `${method} /api/v1/auth/login HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nContent-Length: 0\r\n\r\n`
      )
      const expected = method === 'POST' ? 400 : method === 'OPTIONS' ? 204 : 405
      t.equal(replies[0]?.status, expected, method)
    }
  })
  t.test('who asks for a path that is not there is told where they are described', async (t) => {
    for (const url of ['/', '/api/v1', '/api/v1/user', '/v1/users/me']) {
      const { detail } = (await send(app, acme.host, url)).json()
      for (const page of ['/api/v1/docs', '/api/v1/openapi.json']) {
        t.match(detail, page, url)
        t.equal((await send(app, acme.host, page)).statusCode, 200, page)
      }
    }
  })
  t.test('a 401 says how to sign in, as RFC 6750 wants it', async (t) => {
    const challenge = async (headers: Record<string, string>) =>
      (await send(app, acme.host, { url: '/api/v1/users/me', headers })).headers['www-authenticate']
    t.match(await challenge({}), /^Bearer\b/)
    t.notMatch(await challenge({}), 'error=', 'no error for somebody who sent nothing')
    t.match(await challenge({ authorization: 'Bearer x.y.z' }), /^Bearer .*error="invalid_token"/)
  })
  t.test('a HEAD of it has no body', async (t) => {
    for (const url of ['/api/v1/users/me', '/nothing']) {
      const reply = await send(app, acme.host, { method: 'HEAD', url })
      t.equal(reply.body, '', url)
      t.ok(reply.statusCode >= 400)
      t.match(reply.headers['content-type'], /^application\/problem\+json/)
    }
  })
  t.test('whatever the client would rather read', async (t) => {
    for (const accept of ['text/html', 'image/*', 'application/xml;q=0.9', '', ';;;']) {
      const reply = await send(app, acme.host, { url: '/api/v1/users/me', headers: { accept } })
      t.ok(reply.statusCode === 401 || reply.statusCode === 406, accept)
      t.match(reply.headers['content-type'], /^application\/problem\+json/, accept)
    }
  })
  t.test('all failures of a body are listed, and what was sent is not repeated', async (t) => {
    const canary = 'canary-5d1f'
    const payload = { email: canary, password: [canary], tenant: '', role: canary, 'a/b~c': 1 }
    const reply = await send(app, 'localhost', post('/auth/login', payload))
    isProblemOfRequest(t, written(reply), 400, 'validation_failed', 'login')
    const paths = reply.json().errors.map(({ path }: { path: string }) => path)
    for (const path of ['/body/email', '/body/password', '/body/tenant', '/body/role', '/body/a~1b~0c']) {
      t.ok(paths.includes(path), path)
    }
    t.notMatch(reply.body, canary)
    for (const each of reply.json().errors) t.match(each, { path: /^\//, message: /\S/ })
  })
  t.test('a query is as strict: unknown, repeated and unreadable parameters are refused', async (t) => {
    const list = '/api/v1/users/me/tenants'
    for (const query of [
      'limt=5',
      'limit=0',
      'limit=101',
      'limit=x',
      'limit=1.5',
      'limit=',
      'limit=1&limit=2',
      'limit[]=1',
      '__proto__=1'
    ]) {
      const reply = await acme.send(`${list}?${query}`)
      t.equal(reply.statusCode, 400, query)
      t.match(reply.json().errors?.[0]?.path, /^\/query/, query)
    }
    t.equal((await acme.send(`${list}?limit=100`)).statusCode, 200, 'numbers may be text')
    for (const url of [
      '/users/me',
      '/tenant',
      '/openapi.json',
      '/openapi.yaml',
      '/health/live',
      '/problems/last_owner'
    ]) {
      t.equal((await acme.send(`/api/v1${url}?debug=1`)).statusCode, 400, url)
    }
  })
  t.test('a member that only its prototype has is not taken for one that was sent', async (t) => {
    for (const name of ['constructor', 'toString', 'hasOwnProperty']) {
      const reply = await send(app, 'localhost', post('/auth/login', { email: 'a@b.example', password, [name]: 1 }))
      t.match(reply.json(), { code: 'validation_failed', errors: [{ path: `/body/${name}` }] }, name)
    }
    t.equal(({} as { admin?: boolean }).admin, undefined)
  })
  t.test('a body of exactly the limit is read', async (t) => {
    const limit = 64 * 1024
    const filled = (bytes: number) => body(`{"email":"${'x'.repeat(bytes - '{"email":""}'.length)}"}`)
    t.equal((await send(app, 'localhost', filled(limit))).statusCode, 400)
    t.equal((await send(app, 'localhost', filled(limit + 1))).statusCode, 413)
  })
})

t.test('every code', async (t) => {
  const app = await startApp(t)
  const statuses: Record<number, string[]> = {
    400: ['validation_failed', 'malformed_json', 'invalid_cursor', 'malformed_request'],
    401: [
      ...['unauthenticated', 'invalid_token', 'token_expired', 'session_revoked', 'invalid_credentials'],
      ...['invalid_refresh_token', 'refresh_token_reused', 'mfa_required']
    ],
    403: ['forbidden', 'tenant_mismatch', 'tenant_suspended', 'not_a_member', 'reauthentication_required'],
    404: ['not_found', 'tenant_not_found', 'route_not_found'],
    405: ['method_not_allowed'],
    406: ['not_acceptable'],
    408: ['request_timeout'],
    409: [
      ...['slug_taken', 'email_taken', 'already_invited', 'already_a_member', 'last_owner', 'conflict'],
      'idempotency_key_in_use'
    ],
    410: ['invitation_expired'],
    412: ['precondition_failed', 'unsupported_version'],
    413: ['payload_too_large', 'file_too_large'],
    415: ['unsupported_media_type'],
    416: ['range_not_satisfiable'],
    421: ['unknown_host'],
    422: ['idempotency_key_reused', 'quota_exceeded'],
    429: ['rate_limited'],
    431: ['headers_too_large'],
    500: ['internal_error'],
    502: ['provider_error'],
    503: ['unavailable', 'overloaded', 'shutting_down'],
    504: ['provider_timeout'],
    507: ['storage_full']
  }
  t.test('is one of the contract, under its status', async (t) => {
    const known = new Map(
      Object.entries(statuses).flatMap(([status, codes]) => codes.map((code) => [code, Number(status)]))
    )
    for (const { code, status } of catalogue.values()) t.equal(status, known.get(code), code)
  })
  t.test('has a page that says what it means and what to do', async (t) => {
    t.ok(catalogue.size > 20)
    for (const { code, status, title } of catalogue.values()) {
      const reply = await send(app, 'localhost', `/api/v1/problems/${code}`)
      t.equal(reply.statusCode, 200, code)
      t.match(reply.headers['content-type'], /^text\/html/, code)
      t.ok(
        [code, title, String(status)].every((text) => reply.body.includes(text)),
        code
      )
    }
  })
  t.test('its page is where the link of a problem leads', async (t) => {
    const refusals = ['/nothing', '/api/v1/users/me', '/api/v1/auth/login', '/api/v1/health?x=1', '/api/v1/problems/x']
    for (const url of refusals) {
      const problem = (await send(app, 'localhost', url)).json()
      const page = await send(app, 'localhost', new URL(problem.type, `http://localhost${url}`).pathname)
      t.equal(page.statusCode, 200, problem.type)
      t.ok(page.body.includes(problem.code))
    }
  })
  t.test('its page shows no text of a stranger', async (t) => {
    const reply = await send(app, 'localhost', '/api/v1/problems/%3Cscript%3Ealert(1)%3C%2Fscript%3E')
    isProblemOfRequest(t, written(reply), 404, 'not_found', 'a page that is none')
    t.notMatch(reply.body, '<script>')
  })
})

t.test('what goes wrong inside stays inside', async (t) => {
  const app = await startApp(t, { LOG_LEVEL: 'warn' })
  const acme = await createTenant(app, 'acme')
  await allRows(app.database, 'alter table users rename to users_elsewhere')
  for (const request of ['/api/v1/users/me', { method: 'PATCH', url: '/api/v1/users/me', payload: { name: 'Ada' } }]) {
    app.logLines.length = 0
    const reply = await acme.send(request as InjectOptions)
    isProblemOfRequest(t, written(reply), 500, 'internal_error', 'a table is gone')
    t.strictSame(Object.keys(reply.json()).sort(), ['code', 'request_id', 'status', 'title', 'type'])
    const line = app.logLines.map((each) => JSON.parse(each)).find((each) => each.code === 'internal_error')
    t.match(line, { request_id: reply.json().request_id, err: { message: /users/ } }, 'the log knows why')
  }
  await allRows(app.database, 'alter table users_elsewhere rename to users')
  t.equal((await acme.send('/api/v1/users/me')).statusCode, 200, 'and the others were not hurt')
})

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

/** Whatever a parser might take for JSON, or a validator for something else. */
const spellings = [
  ...['application/json', 'Application/JSON', 'APPLICATION/JSON', 'application/json;', 'application/json ;'],
  ...['application/json\t;charset=utf-8', 'application/json\t', '\tapplication/json', ' application/json'],
  ...['  application/json ; charset=utf-8', 'application/json;charset=utf-8', 'application/json; charset=UTF-16'],
  ...['application/json;charset', 'application/json garbage', 'application/json, text/plain', 'application/json;;'],
  ...['application/json,application/json', 'application/jsonx', 'application/json/x', 'application/ json'],
  ...['application /json', 'application', 'json', '/json', 'application/', 'application/x-json', 'text/json'],
  ...['application/vnd.api+json', 'application/problem+json', 'application/json; boundary=x', 'application/json\u00a0'],
  ...[
    'text/plain',
    'text/plain;charset=utf-8',
    'text/html',
    'application/x-www-form-urlencoded',
    'multipart/form-data'
  ],
  ...[
    'multipart/form-data; boundary=x',
    'application/octet-stream',
    '*/*',
    '',
    'application/xml',
    '"application/json"'
  ],
  ...['application/json;=', '__proto__', 'constructor', 'toString', 'application/json; charset="', 'Application/JSON ;']
]

t.test('no content type gets a body past validation', async (t) => {
  const app = await startApp(t)
  const acme = await createTenant(app, 'acme')
  const targets: [method: string, url: string][] = [
    ['POST', '/api/v1/auth/register'],
    ['POST', '/api/v1/auth/login'],
    ['POST', '/api/v1/auth/refresh'],
    ['POST', '/api/v1/auth/logout'],
    ['POST', '/api/v1/auth/switch'],
    ['POST', '/api/v1/tenants'],
    ['POST', '/api/v1/users/me/password'],
    ['PATCH', '/api/v1/users/me'],
    ['DELETE', '/api/v1/users/me'],
    ['PATCH', '/api/v1/tenant']
  ]
  const refusals = ['validation_failed', 'malformed_json', 'malformed_request', 'unsupported_media_type']
  const object = '{"evil":true,"email":1,"refresh_token":1,"name":1}'
  let tried = 0
  for (const [method, url] of targets) {
    const wrong: string[] = []
    // a primitive and a form are read before a route is asked what it thinks of them: two routes stand for all
    const payloads = /login|tenant$/.test(url) ? [object, '"evil"', 'evil=true&name=1'] : [object]
    for (const spelling of spellings) {
      for (const payload of payloads) {
        tried++
        const headers = { 'content-type': spelling }
        const reply = await acme.send({ method: method as 'POST', url, payload, headers })
        const refused = reply.statusCode === 400 || reply.statusCode === 415
        if (!refused || !refusals.includes(reply.json().code)) wrong.push(`${spelling}: ${payload}: ${reply.body}`)
      }
    }
    t.strictSame(wrong, [], `${method} ${url}`)
  }
  t.equal(tried, (targets.length + 2 * 2) * spellings.length)
  const me = (await acme.send('/api/v1/users/me')).json()
  t.equal(me.name, 'Owner of acme', 'nothing has changed')

  t.test('and a page elsewhere can not send a form here', async (t) => {
    const payload = JSON.stringify({ email: acme.owner.email, password })
    for (const type of ['text/plain', 'application/x-www-form-urlencoded', 'multipart/form-data; boundary=x', '']) {
      const reply = await acme.anonymous({
        method: 'POST',
        url: '/api/v1/auth/login',
        payload,
        headers: { 'content-type': type }
      })
      t.match(reply.json(), { status: 415, code: 'unsupported_media_type' }, type)
    }
    for (const type of ['application/json', 'Application/JSON; charset=UTF-8']) {
      const reply = await acme.anonymous({
        method: 'POST',
        url: '/api/v1/auth/login',
        payload,
        headers: { 'content-type': type }
      })
      t.equal(reply.statusCode, 200, `the control: ${type}`)
    }
  })

  t.test('nor on a real socket, where white space and second headers are what was sent', async (t) => {
    const port = await listen(app)
    const payload = '{"evil":true,"email":1}'
    const lines = [
      'Content-Type: \t application/json',
      'Content-Type:application/json\t;',
      'Content-Type: application/json   ',
      'content-TYPE: Application/JSON ;',
      'Content-Type: application/json garbage',
      'Content-Type:',
      'Content-Type: text/plain\r\nContent-Type: application/json',
      'Content-Type: application/json\r\nContent-Type: text/plain',
      'X-Nothing: 1'
    ]
    for (const line of lines) {
      const { replies } = await exchange(
        port,
        `POST /api/v1/auth/login HTTP/1.1\r\nHost: localhost\r\n${line}\r\nConnection: close\r\nContent-Length: ${payload.length}\r\n\r\n${payload}`
      )
      t.equal(replies.length, 1, line)
      const [reply] = replies
      t.ok(reply?.status === 400 || reply?.status === 415, `${JSON.stringify(line)}: ${reply?.status}`)
      t.ok(refusals.includes(JSON.parse(reply?.body ?? '{}').code), line)
    }
  })
})

t.test('on the wire', async (t) => {
  const app = await startApp(t)
  const acme = await createTenant(app, 'acme')
  const port = await listen(app)
  const get = (path: string, more = '') => `GET ${path} HTTP/1.1\r\nHost: localhost\r\n${more}\r\n`
  const login = (more: string, payload = '{}') =>
    `POST /api/v1/auth/login HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n${more}\r\n${payload}`
  const second = get('/api/v1/health/live')

  /** What can't be read, and would be read differently by somebody else on the way. A second request must not follow. */
  const refused: [what: string, bytes: string, status: number, code: string][] = [
    ['bytes that are not HTTP', '\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n', 400, 'malformed_request'],
    ['a line of text', 'hello there\r\n\r\n', 400, 'malformed_request'],
    ['an unknown method', `BREW /api/v1/health HTTP/1.1\r\nHost: localhost\r\n\r\n`, 400, 'malformed_request'],
    ['HTTP/2 by prior knowledge', 'PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n', 400, 'malformed_request'],
    [
      'TE and CL',
      login('Content-Length: 2\r\nTransfer-Encoding: chunked\r\n', `0\r\n\r\n${second}`),
      400,
      'malformed_request'
    ],
    [
      'CL and TE',
      login('Transfer-Encoding: chunked\r\nContent-Length: 5\r\n', `0\r\n\r\n${second}`),
      400,
      'malformed_request'
    ],
    ['two lengths', login('Content-Length: 2\r\nContent-Length: 44\r\n', `{}${second}`), 400, 'malformed_request'],
    ['two equal lengths', login('Content-Length: 2\r\nContent-Length: 2\r\n', `{}${second}`), 400, 'malformed_request'],
    ['a list of lengths', login('Content-Length: 2, 2\r\n', `{}${second}`), 400, 'malformed_request'],
    ['a negative length', login('Content-Length: -2\r\n', `{}${second}`), 400, 'malformed_request'],
    ['a length in hexadecimal', login('Content-Length: 0x2\r\n', `{}${second}`), 400, 'malformed_request'],
    [
      'chunked, but not last',
      login('Transfer-Encoding: chunked, identity\r\n', `0\r\n\r\n${second}`),
      400,
      'malformed_request'
    ],
    [
      'a transfer coding that nobody knows',
      login('Transfer-Encoding: xchunked\r\n', `0\r\n\r\n${second}`),
      400,
      'malformed_request'
    ],
    ['a folded header', get('/api/v1/health/live', 'X-A: 1\r\n folded\r\n'), 400, 'malformed_request'],
    ['white space before the colon', get('/api/v1/health/live', 'X-A : 1\r\n'), 400, 'malformed_request'],
    ['a NUL in a header', get('/api/v1/health/live', 'X-A: 1\x002\r\n'), 400, 'malformed_request'],
    ['headers that end too soon', 'GET /api/v1/health/live HTTP/1.1\nHost: localhost\n\n', 400, 'malformed_request'],
    [
      'a chunk whose size is none',
      login('Transfer-Encoding: chunked\r\n', 'zz\r\n{}\r\n0\r\n\r\n'),
      400,
      'malformed_request'
    ],
    [
      'a chunk that is longer than it says',
      login('Transfer-Encoding: chunked\r\n', `1\r\n{}\r\n0\r\n\r\n${second}`),
      400,
      'malformed_request'
    ],
    [
      'headers that are too large',
      get('/api/v1/health/live', `X-A: ${'a'.repeat(20_000)}\r\n`),
      431,
      'headers_too_large'
    ],
    ['a target that is too large', get(`/api/v1/${'a'.repeat(20_000)}`), 431, 'headers_too_large'],
    ['too many headers', get('/api/v1/health/live', 'X-A: aaaaaaaaaa\r\n'.repeat(1500)), 431, 'headers_too_large']
  ]
  for (const [what, bytes, status, code] of refused) {
    t.test(`${what}: one refusal, and the connection ends`, async (t) => {
      const { replies, closed } = await exchange(port, bytes)
      t.equal(replies.length, 1)
      isProblem(t, replies[0] as Written, status, code, what)
      t.match(replies[0]?.headers, { 'cache-control': 'no-store', connection: /close/i })
      t.ok(closed)
    })
  }

  /** What can be read, and is refused for what it says. */
  const understood: [what: string, bytes: string, status: number, code: string][] = [
    ['no Host', 'GET /api/v1/health/live HTTP/1.1\r\nConnection: close\r\n\r\n', 400, 'malformed_request'],
    [
      'an empty Host',
      'GET /api/v1/health/live HTTP/1.1\r\nHost:\r\nConnection: close\r\n\r\n',
      400,
      'malformed_request'
    ],
    [
      'two Hosts',
      get('/api/v1/health/live', 'Host: acme.localhost\r\nConnection: close\r\n'),
      400,
      'malformed_request'
    ],
    [
      'two Authorizations',
      get('/api/v1/users/me', 'Authorization: Bearer a\r\nAuthorization: Bearer b\r\nConnection: close\r\n'),
      400,
      'malformed_request'
    ],
    [
      'an absolute target',
      get('http://acme.localhost/api/v1/users/me', 'Connection: close\r\n'),
      400,
      'malformed_request'
    ],
    ['an asterisk', 'OPTIONS * HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n', 400, 'malformed_request'],
    ['half a percent sign', get('/api/v1/problems/%zz', 'Connection: close\r\n'), 400, 'malformed_request'],
    ['bytes that are no UTF-8', get('/api/v1/problems/%ff', 'Connection: close\r\n'), 400, 'malformed_request'],
    [
      'a parameter that is too long',
      get(`/api/v1/problems/${'a'.repeat(300)}`, 'Connection: close\r\n'),
      400,
      'malformed_request'
    ],
    [
      'a body that is announced as too large',
      login('Connection: close\r\nContent-Length: 1000000\r\n', ''),
      413,
      'payload_too_large'
    ],
    [
      'a body that grows too large',
      login('Connection: close\r\nTransfer-Encoding: chunked\r\n', `11171\r\n${'x'.repeat(70_001)}\r\n0\r\n\r\n`),
      413,
      'payload_too_large'
    ]
  ]
  for (const [what, bytes, status, code] of understood) {
    t.test(`${what}: is refused by the application`, async (t) => {
      const { replies } = await exchange(port, bytes)
      t.equal(replies.length, 1)
      isProblemOfRequest(t, replies[0] as Written, status, code, what)
    })
  }

  t.test('an expectation that nobody meets is ignored, or refused like everything else', async (t) => {
    const { replies } = await exchange(
      port,
      login('Connection: close\r\nExpect: the-unexpected\r\nContent-Length: 2\r\n')
    )
    t.equal(replies.length, 1)
    t.match(replies[0]?.headers['content-type'], /^application\/problem\+json/, `status ${replies[0]?.status}`)
  })
  t.test('every reply has an id and the security headers, also one to what was no request', async (t) => {
    const samples = [refused[0], refused.at(-1), understood.find(([what]) => what === 'half a percent sign')]
    for (const [what, bytes] of samples as typeof refused) {
      const [reply] = (await exchange(port, bytes)).replies
      const absent = [
        'x-request-id',
        'x-content-type-options',
        'strict-transport-security',
        'content-security-policy'
      ].filter((name) => !reply?.headers[name])
      t.strictSame(absent, [], what)
    }
  })
  t.test('requests down one connection are answered in order', async (t) => {
    const bytes = get('/api/v1/health/live') + get('/nothing') + get('/api/v1/health/live', 'Connection: close\r\n')
    const { replies } = await exchange(port, bytes)
    t.strictSame(
      replies.map(({ status }) => status),
      [200, 404, 200]
    )
  })
  t.test('garbage after a request does not become its answer', async (t) => {
    const payload = JSON.stringify({ email: acme.owner.email, password: 'not the password' })
    const slow = login(`Content-Length: ${payload.length}\r\n`, payload)
    const { replies } = await exchange(port, `${slow}\x00\x01\x02 garbage\r\n\r\n`)
    const [first] = replies
    t.ok(first === undefined || first.status === 401, `the answer to a sign-in was ${first?.status}`)
  })
  t.test('a header that names the prototype does no harm', async (t) => {
    const { replies } = await exchange(
      port,
      get('/api/v1/health/live', '__proto__: x\r\nconstructor: y\r\nConnection: close\r\n')
    )
    t.equal(replies[0]?.status, 200)
  })
  t.test('after all of this it serves', async (t) => {
    const reply = await fetch(`http://127.0.0.1:${port}/api/v1/health`)
    t.equal(reply.status, 200)
    t.equal((await acme.send('/api/v1/users/me')).statusCode, 200)
  })
})

t.test('who is slow is told so, and does not hold a connection', async (t) => {
  const app = await startApp(t)
  // the product's own limits are too long for a test; how they are enforced is the same
  t.match(app.server, { headersTimeout: 15_000 })
  t.equal(app.bodyTimeoutMs, 30_000)
  Object.assign(app.server, { headersTimeout: 300, connectionsCheckingInterval: 50 })
  app.bodyTimeoutMs = 600
  const port = await listen(app)
  const head = 'POST /api/v1/auth/login HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n'

  for (const [what, bytes] of [
    ['half of the headers', head],
    ['half of the body', `${head}Content-Length: 100\r\n\r\n{"email":`],
    ['half of a chunk', `${head}Transfer-Encoding: chunked\r\n\r\n20\r\n{"email":`]
  ] as const) {
    t.test(what, async (t) => {
      const { replies, closed } = await exchange(port, bytes, 10_000)
      t.ok(closed)
      t.equal(replies.length, 1)
      isProblem(t, replies[0] as Written, 408, 'request_timeout', what)
      t.match(replies[0]?.headers, { connection: /close/i })
    })
  }
  t.equal((await fetch(`http://127.0.0.1:${port}/api/v1/health/live`)).status, 200)
})

t.test('limits are looked after often enough to mean something', async (t) => {
  const app = await startApp(t)
  const { connectionsCheckingInterval, headersTimeout } = app.server as unknown as Record<string, number>
  t.ok(
    (connectionsCheckingInterval as number) <= (headersTimeout as number),
    `checked every ${connectionsCheckingInterval} ms, cut at ${headersTimeout} ms`
  )
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

type Asked = { host: string; url?: string; token?: string | undefined }

/** The origin that a reply lets in. undefined: none. */
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
      ...['accept-ranges', 'content-disposition', 'content-range', 'etag', 'idempotency-replayed', 'location'],
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
      headers: { origin: own, authorization: `Bearer ${acme.token}` }
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

t.test('no way to spell a path leads around the guard', async (t) => {
  const app = await startApp(t)
  const acme = await createTenant(app, 'acme')
  const port = await listen(app)
  const paths = [
    ...['/api/v1/users/me/', '//api/v1/users/me', '/api//v1/users/me', '/api/v1/./users/me', '/api/v1/x/../users/me'],
    ...['/api/v1/%75sers/me', '/api/v1/users%2fme', '/api/v1/users/me;x=1', '/api/v1/USERS/me', '/api/v1/users/me%00'],
    ...[
      '/api/v1/users/me%20',
      '/api/v1/users/me#x',
      '/api/v1/users\\me',
      '/api/v1/tenant/',
      '/api/v1/tenant',
      '/api/v1/users/me.json'
    ],
    ...[
      '/api/users/me/',
      '/api/%75sers/me',
      '/api/v1/docs/../users/me',
      '/api/v1/docs/static/../../users/me',
      '/api/v1/health/../users/me'
    ]
  ]
  for (const path of paths) {
    const { replies } = await exchange(port, `GET ${path} HTTP/1.1\r\nHost: ${acme.host}\r\nConnection: close\r\n\r\n`)
    t.equal(replies.length, 1, path)
    t.ok([400, 401, 404].includes(replies[0]?.status ?? 0), `${path}: ${replies[0]?.status}`)
    t.match(replies[0]?.headers['content-type'], /^application\/problem\+json/, path)
  }
})
