import type { FastifyRequest } from 'fastify'
import t from 'tap'
import { PipelineFull } from '../db/gate/pipeline.ts'
import { maxRefusalLines } from '../plugins/observability/request-log.ts'
import { buildApp } from '../src/app.ts'
import { readConfig } from '../src/config/config.ts'
import { catalogue, Problem, problemText } from '../src/http/problems.ts'
import { QueueFull } from '../src/limits/bounded-queue.ts'
import { CircuitOpen } from '../src/limits/circuit-breaker.ts'
import { SemaphoreExhausted } from '../src/limits/keyed-semaphore.ts'
import { createTenant, createTestDatabase, eventually, startApp, testEnvironment } from './harness.ts'
import { login } from './requests.ts'

/*
 * A flood of refused requests must cost less than a flood of answered ones. Stack traces were most of the cost, so an expected
 * refusal takes none.
 */

/** The stack frames of an error and of its causes. */
function frames(err: unknown): string[] {
  if (!(err instanceof Error)) return []
  return [...(err.stack?.split('\n').filter((line) => /^\s+at /.test(line)) ?? []), ...frames(err.cause)]
}

t.test('what a flood meets takes no stack', async (t) => {
  t.not(frames(new Error('a fault')).length, 0, 'others do')
  for (const kind of catalogue.values()) t.strictSame(frames(new Problem(kind, {})), [], kind.code)
  for (const Kind of [QueueFull, SemaphoreExhausted, CircuitOpen, PipelineFull]) {
    const err = new Kind('full')
    t.strictSame(frames(err), [], Kind.name)
    t.equal(err.message, 'full')
  }
  t.not(frames(new Error('a fault')).length, 0, 'nor is it switched off for others')
})

t.test('the text of a problem is its document', async (t) => {
  const request_id = 'an "id"'
  const options = {
    detail: 'said "so"',
    errors: [{ path: '/body', message: 'a "fault"' }],
    extensions: { reason: ['a', 1], absent: undefined },
    cause: new Error('secret')
  }
  for (const kind of catalogue.values()) {
    const { code, status, title, isOAuth } = kind
    const constant = { type: `/api/v1/problems/${code}`, title, status, code, ...(isOAuth && { error: code }) }
    t.strictSame(JSON.parse(problemText(new Problem(kind, {}))), constant, code)
    t.strictSame(JSON.parse(problemText(new Problem(kind, options), request_id)), {
      ...constant,
      ...(status < 500 && { detail: options.detail }),
      request_id,
      errors: options.errors,
      reason: ['a', 1]
    })
  }
})

t.test('a flood of strangers has some lines of the log, and all others have theirs', async (t) => {
  const app = await startApp(t, { LOG_LEVEL: 'info' })
  const acme = await createTenant(app, 'acme')
  const lines = () => app.logLines.map((line) => JSON.parse(line))
  const stranger = () => app.inject({ url: '/api/v1/tenant', headers: { host: acme.host } })
  // at once, so that all share the lines of one second: timers run when all are answered. A sign-in is answered last
  const signIn = login(app, acme.owner.email, 'a wrong one')
  await Promise.all(Array.from({ length: maxRefusalLines + 100 }, stranger))
  t.equal((await signIn).statusCode, 401)
  await eventually(() => lines().some(({ left_out }) => left_out > 0))
  const said = lines()
  t.match(
    said.filter(({ url }) => url === '/api/v1/auth/login'),
    [{ status: 401 }]
  )
  t.equal(said.filter(({ code }) => code === 'unauthenticated').length, maxRefusalLines)
  t.match(
    said.filter(({ left_out }) => left_out > 0),
    [{ left_out: 100 }]
  )
})

t.test('nor does what refuses a request', async (t) => {
  const urls = await createTestDatabase(t)
  const app = buildApp(readConfig(testEnvironment(urls, { RATE_LIMIT: '12/1m' })))
  t.teardown(() => app.close())
  let last: FastifyRequest | undefined
  app.addHook('onResponse', async (request) => {
    last = request
  })
  await app.ready()
  const acme = await createTenant(app, 'acme')
  const token = acme.owner.tokens.access_token
  const [head, claims, signature = ''] = token.split('.')
  const other = signature[9] === 'A' ? 'B' : 'A'
  const wrong: [why: string, authorization: string, code: string][] = [
    ['signature', `Bearer ${head}.${claims}.${signature.slice(0, 9)}${other}${signature.slice(10)}`, 'invalid_token'],
    ['claims', `Bearer ${head}.${Buffer.from('{"sub":1}').toString('base64url')}.${signature}`, 'invalid_token'],
    ['no JSON', `Bearer ${head}.bm8.${signature}`, 'invalid_token'],
    ['no token', 'Bearer nonsense', 'invalid_token']
  ]
  for (const [why, authorization, code] of wrong) {
    const reply = await app.inject({ url: '/api/v1/tenant', headers: { host: acme.host, authorization } })
    t.equal(reply.json().code, code, why)
    t.equal(last?.bearer?.problem?.kind.code, code)
    t.strictSame(frames(last?.bearer?.problem), [], why)
  }
  const ofUnknownHost = async () => {
    await app.inject({ url: '/api/v1/tenant', headers: { host: 'example.com' } })
    return last?.hostProblem
  }
  const problem = await ofUnknownHost()
  t.equal(problem?.kind.code, 'unknown_host')
  t.strictSame(frames(problem), [])
  t.equal(await ofUnknownHost(), problem, 'made once for all such requests')
  for (let i = 0; i < 13 && !last?.overLimit; i++) {
    await app.inject({ url: '/api/v1/tenant', headers: { host: acme.host, authorization: `Bearer ${token}` } })
  }
  t.equal(last?.overLimit?.kind.code, 'rate_limited')
  t.strictSame(frames(last?.overLimit), [])
})
