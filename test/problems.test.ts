import { METHODS } from 'node:http'
import type { InjectOptions } from 'fastify'
import t from 'tap'
import { catalogue } from '../src/http/problems.ts'
import { allRows, createTenant, password, post, send, startApp } from './harness.ts'
import { exchange, isProblemOfRequest, json, signIn, written } from './problem-documents.ts'
import { listen } from './requests.ts'

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
    // Node doesn't hand CONNECT to the application
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
    400: [
      ...['validation_failed', 'malformed_json', 'invalid_cursor', 'malformed_request'],
      ...['invalid_oauth_state', 'invalid_passkey', 'invalid_request', 'invalid_scope', 'unsupported_grant_type']
    ],
    401: [
      ...['unauthenticated', 'invalid_token', 'token_expired', 'session_revoked', 'invalid_credentials'],
      ...['invalid_refresh_token', 'refresh_token_reused', 'mfa_required', 'invalid_mfa_token'],
      ...['invalid_challenge', 'invalid_sign_in_code', 'invalid_dpop_proof', 'use_dpop_nonce'],
      'invalid_client'
    ],
    403: [
      ...['forbidden', 'tenant_mismatch', 'tenant_suspended', 'not_a_member', 'reauthentication_required'],
      ...['identity_not_linked', 'sign_in_cancelled', 'provider_required', 'invitation_for_another', 'request_blocked']
    ],
    404: ['not_found', 'tenant_not_found', 'route_not_found'],
    405: ['method_not_allowed'],
    406: ['not_acceptable'],
    408: ['request_timeout'],
    409: [
      ...['slug_taken', 'email_taken', 'already_invited', 'already_a_member', 'last_owner', 'conflict'],
      ...['idempotency_key_in_use', 'domain_not_proven', 'enforcement_not_ready', 'last_break_glass_owner'],
      ...['identity_taken', 'last_sign_in_method']
    ],
    410: ['invitation_expired', 'link_expired'],
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
