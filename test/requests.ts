import { connect } from 'node:net'
import { post, type Reply, send, type TestApp } from './harness.ts'

/*
 * Parts of requests that many tests send.
 */

/** The path that shows the signed-in person. Every role may read it. */
export const me = '/api/v1/users/me'

/** The id of nothing: no test creates an object with it. */
export const unknownId = '019a2c4e-7b1d-7c3e-9f00-3d5a1b2c4d5e'

export const bearer = (token: string) => ({ authorization: `Bearer ${token}` })

/** A request from the address `ip`, as a trusted proxy at 10.0.0.1 passes it on. */
export const from = (ip: string) => ({ remoteAddress: '10.0.0.1', headers: { 'x-forwarded-for': ip } })

/** Opens a real socket for an application, and resolves to its port. */
export async function listen(app: TestApp): Promise<number> {
  await app.listen({ host: '127.0.0.1', port: 0 })
  return (app.server.address() as { port: number }).port
}

export const login = (app: TestApp, email: string, word: unknown, options: object = {}): Promise<Reply> =>
  send(app, 'localhost', { ...post('/auth/login', { email, password: word }), ...options })

/**
 * Asks on the general host who the bearer is, with any text as the `Authorization` header. Timers run first: thousands
 * of injected refusals in a row would not let them.
 */
export async function sendAuthorization(app: TestApp, authorization: string): Promise<Reply> {
  await new Promise(setImmediate)
  return send(app, 'localhost', { url: me, headers: { authorization } })
}

/** Sends bytes on a new connection. Resolves to the answer, and to the milliseconds until the connection closed. */
export async function exchange(port: number, bytes: string): Promise<{ text: string; ms: number }> {
  const socket = connect(port, '127.0.0.1')
  let text = ''
  const startedAt = Date.now()
  socket.setTimeout(10_000, () => socket.destroy())
  socket.on('error', () => {})
  socket.on('data', (chunk) => {
    text += chunk
  })
  socket.write(bytes)
  await new Promise((done) => socket.once('close', done))
  return { text, ms: Date.now() - startedAt }
}
