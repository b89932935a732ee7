import { once } from 'node:events'
import { connect } from 'node:net'
import type { Test } from 'tap'
import { password, post, type Reply } from './harness.ts'

/** What no reply may contain: stack traces, paths, SQL, and messages of the driver, the framework and the parser. */
const inside =
  /\bat .+:\d+:\d+|node_modules|\/work\/|\.ts\b|\b(?:select|insert into|update|delete from)\b.*\b(?:from|values|set|where)\b|FST_|HPE_|ERR_|ECONN|\brelation\b|postgres|kysely|fastify/i

export type Written = { status: number; headers: Record<string, unknown>; body: string }

export const written = (reply: Reply): Written => ({
  status: reply.statusCode,
  headers: reply.headers,
  body: reply.body
})

/** Checks what every refusal must be: a problem document with this status and code, and nothing internal. */
export function isProblem(t: Test, reply: Written, status: number, code: string, what: string): void {
  t.equal(reply.status, status, `${what}: status`)
  t.match(reply.headers['content-type'], /^application\/problem\+json(?:;|$)/, `${what}: media type`)
  const problem = JSON.parse(reply.body)
  t.match(problem, { status, code, type: `/api/v1/problems/${code}`, title: /\S/ }, `${what}: document`)
  t.equal('errors' in problem, code === 'validation_failed', `${what}: errors`)
  t.notMatch(reply.body, inside, `${what}: opaque`)
}

/** Checks also that it names the request. What could not be parsed as a request has no id. */
export function isProblemOfRequest(t: Test, reply: Written, status: number, code: string, what: string): void {
  isProblem(t, reply, status, code, what)
  const id = reply.headers['x-request-id']
  t.match(id, /^[A-Za-z0-9._-]{1,128}$/, `${what}: X-Request-Id`)
  t.equal(JSON.parse(reply.body).request_id, id, `${what}: request_id`)
}

/** Writes bytes to a socket, and reads until the server closes it or the time-out is over. */
export async function exchange(port: number, bytes: string | string[], timeoutMs = 5000) {
  const socket = connect({ port, host: '127.0.0.1', allowHalfOpen: true })
  let text = ''
  let closed = false
  socket.setEncoding('latin1').on('data', (chunk: string) => {
    text += chunk
  })
  socket.on('error', () => {})
  const end = new Promise<void>((done) => {
    const timer = setTimeout(done, timeoutMs)
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

export const json = { 'content-type': 'application/json' }
export const signIn = (email: string) => post('/auth/login', { email, password })
