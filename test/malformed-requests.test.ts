import { once } from 'node:events'
import { METHODS } from 'node:http'
import { connect } from 'node:net'
import { setTimeout as sleep } from 'node:timers/promises'
import { gzipSync } from 'node:zlib'
import t from 'tap'
import { allRows, eventually, type Tokens } from './harness.ts'
import {
  type Answer,
  api,
  call,
  descriptors,
  json,
  login,
  proveItStillRuns,
  proveNoSecretLeft,
  type Raw,
  register,
  residentMiB,
  secretPassword,
  sendBytes,
  startTarget,
  withBody
} from './hostile-clients.ts'
import { attemptsOn, forEachConcurrently, type OpenApi } from './openapi-fuzz.ts'

// bounded in time: answers to honest clients during an attack

/*
 * A server gets requests of every shape and size, malformed and too large. It refuses them, leaks nothing, and continues.
 */

// a machine may have other things to do

t.test('nothing that a client sends brings the process down', async (t) => {
  const target = await startTarget(t)
  const { database, server, log, agent, acme, rival, me, signIn } = target
  const fuzzed = await register(agent, server, 'fuzzed')
  const document = JSON.parse((await call(agent, server, `${api}/openapi.json`)).text) as OpenApi

  t.test('JSON of any shape and size is refused at once', async (t) => {
    const many = (count: number, item: (i: number) => string) => Array.from({ length: count }, (_, i) => item(i)).join()
    const email = '"email":"a@b.example"'
    const shapes: [what: string, body: string, status: number, code: string][] = [
      ['100,000 arrays deep', '['.repeat(100_000) + ']'.repeat(100_000), 413, 'payload_too_large'],
      ['100,000 objects deep', '{"a":'.repeat(100_000) + 1 + '}'.repeat(100_000), 413, 'payload_too_large'],
      ['a million brackets', '['.repeat(1_000_000), 413, 'payload_too_large'],
      ['a million keys', `{${many(1_000_000, (i) => `"k${i}":0`)}}`, 413, 'payload_too_large'],
      ['a number of a million digits', `{"email":${'9'.repeat(1_000_000)}}`, 413, 'payload_too_large'],
      ['a million duplicates', `{${many(1_000_000, () => '"email":1')}}`, 413, 'payload_too_large'],
      // the same shapes, just below the limit of a body
      ['arrays as deep as they come', '['.repeat(32_700) + ']'.repeat(32_700), 400, 'validation_failed'],
      ['objects as deep as they come', '{"a":'.repeat(10_900) + 1 + '}'.repeat(10_900), 400, 'validation_failed'],
      [
        'depth in a member',
        `{${email},"password":${'['.repeat(32_600)}${']'.repeat(32_600)}}`,
        400,
        'validation_failed'
      ],
      ['brackets that are never closed', '['.repeat(65_000), 400, 'malformed_json'],
      ['brackets that are never opened', ']'.repeat(65_000), 400, 'malformed_json'],
      ['thousands of keys', `{${many(6000, (i) => `"k${i}":0`)}}`, 400, 'validation_failed'],
      ['a number of 60,000 digits', `{"email":${'9'.repeat(60_000)},"password":"x"}`, 400, 'validation_failed'],
      ['an exponent of 60,000 digits', `{"email":1e${'9'.repeat(60_000)},"password":"x"}`, 400, 'validation_failed'],
      ['a string of escapes', `{"email":"${'\\u0061'.repeat(10_000)}","password":"x"}`, 400, 'validation_failed'],
      ['an e-mail to backtrack on', `{"email":"${'a.'.repeat(30_000)}@","password":"x"}`, 400, 'validation_failed'],
      ['an e-mail of dashes', `{"email":"a@${'a-'.repeat(120)}","password":"x"}`, 400, 'validation_failed'],
      ['__proto__', `{${email},"password":"x","__proto__":{"tenant":"acme"}}`, 400, 'malformed_json'],
      ['__proto__, escaped', `{${email},"password":"x","\\u005f\\u005fproto\\u005f_":{}}`, 400, 'malformed_json'],
      [
        '__proto__, deep',
        `{${email},"password":${'[{"a":'.repeat(500)}{"__proto__":1}${'}]'.repeat(500)}}`,
        400,
        'malformed_json'
      ],
      ['constructor', `{${email},"password":"x","constructor":{"prototype":{"a":1}}}`, 400, 'malformed_json'],
      ['constructor, escaped', `{${email},"password":"x","\\u0063onstructor":{"prototype":{}}}`, 400, 'malformed_json'],
      ['half of a surrogate pair as a key', `{${email},"password":"x","\\ud800":1}`, 400, 'malformed_json'],
      ['a byte order mark and nothing', '\xef\xbb\xbf', 400, 'malformed_json'],
      ['bytes that are no UTF-8', '{"email":"\xff\xfe\xc0\x80"}', 400, 'malformed_json']
    ]
    const resident = residentMiB(server)
    for (const [what, body, status, code] of shapes) {
      const parts = [login(`Content-Length: ${body.length}\r\nConnection: close\r\n`), Buffer.from(body, 'latin1')]
      // the machine may be busy: one of five attempts must be fast
      const replies: Raw[] = []
      for (let attempt = 0; attempt < 5 && !replies.some(({ ms }) => ms < 200); attempt++) {
        const reply = await sendBytes(server, parts)
        t.ok(reply.closed, `${what}: closed`)
        replies.push(reply)
      }
      for (const reply of replies) t.match(reply, { status, code }, what)
      t.ok(Math.min(...replies.map(({ ms }) => ms)) < 200, `${what}: ${replies.map(({ ms }) => Math.round(ms))} ms`)
      t.ok(Math.max(...replies.map(({ ms }) => ms)) < 3000, `${what}: never long`)
    }
    const growth = residentMiB(server) - resident
    t.ok(growth < 100, `grew by ${Math.round(growth)} MiB`)
    t.equal(({} as { tenant?: string }).tenant, undefined)
    t.equal((await me(acme.access_token)).status, 200)
  })

  t.test('a member that is there twice is refused, and nobody has to guess which one counts', async (t) => {
    const email = JSON.stringify(acme.email)
    const password = JSON.stringify(secretPassword)
    for (const body of [
      `{"email":${email},"password":"x","password":${password}}`,
      `{"email":"x@x.example","password":${password},"email":${email}}`,
      `{"email":${email},"password":"x","p\\u0061ssword":${password}}`
    ]) {
      t.match(
        await sendBytes(server, withBody(body)),
        { status: 400, closed: true },
        body.replaceAll(secretPassword, '…')
      )
    }
    const control = await sendBytes(server, withBody(`{"email":${email},"password":${password}}`))
    t.equal(control.status, 200, 'once is fine')
  })

  t.test('what is too long is refused before it has come', async (t) => {
    const resident = residentMiB(server)
    const megabyte = Buffer.alloc(1024 * 1024, 'x')
    const chunk = Buffer.concat([Buffer.from('100000\r\n'), megabyte, Buffer.from('\r\n')])
    const zeros = gzipSync(Buffer.alloc(100 * 1024 * 1024))
    const small = gzipSync(Buffer.from(JSON.stringify({ email: acme.email, password: secretPassword })))
    const encoded = (body: Buffer, name: string) => [
      login(`Content-Encoding: ${name}\r\nContent-Length: ${body.length}\r\nConnection: close\r\n`),
      body
    ]
    const cases: [what: string, parts: Parameters<typeof sendBytes>[1], status: number, code: string][] = [
      ['a length of 65 KiB, and nothing', [login('Content-Length: 66560\r\n')], 413, 'payload_too_large'],
      ['a length of an exbibyte, and nothing', [login(`Content-Length: ${2 ** 50}\r\n`)], 413, 'payload_too_large'],
      ['a length that no number holds', [login(`Content-Length: ${'9'.repeat(40)}\r\n`)], 400, 'malformed_request'],
      [
        'a gibibyte, for as long as it is taken',
        [login(`Content-Length: ${2 ** 30}\r\n`), () => megabyte],
        413,
        'payload_too_large'
      ],
      ['chunks without an end', [login('Transfer-Encoding: chunked\r\n'), () => chunk], 413, 'payload_too_large'],
      [
        'a chunk without an end',
        [login('Transfer-Encoding: chunked\r\n'), 'ffffffff\r\n', () => megabyte],
        413,
        'payload_too_large'
      ],
      ['a chunk extension without an end', [login('Transfer-Encoding: chunked\r\n'), '1;', () => megabyte], 413, ''],
      [
        'trailers without an end',
        [login('Transfer-Encoding: chunked\r\n'), '0\r\nX-A: ', () => megabyte],
        431,
        'headers_too_large'
      ],
      ['a gzip bomb', encoded(zeros, 'gzip'), 415, 'unsupported_media_type'],
      ['a small gzip bomb', encoded(gzipSync(Buffer.alloc(10 * 1024 * 1024)), 'gzip'), 415, 'unsupported_media_type'],
      [
        'two codings',
        encoded(gzipSync(gzipSync(Buffer.alloc(10 * 1024 * 1024))), 'gzip, gzip'),
        415,
        'unsupported_media_type'
      ],
      ['a coding that nobody has', encoded(Buffer.from('{"email":'), 'zstd'), 415, 'unsupported_media_type'],
      ['a sign-in that is packed', encoded(small, 'gzip'), 415, 'unsupported_media_type']
    ]
    for (const [what, parts, status, code] of cases) {
      const reply = await sendBytes(server, parts)
      if (code === '') t.ok(reply.status >= 400 && reply.status < 500, `${what}: ${reply.status}`)
      else t.match(reply, { status, code }, what)
      t.ok(reply.closed, `${what}: closed`)
      t.ok(reply.sent < 32 * 1024 * 1024, `${what}: ${reply.sent} bytes were taken`)
      t.ok(reply.ms < 3000, `${what}: ${Math.round(reply.ms)} ms`)
    }
    const flood = await Promise.all(
      Array.from({ length: 30 }, () => sendBytes(server, [login(`Content-Length: ${2 ** 30}\r\n`), () => megabyte]))
    )
    // a client that still writes can read the refusal: the connection is not reset before
    t.strictSame(
      flood.filter(({ status, closed, sent }) => !closed || status !== 413 || sent >= 32 * 1024 * 1024),
      []
    )
    const growth = residentMiB(server) - resident
    t.ok(growth < 100, `grew by ${Math.round(growth)} MiB`)
  })

  t.test('what comes after a refusal that closes the connection is not done', async (t) => {
    const long = 70_000
    const body = 'x'.repeat(long)
    const next = JSON.stringify({ name: 'Smuggled' })
    const bearer = `Authorization: Bearer ${acme.access_token}\r\n`
    const smuggled = `PATCH ${api}/users/me HTTP/1.1\r\nHost: localhost\r\n${bearer}${json}Content-Length: ${next.length}\r\n\r\n${next}`
    const socket = connect({ port: server.port, host: '127.0.0.1', allowHalfOpen: true })
    let text = ''
    socket.setEncoding('latin1').on('data', (chunk: string) => {
      text += chunk
    })
    socket.on('error', () => {})
    const closed = once(socket, 'close')
    socket.write(login(`Content-Length: ${long}\r\n`) + body.slice(0, 10))
    // the server has sent the refusal and ended its side
    await once(socket, 'end')
    socket.end(body.slice(10) + smuggled)
    await closed
    t.match(text, /^HTTP\/1\.1 413 /)
    t.equal(text.split('HTTP/1.1 ').length, 2, 'one reply')
    // longer than the request would take
    await sleep(500)
    t.strictSame(await allRows(database, "select id from users where name = 'Smuggled'"), [])
  })

  t.test('who goes away in the middle of a request is forgotten', async (t) => {
    const open = descriptors(server)
    const sockets = await Promise.all(
      Array.from({ length: 100 }, async (_, i) => {
        const socket = connect({ port: server.port, host: '127.0.0.1' })
        socket.on('error', () => {})
        await once(socket, 'connect')
        socket.write(i % 2 ? `${login('Content-Length: 100\r\n')}{"email":` : `${login('').slice(0, 60)}`)
        return socket
      })
    )
    await eventually(() => descriptors(server) >= open + 100)
    for (const [i, socket] of sockets.entries()) {
      if (i % 4 < 2) socket.end()
      else socket.resetAndDestroy()
    }
    await eventually(() => descriptors(server) < open + 10, 10_000)
    t.ok(descriptors(server) < open + 10)
    for (const socket of sockets) socket.destroy()
  })

  t.test('headers of any name and number', async (t) => {
    const get = (more: string) => [
      `GET ${api}/users/me HTTP/1.1\r\nHost: localhost\r\n${more}Connection: close\r\n\r\n`
    ]
    const bearer = `Authorization: Bearer ${acme.access_token}\r\n`
    for (const name of ['__proto__', 'constructor', 'prototype', 'toString', 'hasOwnProperty', '__defineGetter__']) {
      t.match(
        await sendBytes(server, get(`${name}: x\r\n${name}: y\r\n${bearer}`)),
        { status: 200, closed: true },
        name
      )
    }
    const second = `Host: rival.localhost\r\n`
    for (const count of [900, 1000, 1500, 2500]) {
      const many = 'a:b\r\n'.repeat(count)
      const reply = await sendBytes(server, get(many + bearer))
      t.ok([200, 400, 431].includes(reply.status), `${count} headers: ${reply.status}`)
      // a proxy in front of the product could use the other one
      const hosts = await sendBytes(server, get(bearer + many + second))
      t.ok([400, 431].includes(hosts.status), `${count} headers and another Host: ${hosts.status}`)
      const tokens = await sendBytes(server, get(`${bearer + many}Authorization: Bearer x\r\n`))
      t.ok([400, 431].includes(tokens.status), `${count} headers and another Authorization: ${tokens.status}`)
    }
  })

  t.test('no path and no method leads to anything that is not in the document', async (t) => {
    const inside = [
      ...['/metrics', '/debug', '/debug/pprof', '/.git/config', '/.env', '/server-status', '/actuator/env', '/admin'],
      ...['/package.json', '/src/server.ts', '/node_modules/fastify/package.json', '/graphql', '/swagger.json', '/api'],
      ...[`${api}`, `${api}/metrics`, `${api}/debug`, `${api}/docs/static/../../../../package.json`],
      ...[`${api}/docs/static/%2e%2e/%2e%2e/package.json`, `${api}/docs/static/..%2f..%2fpackage.json`],
      ...[`${api}/docs/static/..\\..\\package.json`, `${api}/docs/static/%00`],
      ...['/../../../../etc/passwd', '/%2e%2e/%2e%2e/etc/passwd', '//etc/passwd', '/\\etc\\passwd', '/..;/x', '/%00']
    ]
    for (const path of inside) {
      const { status, text } = await call(agent, server, path)
      t.ok(status === 404 || status === 400 || status === 403, `${path}: ${status}`)
      t.notMatch(text, /root:x|"dependencies"/, path)
    }
    const id = '00000000-0000-4000-8000-000000000000'
    for (const template of Object.keys(document.paths)) {
      const path = template.replaceAll(/\{\w+\}/g, id)
      // two templates may differ only in the names of their parameters; a path without parameters stands for itself
      const isTemplateOf = (each: string) =>
        new RegExp(`^${each.replaceAll('.', '\\.').replaceAll(/\{\w+\}/g, '[^/]+')}$`).test(path)
      const matching = template === path ? [path] : Object.keys(document.paths).filter(isTemplateOf)
      const documented = matching.flatMap((each) => Object.keys(document.paths[each] ?? {}))
      const known = new Set(
        [...documented, ...(documented.includes('get') ? ['head'] : []), 'options'].map((each) => each.toUpperCase())
      )
      const others = METHODS.filter((method) => !known.has(method) && method !== 'CONNECT')
      const replies = await Promise.all(others.map((method) => call(agent, server, path, { method })))
      const wrong = others.filter((_, i) => (replies[i] as Answer).status !== 405)
      t.strictSame(wrong, [], `${path} by other methods`)
      for (const [i, { headers }] of replies.entries()) {
        const allow = new Set(String(headers.allow).split(', '))
        t.strictSame([...allow].sort(), [...known].sort(), `${others[i]} ${path}: Allow`)
      }
    }
    const tunnel = await sendBytes(server, ['CONNECT localhost:22 HTTP/1.1\r\nHost: localhost\r\n\r\n'])
    t.ok(tunnel.closed && (tunnel.status === 0 || tunnel.status >= 400), `CONNECT: ${tunnel.status}`)
  })

  t.test('however a path is written, it takes the same token', async (t) => {
    const closed = Object.entries(document.paths).filter(
      ([path, { get }]) => !path.includes('{') && get?.security?.length
    )
    t.ok(closed.length > 3)
    for (const [path] of closed) {
      const last = path.slice(path.lastIndexOf('/') + 1)
      const encoded = `%${last.charCodeAt(0).toString(16)}`
      const variants = [
        ...[path.replace(last, encoded + last.slice(1)), `/${path}`, path.replace('/v1/', '//v1//'), `${path}/`],
        ...[path.replace('/v1/', '/./v1/'), path.replace('/v1/', '/v1/x/../'), path.replace('/v1/', '/v1%2f')],
        ...[
          `${path};x`,
          `${path}%3b`,
          `${path}%00`,
          `${path}%20`,
          `${path}.json`,
          path.toUpperCase(),
          `${path}#x`,
          `${path}%23`
        ],
        ...[
          path.replace('/v1/', '/v1\\'),
          path.replace('/v1/', '/%76%31/'),
          path.replace('/api/', '/%61pi/'),
          `${path}/.`
        ]
      ]
      for (const variant of variants) {
        const { status } = await call(agent, server, variant)
        t.ok([400, 401, 404, 405].includes(status), `${variant} without a token: ${status}`)
        const { status: other, text } = await call(agent, server, variant, { token: acme.access_token })
        t.ok([200, 400, 404, 405].includes(other), `${variant} with one: ${other}`)
        t.notMatch(text, rival.tenant.id)
      }
    }
  })

  t.test('no value of any field of any operation is too much', async (t) => {
    const rows = () =>
      allRows(
        database,
        `select (select json_agg(t order by id) from tenants t where id = $1) as tenants,
                (select json_agg(u order by id) from users u where id = $2) as users`,
        [rival.tenant.id, rival.user.id]
      )
    const untouched = await rows()
    let tried = 0
    const wrong: string[] = []
    const operations = Object.entries(document.paths).flatMap(([path, each]) =>
      Object.entries(each).map(([method, operation]) => ({ path, method: method.toUpperCase(), operation }))
    )
    for (const { path, method, operation } of operations) {
      const { access_token: token } = JSON.parse(
        (await signIn({ email: fuzzed.email, password: secretPassword })).text
      ) as Tokens
      const attempts = attemptsOn(document, path, operation)
      tried += attempts.length
      await forEachConcurrently(attempts, 6, async ({ what, url, body, headers }) => {
        const reply = await call(agent, server, url, { method, body, headers, token })
        const fine = reply.status < 500 && reply.status >= 200
        if (!fine || (reply.status >= 400 && !String(reply.headers['content-type']).startsWith('application/problem')))
          wrong.push(`${method} ${path}: ${what}: ${reply.status} ${reply.text.slice(0, 200)}`)
        if (/syntax error|SQLSTATE|invalid input syntax|violates|relation/.test(reply.text))
          wrong.push(`${method} ${path}: ${what}: says why`)
      })
    }
    t.equal(wrong.length, 0, wrong.slice(0, 40).join('\n'))
    t.ok(operations.length > 20 && tried > 500, `${tried} values in ${operations.length} operations`)
    t.strictSame(await rows(), untouched, 'the other agency is what it was')
    t.equal((await me(rival.access_token)).status, 200)
  })

  t.test('a request is one line of the log and one row of the audit, whatever is in it', async (t) => {
    const forged = '","level":60,"msg":"forged"}'
    const agents: [what: string, line: string][] = [
      ['a fragment of JSON', `User-Agent: x${forged}`],
      ['a line of its own', `User-Agent: x\\r\\n{"level":60,"msg":"forged"}\\n`],
      ['high bytes', 'User-Agent: \xe2\x80\xa8\xe2\x80\xa9\xff\xfe\x9b31m'],
      ['as long as headers may be', `User-Agent: ${'x'.repeat(15_000)}`],
      ['an id that is JSON', `X-Request-Id: {"msg":"forged"}`],
      ['an id of 200 characters', `X-Request-Id: ${'a'.repeat(200)}`],
      ['two ids', 'X-Request-Id: one\r\nX-Request-Id: two'],
      ['a referrer', `Referer: http://x/${forged}`],
      ['an address', `X-Forwarded-For: ${forged}`],
      ['a trace', `Traceparent: ${forged}`]
    ]
    const body = JSON.stringify({ email: acme.email, password: secretPassword })
    for (const [what, line] of agents) {
      const from = log.lines().length
      const [{ count: rowsBefore }] = await allRows(database, 'select count(*)::int from audit_events')
      const reply = await sendBytes(server, [
        login(`${line}\r\nContent-Length: ${body.length}\r\nConnection: close\r\n`),
        body
      ])
      t.equal(reply.status, 200, what)
      const id = /x-request-id: (.*)\r\n/.exec(reply.text)?.[1]
      t.match(id, /^[A-Za-z0-9._-]{1,128}$/, `${what}: id`)
      const own = () => log.requests(from).filter(({ request_id }) => request_id === id)
      await eventually(() => own().length > 0)
      t.match(own(), [{ status: 200, level: 30, method: 'POST' }], `${what}: one line`)
      t.equal(own().length, 1)
      const [{ count: rowsAfter }] = await allRows(database, 'select count(*)::int from audit_events')
      t.equal(rowsAfter - rowsBefore, 1, `${what}: one row`)
    }
    const urls = [
      `/%0d%0a{"msg":"forged"}`,
      `/${forged}`,
      '/%1b%5b31m',
      `/${'x'.repeat(12_000)}`,
      '/\xe2\x80\xa8',
      '/?a=%0a'
    ]
    for (const url of urls) {
      const from = log.lines().length
      const reply = await sendBytes(server, [`GET ${url} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n`])
      t.ok(reply.status >= 400 && reply.status < 500, `${url.slice(0, 40)}: ${reply.status}`)
      const asked =
        reply.text.includes('x-request-id') && !/HPE|Bad Request/.test(reply.text.split('\r\n')[0] as string)
      if (!asked) continue
      const id = /x-request-id: (.*)\r\n/.exec(reply.text)?.[1]
      await sleep(20)
      // the line of the request before may come as late
      const own = log.requests(from).filter(({ request_id }) => request_id === id)
      t.ok(own.length <= 1, `${url.slice(0, 40)}: at most one line`)
    }
    // control characters are no valid HTTP, and 64 KB exceed the limit of headers
    const from = log.lines().length
    for (const value of ['\x1b[31mred', 'a\rb', 'a\x00b', 'a\x08b', 'a\x7fb', 'a\nX-B: c\r', 'x'.repeat(65_536)]) {
      for (const name of ['User-Agent', 'X-Request-Id', 'X-Anything']) {
        const more = `${name}: ${value}\r\nContent-Length: ${body.length}\r\nConnection: close\r\n`
        const { status } = await sendBytes(server, [login(more), body])
        t.ok(status === 400 || status === 431, `${name}: ${JSON.stringify(value.slice(0, 20))}: ${status}`)
      }
    }
    t.notMatch(log.requests(from), [{ status: 200 }], 'none of them was taken for a request')
    for (const line of log.lines()) t.not((JSON.parse(line) as { msg?: string }).msg, 'forged')
    const rows = await allRows(database, 'select user_agent from audit_events where user_agent is not null')
    t.ok(
      rows.every(({ user_agent }) => user_agent.length <= 512),
      'an audit row is bounded'
    )
    t.ok(
      rows.some(({ user_agent }) => user_agent === `x${forged}`),
      'and says what was sent'
    )
  })

  t.test('no secret has left the process', (t) => proveNoSecretLeft(t, target))

  t.test('the process is the one that was started, and failed only where it was made to', (t) =>
    proveItStillRuns(t, target, 0)
  )
})
