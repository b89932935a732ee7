import type { FastifyRequest } from 'fastify'
import t from 'tap'
import { PipelineFull } from '../db/gate/pipeline.ts'
import { buildApp } from '../src/app.ts'
import { readConfig } from '../src/config/config.ts'
import { catalogue, Problem } from '../src/http/problems.ts'
import { QueueFull } from '../src/limits/bounded-queue.ts'
import { CircuitOpen } from '../src/limits/circuit-breaker.ts'
import { SemaphoreExhausted } from '../src/limits/keyed-semaphore.ts'
import { createTenant, createTestDatabase, testEnvironment } from './harness.ts'

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
  await app.inject({ url: '/api/v1/tenant', headers: { host: 'example.com' } })
  t.equal(last?.hostProblem?.kind.code, 'unknown_host')
  t.strictSame(frames(last?.hostProblem), [])
  for (let i = 0; i < 13 && !last?.overLimit; i++) {
    await app.inject({ url: '/api/v1/tenant', headers: { host: acme.host, authorization: `Bearer ${token}` } })
  }
  t.equal(last?.overLimit?.kind.code, 'rate_limited')
  t.strictSame(frames(last?.overLimit), [])
})
