import { once } from 'node:events'
import { readdirSync, readFileSync } from 'node:fs'
import { Agent, request as httpRequest } from 'node:http'
import { connect, type Socket } from 'node:net'
import { setTimeout as sleep } from 'node:timers/promises'
import type { Test } from 'tap'
import {
  allRows,
  createTestDatabase,
  eventually,
  isReady,
  jwtSecret,
  type Server,
  startServer,
  type Tokens,
  testEnvironment
} from './harness.ts'
import { stopwatch } from './machine.ts'

/*
 * Clients that try to bring a server down, the server that they attack, and checks of the server afterwards.
 */

export const api = '/api/v1'
/** The largest reply that needs no token. */
export const largest = `${api}/docs/static/swagger-ui-bundle.js`
/** This text occurs nowhere else, so that the log and the database can be searched for it. */
export const secretPassword = 'canary horse 7f3b9d21 battery'
const pepper = 'a pepper of the hostile clients, which must not leak'

export type Answer = {
  status: number
  headers: Record<string, string | string[] | undefined>
  text: string
  ms: number
}

/** The text of every refusal that a client received. It is searched for secrets at the end. */
const refusals: string[] = []

type Call = {
  method?: string
  body?: unknown
  token?: string | undefined
  headers?: Record<string, string> | undefined
}

/** Sends a request on a kept connection. The path is sent as it is, without normalization. */
export function call(agent: Agent, server: Server, path: string, { method, body, token, headers }: Call = {}) {
  const payload = body === undefined ? undefined : typeof body === 'string' ? body : JSON.stringify(body)
  const elapsed = stopwatch()
  return new Promise<Answer>((resolve, reject) => {
    const request = httpRequest({
      agent,
      host: '127.0.0.1',
      port: server.port,
      path,
      method: method ?? (payload === undefined ? 'GET' : 'POST'),
      timeout: 120_000,
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
      const finish = () => {
        const status = reply.statusCode ?? 0
        if (status >= 400) refusals.push(text)
        resolve({ status, headers: reply.headers, text, ms: elapsed() })
      }
      reply.on('end', finish)
      // a stream of events does not end by itself, so its head counts as the reply
      if (reply.headers['content-type']?.startsWith('text/event-stream')) {
        finish()
        request.destroy()
      }
    })
    request.on('timeout', () => request.destroy(new Error(`no answer to ${method} ${path} in two minutes`)))
    request.on('error', reject)
    request.end(payload)
  })
}

export type Raw = { status: number; code: string; text: string; closed: boolean; ms: number; sent: number }

/**
 * Writes bytes to a socket until the first reply arrives, and waits until the server closes it. A function among the
 * parts is called for more bytes as long as the server accepts them.
 */
export async function sendBytes(
  server: Server,
  parts: (string | Buffer | (() => Buffer))[],
  timeoutMs = 60_000
): Promise<Raw> {
  const socket = connect({ port: server.port, host: '127.0.0.1', noDelay: true })
  const elapsed = stopwatch()
  let ms = 0
  let text = ''
  let closed = false
  socket.setEncoding('latin1').on('data', (chunk: string) => {
    if (text === '') ms = elapsed()
    text += chunk
  })
  // bytes that are still being written when the refusal arrives fail with an error
  socket.on('error', () => {})
  const end = new Promise<void>((done) => {
    const timer = setTimeout(done, timeoutMs)
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
    while (text === '' && !socket.destroyed && elapsed() < timeoutMs) {
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

export const json = 'Content-Type: application/json\r\n'
export const login = (more: string) => `POST ${api}/auth/login HTTP/1.1\r\nHost: localhost\r\n${json}${more}\r\n`
export const withBody = (body: string) => [
  login(`Content-Length: ${Buffer.byteLength(body)}\r\nConnection: close\r\n`),
  body
]

/** The resident memory of the process, in MiB. */
export const residentMiB = ({ child }: Server) =>
  Number(/VmRSS:\s+(\d+) kB/.exec(readFileSync(`/proc/${child.pid}/status`, 'utf8'))?.[1]) / 1024
export const descriptors = ({ child }: Server) => readdirSync(`/proc/${child.pid}/fd`).length

export const percentile = (values: number[], p: number) =>
  [...values].sort((a, b) => a - b)[Math.min(values.length - 1, Math.floor(values.length * p))] as number

export async function latencies(agent: Agent, server: Server, paths: string[], rounds: number, token: string) {
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

export async function register(agent: Agent, server: Server, slug: string): Promise<Owner> {
  const email = `owner@${slug}.example`
  const body = { tenant: { name: slug, slug }, name: 'Owner', email, password: secretPassword }
  const { status, text } = await call(agent, server, `${api}/auth/register`, { body })
  if (status !== 201) throw new Error(text)
  return { ...JSON.parse(text), slug, email }
}

/** Records what the process writes: its log on stdout, and everything on stderr. */
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
    /** The log lines about finished requests, without the first `from` lines. */
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
 * Opens slow connections: they send headers or a body at one piece a second, or don't read the reply. Time-outs count
 * from their first byte.
 */
export function openSlow(server: Server, counts: Record<Slow['kind'], number>) {
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

/** A server that is attacked, with its log, its database and two agencies. */
export type Target = Awaited<ReturnType<typeof startTarget>>

export async function startTarget(t: Test) {
  const database = await createTestDatabase(t)
  const env = testEnvironment(database, { LOG_LEVEL: 'debug', PASSWORD_PEPPER: pepper })
  const server = await startServer(t, env, { ready: false })
  const log = record(server)
  await eventually(() => isReady(server), 60_000)
  const agent = new Agent({ keepAlive: true, maxSockets: 256 })
  t.teardown(() => agent.destroy())
  return {
    database,
    env,
    server,
    log,
    agent,
    acme: await register(agent, server, 'acme'),
    rival: await register(agent, server, 'rival'),
    me: (token: string, on = server) => call(agent, on, `${api}/users/me`, { token }),
    signIn: (body: object, on = server) => call(agent, on, `${api}/auth/login`, { body })
  }
}

/**
 * Searches the logs, the audit log, the refusals and the whole database for secrets. `others` are further servers that
 * were attacked.
 */
export async function proveNoSecretLeft(
  t: Test,
  { database, server, log, agent, acme, rival, me, signIn }: Target,
  others: Server[] = []
): Promise<void> {
  // requests that could leak a secret: failures are logged with details, and a query string must not be logged
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
    'the log': log.everything() + others.map((each) => each.output()).join(''),
    'the audit log': events,
    refusals: refusals.filter((each) => !each.includes('"access_token"')).join('\n')
  }
  const tokens = [acme, rival, session, renewed].flatMap((each) => [each.access_token, each.refresh_token])
  const secrets: Record<string, string[]> = {
    'a password': [secretPassword, JSON.stringify(secretPassword).slice(1, -1), encodeURIComponent(secretPassword)],
    'a token': tokens,
    // the other parts of a token can be guessed, so its signature alone is a secret
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
}

/**
 * Checks that the process still runs, and that only `failures` requests had an internal error: those that the tests
 * caused.
 */
export async function proveItStillRuns(t: Test, { server, log, acme, me }: Target, failures: number): Promise<void> {
  t.equal(server.child.exitCode, null)
  t.equal(server.child.signalCode, null)
  const failed = log.requests().filter(({ status }) => (status as number) >= 500 && status !== 503)
  t.equal(failed.length, failures, JSON.stringify(failed.slice(0, 3)))
  t.notMatch(log.everything(), /uncaught|unhandled|ExperimentalWarning|heap out of memory/i)
  t.ok(descriptors(server) < 400)
  t.equal((await me(acme.access_token)).status, 200)
}
