import type { Test } from 'tap'
import { post, type Reply, send, type TestApp, type Tokens } from './harness.ts'

export const sessions = '/api/v1/users/me/sessions'

export const refresh = (app: TestApp, token: string, host = 'localhost') =>
  send(app, host, post('/auth/refresh', { refresh_token: token }))

/** Refreshes, and resolves to the new tokens. */
export async function rotate(app: TestApp, token: string): Promise<Tokens> {
  const reply = await refresh(app, token)
  if (reply.statusCode !== 200) throw new Error(`refresh: ${reply.statusCode} ${reply.body}`)
  return reply.json()
}

export function refused(t: Test, reply: Reply, code: string, message = code): void {
  t.match(reply.json(), { status: 401, code }, message)
  t.equal(reply.headers['cache-control'], 'no-store')
}
