import t from 'tap'
import { createTenant, password, startApp } from './harness.ts'
import { exchange, isProblem, isProblemOfRequest, type Written } from './problem-documents.ts'
import { listen } from './requests.ts'

/** Media types that a parser could take for JSON, or that could get past a validator. */
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
    // a primitive and a form are parsed before the route is known: two routes stand for all
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

  /** Requests that can't be parsed safely: a proxy could parse them differently. No second request may follow. */
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

  /** Requests that are parsed, and refused for their content. */
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
  // the product's own time-outs are too long for a test; Node enforces both in the same way
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
