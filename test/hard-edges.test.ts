import { once } from 'node:events'
import { readdirSync, readFileSync } from 'node:fs'
import { Agent, request as httpRequest, METHODS } from 'node:http'
import { type AddressInfo, connect, type Socket } from 'node:net'
import { availableParallelism } from 'node:os'
import { setTimeout as sleep } from 'node:timers/promises'
import { gzipSync } from 'node:zlib'
import t from 'tap'
import { withClient } from './databases.ts'
import {
  allRows,
  createTestDatabase,
  eventually,
  isReady,
  jwtSecret,
  type Server,
  startApp,
  startServer,
  type Tokens,
  testEnvironment
} from './harness.ts'
import { stopwatch } from './machine.ts'

// bounded in time: answers to honest clients during an attack

/*
 * The product as a process that somebody wants to bring down: every size, shape and speed that a client can choose. Two
 * processes are attacked. One gets what is malformed and too much; the other is held by slow connections meanwhile, which
 * takes as long as the time-outs of the product do.
 */

const api = '/api/v1'
/** The longest reply that there is for everybody. */
const largest = `${api}/docs/static/swagger-ui-bundle.js`
/** Nothing else in the run is spelled like this, so that it can be looked for everywhere. */
const secretPassword = 'canary horse 7f3b9d21 battery'
const pepper = 'a pepper of the hard edges, which nobody may see'

type Answer = { status: number; headers: Record<string, string | string[] | undefined>; text: string; ms: number }

/** Every refusal that a client was given in this file. What must not be told is looked for in here. */
const refusals: string[] = []

type Call = {
  method?: string
  body?: unknown
  token?: string | undefined
  headers?: Record<string, string> | undefined
}

/** One request down a connection that may be used again. The path is sent as it is. */
function call(agent: Agent, server: Server, path: string, { method, body, token, headers }: Call = {}) {
  const payload = body === undefined ? undefined : typeof body === 'string' ? body : JSON.stringify(body)
  const elapsed = stopwatch()
  return new Promise<Answer>((resolve, reject) => {
    const request = httpRequest({
      agent,
      host: '127.0.0.1',
      port: server.port,
      path,
      method: method ?? (payload === undefined ? 'GET' : 'POST'),
      timeout: 20_000,
      headers: {
        ...(payload !== undefined && {
          'content-type': 'application/json',
          'content-length': Buffer.byteLength(payload)
        }),
        ...(token !== undefined && { authorization: `Bearer ${token}` }),
        ...headers
      }
    })
    request.on('response', (reply) => {
      let text = ''
      reply.setEncoding('utf8').on('data', (chunk: string) => {
        text += chunk
      })
      reply.on('error', reject)
      reply.on('end', () => {
        const status = reply.statusCode ?? 0
        if (status >= 400) refusals.push(text)
        resolve({ status, headers: reply.headers, text, ms: elapsed() })
      })
    })
    request.on('timeout', () => request.destroy(new Error(`no answer to ${method} ${path} in 20 s`)))
    request.on('error', reject)
    request.end(payload)
  })
}

type Raw = { status: number; code: string; text: string; closed: boolean; ms: number; sent: number }

/**
 * Writes bytes to a socket, stops when the first reply has come, and waits until the other side closes. A number among the
 * bytes is a pause in milliseconds, a function gives bytes for as long as the other side takes them.
 */
async function sendBytes(server: Server, parts: (string | Buffer | (() => Buffer))[], patienceMs = 8000): Promise<Raw> {
  const socket = connect({ port: server.port, host: '127.0.0.1', noDelay: true })
  const elapsed = stopwatch()
  let ms = 0
  let text = ''
  let closed = false
  socket.setEncoding('latin1').on('data', (chunk: string) => {
    if (text === '') ms = elapsed()
    text += chunk
  })
  // what is still being written when the refusal comes is refused too
  socket.on('error', () => {})
  const end = new Promise<void>((done) => {
    const timer = setTimeout(done, patienceMs)
    socket.once('close', () => {
      closed = true
      clearTimeout(timer)
      done()
    })
  })
  await once(socket, 'connect')
  for (const part of parts) {
    if (typeof part !== 'function') {
      socket.write(part, 'latin1')
      continue
    }
    while (text === '' && !socket.destroyed && elapsed() < patienceMs) {
      if (socket.write(part())) await sleep(1)
      else await Promise.race([once(socket, 'drain'), once(socket, 'close'), sleep(200)]).catch(() => {})
    }
  }
  await end
  socket.destroy()
  if (text !== '') refusals.push(text)
  const code = /"code":"(\w+)"/.exec(text)?.[1] ?? ''
  return { status: Number(text.split(' ')[1] ?? 0), code, text, closed, ms, sent: socket.bytesWritten }
}

const json = 'Content-Type: application/json\r\n'
const login = (more: string) => `POST ${api}/auth/login HTTP/1.1\r\nHost: localhost\r\n${json}${more}\r\n`
const withBody = (body: string) => [login(`Content-Length: ${Buffer.byteLength(body)}\r\nConnection: close\r\n`), body]

/** Bytes of the process that are in memory now. */
const residentMiB = ({ child }: Server) =>
  Number(/VmRSS:\s+(\d+) kB/.exec(readFileSync(`/proc/${child.pid}/status`, 'utf8'))?.[1]) / 1024
const descriptors = ({ child }: Server) => readdirSync(`/proc/${child.pid}/fd`).length

const percentile = (values: number[], p: number) =>
  [...values].sort((a, b) => a - b)[Math.min(values.length - 1, Math.floor(values.length * p))] as number

async function latencies(agent: Agent, server: Server, paths: string[], rounds: number, token: string) {
  const times: number[] = []
  for (let i = 0; i < rounds; i++) {
    for (const path of paths) {
      const { status, ms } = await call(agent, server, path, { token })
      if (status !== 200) throw new Error(`${path}: ${status}`)
      times.push(ms)
    }
  }
  return times
}

type Owner = Tokens & { slug: string; email: string; user: { id: string }; tenant: { id: string } }

async function register(agent: Agent, server: Server, slug: string): Promise<Owner> {
  const email = `owner@${slug}.example`
  const body = { tenant: { name: slug, slug }, name: 'Owner', email, password: secretPassword }
  const { status, text } = await call(agent, server, `${api}/auth/register`, { body })
  if (status !== 201) throw new Error(text)
  return { ...JSON.parse(text), slug, email }
}

/** Every line that the process wrote as its log, and what it said on the other stream. */
function record({ child }: Server) {
  let text = ''
  let other = ''
  child.stdout?.on('data', (chunk: string) => {
    text += chunk
  })
  child.stderr?.on('data', (chunk: string) => {
    other += chunk
  })
  return {
    lines: () => text.split('\n').filter((line) => line !== ''),
    everything: () => text + other,
    /** The lines about finished requests among those that came after a mark. */
    requests: (from = 0) =>
      text
        .split('\n')
        .filter((line) => line !== '')
        .slice(from)
        .map((line) => JSON.parse(line) as Record<string, unknown>)
        .filter(({ msg }) => msg === 'request')
  }
}

type Slow = { kind: 'headers' | 'body' | 'reader'; socket: Socket; closedAfter: number | undefined; received: string }

/**
 * Opens connections that do as little as they can without being idle. The clock of each starts with its first byte.
 */
function openSlow(server: Server, counts: Record<Slow['kind'], number>) {
  const all: Slow[] = []
  const reads = `GET ${largest} HTTP/1.1\r\nHost: localhost\r\n\r\n`.repeat(2)
  const first = {
    headers: `GET ${api}/health/live HTTP/1.1\r\nHost: localhost\r\n`,
    body: login('Transfer-Encoding: chunked\r\n'),
    reader: reads
  }
  const startedAt = Date.now()
  for (const [kind, count] of Object.entries(counts) as [Slow['kind'], number][]) {
    for (let i = 0; i < count; i++) {
      const socket = connect({ port: server.port, host: '127.0.0.1', noDelay: true })
      const slow: Slow = { kind, socket, closedAfter: undefined, received: '' }
      socket.on('error', () => {})
      socket.on('close', () => {
        slow.closedAfter ??= Date.now() - startedAt
      })
      if (kind === 'reader') socket.pause()
      else {
        socket.setEncoding('latin1').on('data', (chunk: string) => {
          slow.received += chunk
        })
      }
      socket.write(first[kind])
      all.push(slow)
    }
  }
  const drip = setInterval(() => {
    for (const { kind, socket } of all) {
      if (!socket.writable) continue
      if (kind === 'headers') socket.write('X-A: b\r\n')
      else if (kind === 'body') socket.write('1\r\n \r\n')
    }
  }, 1000)
  const close = () => {
    clearInterval(drip)
    for (const { socket } of all) socket.destroy()
  }
  return { all, startedAt, close }
}

// as long as the time-outs of the product that are waited for, on a machine with other things to do
t.setTimeout(180_000)

t.test('nothing that a client sends brings the process down', async (t) => {
  const database = await createTestDatabase(t)
  const env = testEnvironment(database, { LOG_LEVEL: 'debug', PASSWORD_PEPPER: pepper })
  const server = await startServer(t, env, { ready: false })
  const log = record(server)
  const held = await startServer(t, { ...env, LOG_LEVEL: 'info' }, { ready: false })
  for (const each of [server, held]) await eventually(() => isReady(each), 60_000)

  const agent = new Agent({ keepAlive: true, maxSockets: 256 })
  t.teardown(() => agent.destroy())
  const acme = await register(agent, server, 'acme')
  const rival = await register(agent, server, 'rival')
  const fuzzed = await register(agent, server, 'fuzzed')
  const document = JSON.parse((await call(agent, server, `${api}/openapi.json`)).text) as OpenApi
  const me = (token: string, on = server) => call(agent, on, `${api}/users/me`, { token })
  const signIn = (body: object, on = server) => call(agent, on, `${api}/auth/login`, { body })

  // slow connections: how requests fare is measured now, when they are cut at the end of the file
  const paths = [`${api}/users/me`, `${api}/tenant`, `${api}/health/live`]
  await latencies(agent, held, paths, 10, acme.access_token)
  const baseline = await latencies(agent, held, paths, 40, acme.access_token)
  const before = { descriptors: descriptors(held), resident: residentMiB(held) }
  const slow = openSlow(held, { headers: 150, body: 150, reader: 50 })
  t.teardown(slow.close)
  await eventually(() => descriptors(held) >= before.descriptors + 300, 10_000)
  const attacked = await latencies(agent, held, paths, 40, acme.access_token)

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
      // as much of the same as is read at all
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
      // the machine may be busy: one of a few has to show how fast it can be
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
    // also who still writes when the refusal comes can read it: no connection is reset before
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
    // the refusal is there, and with it the end of what the server has to say
    await once(socket, 'end')
    socket.end(body.slice(10) + smuggled)
    await closed
    t.match(text, /^HTTP\/1\.1 413 /)
    t.equal(text.split('HTTP/1.1 ').length, 2, 'one reply')
    // longer than it would take
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
      // whoever is in front of the product may take the other one
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
      // two templates may differ in the names of their parameters only; a path without any is one by itself
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

  t.test('no value of any field of any operation is too much', { timeout: 120_000 }, async (t) => {
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
      await inTurns(attempts, 6, async ({ what, url, body, headers }) => {
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
      await sleep(20)
      t.ok(log.requests(from).length <= 1, `${url.slice(0, 40)}: at most one line`)
    }
    // control characters are not HTTP at all, and 64 KB are too much of it
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

  t.test('what goes wrong in one request is the end of that one only', async (t) => {
    const rename = (from: string, to: string) =>
      withClient(database.postgres, (client) => client.query(`alter table ${from} rename to ${to}`))
    await rename('users', 'users_elsewhere')
    const both = await Promise.all(
      Array.from({ length: 40 }, async (_, i) =>
        i % 2 ? me(acme.access_token) : call(agent, server, `${api}/tenant`, { token: acme.access_token })
      )
    ).finally(() => rename('users_elsewhere', 'users'))
    for (const [i, { status, text, headers }] of both.entries()) {
      if (i % 2 === 0) {
        t.equal(status, 200, 'a request beside it')
        continue
      }
      t.match(JSON.parse(text), { status: 500, code: 'internal_error', request_id: headers['x-request-id'] })
      t.strictSame(Object.keys(JSON.parse(text)).sort(), ['code', 'request_id', 'status', 'title', 'type'])
    }
    t.equal((await me(acme.access_token)).status, 200, 'and afterwards it works')

    // PostgreSQL likes to say which row it did not take
    const constraint = (text: string) =>
      withClient(database.postgres, (client) => client.query(`alter table users ${text}`))
    await constraint(`add constraint nobody check (name <> 'Nobody') not valid`)
    const body = {
      tenant: { name: 'N', slug: 'nobody' },
      name: 'Nobody',
      email: 'nobody@nobody.example',
      password: secretPassword
    }
    const { status, text } = await call(agent, server, `${api}/auth/register`, { body })
    await constraint('drop constraint nobody')
    t.equal(status, 500)
    t.notMatch(text, /nobody@|check|constraint|argon/)
  })

  t.test('a flood of passwords', async (t) => {
    const room = availableParallelism() + 64
    const attempt = (i: number) => signIn({ email: `nobody${i}@acme.example`, password: secretPassword })
    await Promise.all(Array.from({ length: 4 }, (_, i) => attempt(i)))

    t.test('leaves everybody else alone, and says when to come back', async (t) => {
      const resident = residentMiB(server)
      let flooding = true
      const others: Promise<number[]> = (async () => {
        const times: number[] = []
        // the last one needs the thread pool that hashes too
        const reads = [...paths, `${api}/docs/static/swagger-ui.css`]
        while (flooding) times.push(...(await latencies(agent, server, reads, 1, acme.access_token)))
        return times
      })()
      const replies = await Promise.all(Array.from({ length: 200 }, (_, i) => attempt(i)))
      flooding = false
      const times = await others
      const refused = replies.filter(({ status }) => status === 503)
      const hashed = replies.filter(({ status }) => status === 401)
      t.equal(refused.length + hashed.length, 200, 'nothing else comes back')
      t.ok(hashed.length >= room, `${hashed.length} of 200 were hashed`)
      t.ok(refused.length > 0, `${refused.length} of 200 were refused`)
      for (const { headers, text } of refused) {
        t.match(JSON.parse(text), { code: 'overloaded', status: 503 })
        t.match(headers['retry-after'], /^[1-9]\d*$/)
      }
      const slowest = Math.max(...hashed.map(({ ms }) => ms))
      const wait = percentile(
        refused.map(({ ms }) => ms),
        0.5
      )
      t.ok(wait < slowest / 2, `refused after ${Math.round(wait)} ms, hashed after ${Math.round(slowest)} ms`)
      t.ok(times.length > 8, `${times.length} reads meanwhile`)
      t.ok(percentile(times, 0.5) < 250, `reads: half in ${Math.round(percentile(times, 0.5))} ms`)
      t.ok(percentile(times, 0.95) < 1000, `reads: most in ${Math.round(percentile(times, 0.95))} ms`)
      const growth = residentMiB(server) - resident
      t.ok(growth < 160, `grew by ${Math.round(growth)} MiB`)
    })

    t.test('who goes away gives up no place to somebody else', async (t) => {
      const body = JSON.stringify({ email: 'gone@acme.example', password: secretPassword })
      const sockets = await Promise.all(
        Array.from({ length: room }, async () => {
          const socket = connect({ port: server.port, host: '127.0.0.1', noDelay: true })
          socket.on('error', () => {})
          await once(socket, 'connect')
          return socket
        })
      )
      for (const socket of sockets) socket.write(login(`Content-Length: ${body.length}\r\n`) + body)
      await sleep(50)
      for (const socket of sockets) socket.destroy()
      const replies = await Promise.all(Array.from({ length: room }, (_, i) => attempt(i)))
      const refused = replies.filter(({ status }) => status === 503).length
      t.ok(refused > room / 4, `${refused} of ${room} found no place`)
      t.ok(replies.every(({ status }) => status === 401 || status === 503))
    })

    t.test('is over when it is over', async (t) => {
      await eventually(
        async () => (await signIn({ email: acme.email, password: secretPassword })).status === 200,
        10_000
      )
      t.equal((await signIn({ email: acme.email, password: secretPassword })).status, 200)
    })
  })

  t.test('who asks a thousand times and reads no answer costs no more than others', async (t) => {
    for (const path of [`${api}/openapi.json`, largest]) {
      const open = { descriptors: descriptors(server), resident: residentMiB(server) }
      const sockets = [1, 2].map(() => {
        const socket = connect({ port: server.port, host: '127.0.0.1' })
        socket.on('error', () => {})
        socket.pause()
        socket.write(`GET ${path} HTTP/1.1\r\nHost: localhost\r\n\r\n`.repeat(1000))
        return socket
      })
      let most = { descriptors: 0, resident: 0 }
      for (let i = 0; i < 20; i++) {
        await sleep(100)
        most = {
          descriptors: Math.max(most.descriptors, descriptors(server) - open.descriptors),
          resident: Math.max(most.resident, residentMiB(server) - open.resident)
        }
      }
      for (const socket of sockets) socket.destroy()
      t.ok(most.resident < 150, `${path}: ${Math.round(most.resident)} MiB for two connections`)
      t.ok(most.descriptors < 100, `${path}: ${most.descriptors} descriptors for two connections`)
      await eventually(() => descriptors(server) < open.descriptors + 10, 10_000)
      const after = await me(acme.access_token)
      t.equal(after.status, 200, `${path}: afterwards ${after.status} ${after.text.slice(0, 300)}`)
    }
  })

  t.test('slow connections', { timeout: 120_000 }, async (t) => {
    t.test('slow nobody else down', async (t) => {
      const [calm, busy] = [baseline, attacked].map((times) => percentile(times, 0.95)) as [number, number]
      t.ok(busy < Math.max(10 * calm, 500), `${calm.toFixed(1)} ms without them, ${busy.toFixed(1)} ms beside them`)
    })
    const limits = { headers: 15_000, body: 30_000 }
    for (const kind of ['headers', 'body'] as const) {
      t.test(`the ${kind} of a request must have come in time`, async (t) => {
        const ours = slow.all.filter((each) => each.kind === kind)
        const left = limits[kind] + 20_000 - (Date.now() - slow.startedAt)
        await eventually(() => ours.every(({ closedAfter }) => closedAfter !== undefined), Math.max(left, 100))
        const times = ours.map(({ closedAfter }) => closedAfter as number)
        t.ok(Math.min(...times) >= limits[kind] - 1000, `not before ${Math.min(...times)} ms`)
        t.ok(Math.max(...times) <= limits[kind] + 20_000, `all of them after ${Math.max(...times)} ms`)
        const told = ours.filter(({ received }) => /^HTTP\/1\.1 408 /.test(received)).length
        t.equal(told, ours.length, 'each was told why')
      })
    }
    t.test('nothing of them stays', async (t) => {
      slow.close()
      await eventually(() => descriptors(held) <= before.descriptors + 5, 10_000)
      t.ok(
        descriptors(held) <= before.descriptors + 5,
        `${descriptors(held)} descriptors, ${before.descriptors} before`
      )
      const growth = residentMiB(held) - before.resident
      t.ok(growth < 150, `grew by ${Math.round(growth)} MiB`)
      t.equal((await me(acme.access_token, held)).status, 200)
      t.equal(held.child.exitCode, null)
    })
  })

  t.test('no secret has left the process', async (t) => {
    // what fails is logged in full, and what is in a query string is not logged at all
    const { text } = await signIn({ email: acme.email, password: secretPassword })
    const session = JSON.parse(text) as Tokens
    const renewed = JSON.parse(
      (await call(agent, server, `${api}/auth/refresh`, { body: { refresh_token: session.refresh_token } })).text
    ) as Tokens
    const { refresh_token } = renewed
    await call(agent, server, `${api}/users/me?access_token=${session.access_token}`)
    await call(agent, server, `${api}/auth/refresh`, { body: { refresh_token, password: secretPassword } })
    await call(agent, server, `${api}/auth/refresh`, { body: { refresh_token: `${refresh_token}x` } })
    await call(agent, server, `${api}/auth/login`, {
      body: `{"email":"${secretPassword}","password":"${refresh_token}`
    })
    await call(agent, server, `${api}/auth/login`, { body: { email: secretPassword, password: session.access_token } })
    await call(agent, server, `${api}/users/me/password`, {
      token: session.access_token,
      body: { current_password: secretPassword, new_password: 'short' }
    })
    await call(agent, server, `${api}/auth/logout`, { body: { refresh_token } })
    await me(`${session.access_token}x`)
    await me(session.access_token)
    await sleep(100)

    const events = JSON.stringify(await allRows(database, 'select * from audit_events'))
    t.match(events, 'session.opened', 'the control: there are events')
    t.match(log.everything(), '"msg":"request"', 'the control: there are lines')
    const places: Record<string, string> = {
      'the log': log.everything() + held.output(),
      'the audit log': events,
      refusals: refusals.filter((each) => !each.includes('"access_token"')).join('\n')
    }
    const tokens = [acme, rival, session, renewed].flatMap((each) => [each.access_token, each.refresh_token])
    const secrets: Record<string, string[]> = {
      'a password': [secretPassword, JSON.stringify(secretPassword).slice(1, -1), encodeURIComponent(secretPassword)],
      'a token': tokens,
      // a signature is enough to be somebody, with the rest known
      'a signature': tokens.map((token) => token.slice(-40)),
      'a hash': ['$argon2', 'argon2id$'],
      'a key': [jwtSecret, pepper, Buffer.from(jwtSecret).toString('base64'), Buffer.from(pepper).toString('base64')],
      'the database password': [new URL(database.app).password || 'no password here']
    }
    for (const [where, content] of Object.entries(places)) {
      for (const [what, values] of Object.entries(secrets)) {
        t.strictSame(
          values.filter((value) => content.includes(value)).map((value) => value.slice(0, 12)),
          [],
          `${what} in ${where}`
        )
      }
    }
    const tables = await allRows(
      database,
      `select oid::regclass::text as name from pg_class
      where relkind = 'r' and relnamespace = 'public'::regnamespace`
    )
    const contents = await Promise.all(
      tables.map(({ name }) => allRows(database, `select t::text as row from ${name} t`))
    )
    const dump = contents.flatMap((rows) => rows.map(({ row }) => row)).join('\n')
    t.match(dump, acme.email, 'the control: the whole database')
    for (const what of ['a password', 'a token', 'a signature', 'a key']) {
      t.strictSame(
        (secrets[what] as string[]).filter((value) => dump.includes(value)),
        [],
        `${what} in the database`
      )
    }
  })

  t.test('the process is the one that was started, and failed only where it was made to', async (t) => {
    t.equal(server.child.exitCode, null)
    t.equal(server.child.signalCode, null)
    const failed = log.requests().filter(({ status }) => (status as number) >= 500 && status !== 503)
    // a table was away for twenty reads, and one row was not taken
    t.equal(failed.length, 21, JSON.stringify(failed.slice(0, 3)))
    t.notMatch(log.everything(), /uncaught|unhandled|ExperimentalWarning|heap out of memory/i)
    t.ok(descriptors(server) < 400)
    t.equal((await me(acme.access_token)).status, 200)
  })
})

t.test('who does not read a reply does not hold a connection', async (t) => {
  const app = await startApp(t)
  // the product's own limit is too long for a test; how it is enforced is the same
  t.equal(app.server.timeout, 60_000)
  app.server.setTimeout(500)
  await app.listen({ host: '127.0.0.1', port: 0 })
  const { port } = app.server.address() as AddressInfo
  const count = () => new Promise<number>((done) => app.server.getConnections((_, connections) => done(connections)))
  const sockets = await Promise.all(
    Array.from({ length: 20 }, async () => {
      const socket = connect({ port, host: '127.0.0.1' })
      socket.on('error', () => {})
      socket.pause()
      await once(socket, 'connect')
      socket.write(`GET ${largest} HTTP/1.1\r\nHost: localhost\r\n\r\n`.repeat(8))
      return socket
    })
  )
  t.teardown(() => sockets.forEach((socket) => void socket.destroy()))
  await eventually(async () => (await count()) === 20)
  // twice, because Node gives a reply that has begun a second chance
  await eventually(async () => (await count()) === 0, 10_000)
  t.equal(await count(), 0)
  t.equal((await fetch(`http://127.0.0.1:${port}${api}/health/live`)).status, 200)
})

type Schema = {
  $ref?: string
  type?: string | string[]
  properties?: Record<string, Schema>
  items?: Schema
  enum?: unknown[]
  examples?: unknown[]
  format?: string
}
type Parameter = { name: string; in: 'path' | 'query' | 'header'; required?: boolean; schema: Schema }
type Operation = {
  security?: object[]
  parameters?: Parameter[]
  requestBody?: { content: Record<string, { schema: Schema }> }
}
type OpenApi = { paths: Record<string, Record<string, Operation>>; components: { schemas: Record<string, Schema> } }

type Attempt = { what: string; url: string; body?: unknown; headers?: Record<string, string> }

/** What databases, shells, templates, parsers and numbers have stumbled over. */
const texts = [
  ...[
    "''; drop table users; --",
    "' or '1'='1",
    "\\'; select pg_sleep(9); --",
    '$1',
    ':name',
    '%',
    '_%_',
    '$[*]',
    '$.**',
    'a.b."c"'
  ],
  ...[
    '{{7*7}}',
    '<script>',
    '../../etc/passwd',
    '\u0000',
    'a\u0000b',
    '\ud800',
    'a\ud83d',
    '\u202e',
    '\r\nX: y',
    '\u001b[31m'
  ],
  ...['', ' ', 'null', 'NaN', 'Infinity', '-1', '1e309', '-1e309', '9223372036854775808', 'x'.repeat(10_000)],
  ...['00000000-0000-0000-0000-000000000000', '2026-13-45T99:99:99Z', '*', 'W/"x"']
]
const others = [0, -1, 1.5, 2 ** 31, 2 ** 53, 9.3e18, true, null, [], {}, ['x', null], { a: { b: 1 } }]

/** Each field of an operation with each value, and all the others as in their examples. */
function attemptsOn(document: OpenApi, path: string, operation: Operation): Attempt[] {
  const parameters = operation.parameters ?? []
  const schema = operation.requestBody?.content['application/json']?.schema
  const body = schema && exampleOf(document, schema)
  const fill = (name: string, value: string) =>
    path.replaceAll(/\{(\w+)\}/g, (_, each) =>
      each === name ? value : encode(String(exampleOf(document, parameters.find((p) => p.name === each)?.schema ?? {})))
    )
  const attempts: Attempt[] = []
  for (const parameter of parameters) {
    for (const value of texts) {
      const what = `${parameter.name} = ${JSON.stringify(value).slice(0, 60)}`
      if (parameter.in === 'path') attempts.push({ what, url: fill(parameter.name, encode(value)), body })
      if (parameter.in === 'query')
        attempts.push({ what, url: `${fill('', '')}?${parameter.name}=${encode(value)}`, body })
      // what can not be a header is tried on a raw socket
      if (parameter.in === 'header' && /^[\t\x20-\x7e]*$/.test(value))
        attempts.push({ what, url: fill('', ''), body, headers: { [parameter.name]: value } })
    }
  }
  if (schema) {
    for (const field of fieldsOf(document, schema)) {
      for (const value of [...texts, ...others]) {
        const what = `${field.join('.')} = ${JSON.stringify(value).slice(0, 60)}`
        attempts.push({ what, url: fill('', ''), body: withValue(body, field, value) })
      }
    }
    for (const value of [...others, '', 'x'])
      attempts.push({ what: 'the body', url: fill('', ''), body: JSON.stringify(value) })
  }
  for (const name of ['if-match', 'if-none-match', 'idempotency-key', 'range']) {
    for (const value of ['"', '"a", W/"b"', "'; --", 'bytes=0-99999999999999999999']) {
      attempts.push({ what: `${name}: ${value}`, url: fill('', ''), body: schema && '{}', headers: { [name]: value } })
    }
  }
  return attempts
}

/** As UTF-8, halves of surrogate pairs too: as somebody would write them by hand. */
function encode(value: string): string {
  return value.isWellFormed() ? encodeURIComponent(value) : '%ED%A0%80'
}

function resolve(document: OpenApi, schema: Schema): Schema {
  return schema.$ref ? (document.components.schemas[schema.$ref.split('/').at(-1) as string] as Schema) : schema
}

function exampleOf(document: OpenApi, given: Schema): unknown {
  const schema = resolve(document, given)
  if (schema.examples?.length) return schema.examples[0]
  if (schema.properties) {
    return Object.fromEntries(
      Object.entries(schema.properties).map(([name, each]) => [name, exampleOf(document, each)])
    )
  }
  if (schema.enum) return schema.enum[0]
  return [schema.type].flat().includes('integer') ? 1 : 'x'
}

function fieldsOf(document: OpenApi, given: Schema): string[][] {
  const { properties = {} } = resolve(document, given)
  return Object.entries(properties).flatMap(([name, each]) => {
    const inner = resolve(document, each)
    const deeper = fieldsOf(document, inner).map((path) => [name, ...path])
    return [[name], ...deeper, ...(inner.items ? [[name, '0']] : [])]
  })
}

function withValue(body: unknown, [name, ...rest]: string[], value: unknown): unknown {
  if (name === undefined) return value
  if (name === '0') return [value]
  const object = body as Record<string, unknown>
  return { ...object, [name]: withValue(object[name], rest, value) }
}

/** Does the work for every item, `width` at a time. */
async function inTurns<T>(items: T[], width: number, work: (item: T) => Promise<void>): Promise<void> {
  const queue = items.values()
  await Promise.all(
    Array.from({ length: width }, async () => {
      for (const item of queue) await work(item)
    })
  )
}
