import type { Test } from 'tap'
import type { Environment } from '../src/config/environment.ts'
import { createDatabase, type DatabaseUrls, dropDatabase } from './databases.ts'
import { eventually, isReady, password, type Server, startServer, type Tokens } from './harness.ts'
import { stopwatch } from './machine.ts'

/** Starts a server, and waits until it is ready or has ended. */
export async function startOrFail(t: Test, env: Environment): Promise<Server> {
  const server = await startServer(t, env, { ready: false })
  await eventually(async () => server.child.exitCode !== null || (await isReady(server)), 60_000)
  return server
}

export async function stop(server: Server, signal: NodeJS.Signals = 'SIGTERM') {
  server.child.kill(signal)
  return server.exited
}

export type Answer = { status: number; body: Record<string, unknown>; headers: Headers; ms: number }

export async function call(
  server: Server,
  method: string,
  path: string,
  payload?: object,
  token?: string
): Promise<Answer> {
  const elapsed = stopwatch()
  const reply = await server.fetch(`/api/v1${path}`, {
    method,
    headers: {
      ...(payload && { 'content-type': 'application/json' }),
      ...(token !== undefined && { authorization: `Bearer ${token}` })
    },
    ...(payload && { body: JSON.stringify(payload) })
  })
  const text = await reply.text()
  const body = text === '' ? {} : JSON.parse(text)
  return { status: reply.status, body, headers: reply.headers, ms: elapsed() }
}

export const registration = (slug: string) => ({
  tenant: { name: `The ${slug} agency`, slug },
  name: `Owner of ${slug}`,
  email: `owner@${slug}.example`,
  password
})

export async function register(server: Server, slug: string): Promise<Tokens & { user: { id: string } }> {
  const { status, body } = await call(server, 'POST', '/auth/register', registration(slug))
  if (status !== 201) throw new Error(JSON.stringify(body))
  return body as never
}

export const refresh = (server: Server, refresh_token: string) =>
  call(server, 'POST', '/auth/refresh', { refresh_token })
export const me = (server: Server, token: string) => call(server, 'GET', '/users/me', undefined, token)

/** Creates a database without a schema. */
export async function createEmptyDatabase(t: Test, name: string): Promise<DatabaseUrls> {
  const full = `p_${process.pid}_${name}`
  const urls = await createDatabase(full, 'template1')
  t.teardown(() => dropDatabase(full))
  return urls
}

/** The output of a server that refuses to start. */
export async function refusal(t: Test, env: Environment): Promise<string> {
  const server = await startServer(t, env, { ready: false })
  const { code } = await server.exited
  t.ok(code !== null && code > 0, `it exits with ${code}`)
  t.notMatch(server.output(), /\n\s+at /, 'no stack')
  const secret = new URL(env.DATABASE_URL as string).password
  t.notOk(server.output().includes(secret), 'and no password')
  return server.output()
}
