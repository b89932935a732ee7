import t, { type Test } from 'tap'
import { openEvents } from './event-reader.ts'
import { createTenant, createTestDatabase, eventually, startApp, startServer, testEnvironment } from './harness.ts'
import { needsRedis, startRedis } from './redis.ts'
import { listen } from './requests.ts'

// bounded in time: how soon another process sends an event, and a server ends its streams
// rehearsal: the events of several processes

/*
 * The stream of events of several processes: what one has changed, the others send; and a server that stops ends its streams.
 */

/** Renames the agency at one process until a reader at another one has seen `times` events. Resolves to the longest delay. */
async function longestDelay(t: Test, env: Record<string, string>, times: number): Promise<number> {
  const database = await createTestDatabase(t)
  const here = await startApp(t, env, database)
  const there = await startApp(t, env, database)
  const acme = await createTenant(here, 'acme')
  await here.events.run()
  const token = acme.owner.tokens.access_token
  const reader = await openEvents(t, { port: await listen(there), host: acme.host, token })
  let longest = 0
  for (let n = 1; n <= times; n++) {
    await acme.send({ method: 'PATCH', url: '/api/v1/tenant', payload: { name: `Acme ${n}` } })
    longest = Math.max(longest, await eventually(() => reader.messages.length >= n))
  }
  return longest
}

t.test('without Redis, within a second and what the reads take', async (t) => {
  const ms = await longestDelay(t, {}, 10)
  t.ok(ms < 2000, `${Math.round(ms)} ms`)
})

t.test('with Redis, at once', { ...needsRedis }, async (t) => {
  const redis = await startRedis(t)
  const ms = await longestDelay(t, { REDIS_URL: redis.url }, 10)
  t.ok(ms < 400, `${Math.round(ms)} ms`)
})

t.test('a server that stops ends its streams first, and then itself', async (t) => {
  const app = await startApp(t)
  const acme = await createTenant(app, 'acme')
  const token = acme.owner.tokens.access_token
  const server = await startServer(t, testEnvironment(app.database, { SHUTDOWN_TIMEOUT: '30' }))
  const readers = await Promise.all(
    Array.from({ length: 5 }, () => openEvents(t, { port: server.port, host: acme.host, token }))
  )
  t.ok(readers.every(({ status }) => status === 200))
  const startedAt = performance.now()
  server.child.kill('SIGTERM')
  await Promise.all(readers.map(({ ended }) => ended))
  t.strictSame(await server.exited, { code: 0, signal: null })
  const ms = performance.now() - startedAt
  t.ok(ms < 10_000, `after ${Math.round(ms)} ms, and not after SHUTDOWN_TIMEOUT`)
  t.ok(
    readers.every(({ text }) => text().endsWith('\n\n')),
    'no message was cut'
  )
})
