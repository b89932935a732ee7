import { setTimeout as sleep } from 'node:timers/promises'
import t, { type Test } from 'tap'
import {
  createTenant,
  createTestDatabase,
  eventually,
  post,
  type Reply,
  send,
  startApp,
  type TestApp
} from './harness.ts'
import { stopwatch } from './machine.ts'
import { needsRedis, type RedisServer, startRedis, unusedRedisUrl } from './redis.ts'
import { me } from './requests.ts'

// bounded in time: answers while Redis does not answer
// rehearsal: outages of Redis, under load

/*
 * Redis is away, frozen, flushed, read-only or full. No request fails, nothing becomes unlimited, no revoked token works again, and
 * everything is as before when Redis is back. No process is restarted here.
 */

const limit = { RATE_LIMIT_AUTH: '10/1h', RATE_LIMIT: '1000/1h', RATE_LIMIT_TENANT: '5000/1h' }

let guesses = 0

/** Guesses passwords of an unused address. Resolves to the number of guesses that were checked; the others were refused. */
async function guess(t: Test, app: TestApp, count: number): Promise<number> {
  const email = `nobody${++guesses}@acme.example`
  const replies: Reply[] = []
  for (let i = 0; i < count; i++) {
    const attempt = post('/auth/login', { email, password: 'not the right one' })
    replies.push(await send(app, 'localhost', { ...attempt, remoteAddress: `198.51.${guesses}.${i}` }))
  }
  const statuses = replies.map(({ statusCode }) => statusCode)
  t.strictSame(
    statuses.filter((status) => status !== 401 && status !== 429),
    [],
    'every guess is checked or refused'
  )
  return statuses.filter((status) => status === 401).length
}

const health = async (app: TestApp) => (await send(app, 'localhost', '/api/v1/health')).json()
const ready = async (app: TestApp) => (await send(app, 'localhost', '/api/v1/health/ready')).statusCode

/** Whether two processes share their counters. */
async function isShared(t: Test, apps: readonly [TestApp, TestApp]): Promise<boolean> {
  const email = `shared${++guesses}@acme.example`
  const attempt = post('/auth/login', { email, password: 'not the right one' })
  const from = (app: TestApp) => send(app, 'localhost', { ...attempt, remoteAddress: `203.0.113.${guesses % 250}` })
  await from(apps[0])
  const reply = await from(apps[1])
  t.equal(reply.statusCode, 401)
  return /"account";r=8/.test(String(reply.headers.ratelimit))
}

t.test('a process starts without Redis, and finds it later', needsRedis, async (t) => {
  const url = await unusedRedisUrl()
  const database = await createTestDatabase(t)
  const apps = [
    await startApp(t, { ...limit, REDIS_URL: url, LOG_LEVEL: 'info' }, database),
    await startApp(t, { ...limit, REDIS_URL: url }, database)
  ] as const
  const [app] = apps
  const acme = await createTenant(app, 'acme')
  t.equal((await acme.send(me)).statusCode, 200)
  t.match(await health(app), { status: 'degraded', checks: { database: { status: 'ok' }, redis: { status: 'down' } } })
  t.equal(await ready(app), 200)
  t.equal(await guess(t, app, 14), 10, 'sign-in is limited by the process')
  t.equal(app.logLines.filter((line) => line.includes('Redis is away')).length, 1, 'one warning')

  await startRedis(t, Number(new URL(url).port))
  await eventually(async () => (await health(app)).status === 'ok' && (await health(apps[1])).status === 'ok', 15_000)
  await eventually(() => isShared(t, apps), 10_000)
})

t.test('a process starts while Redis is frozen', needsRedis, async (t) => {
  const redis = await startRedis(t)
  redis.signal('SIGSTOP')
  const app = await startApp(t, { ...limit, REDIS_URL: redis.url })
  t.equal(await guess(t, app, 14), 10)
  redis.signal('SIGCONT')
  await eventually(async () => (await health(app)).status === 'ok', 15_000)
})

t.test('without REDIS_URL there is none, and production says so once', async (t) => {
  const database = await createTestDatabase(t)
  const production = {
    NODE_ENV: 'production',
    BASE_DOMAIN: 'aggios.test',
    LOG_LEVEL: 'warn',
    PASSWORD_PEPPER: 'Xv2kQ9mW7rT4bN8cZ1pL6sD3fG5hJ0aYe'
  }
  const app = await startApp(t, { ...production, JWT_SECRET: 'q8Zr5Tn2Wk9Xc4Vb7Lm1Pd6Hs3Gf0JaUy' }, database)
  const reply = await send(app, 'api.aggios.test', '/api/v1/health')
  t.match(reply.json(), { status: 'ok', checks: { database: { status: 'ok' } } })
  t.notHas(reply.json().checks, 'redis')
  t.equal(app.logLines.filter((line) => line.includes('REDIS_URL')).length, 1)
  const quiet = await startApp(t, { LOG_LEVEL: 'warn' }, database)
  t.strictSame(quiet.logLines, [])
})

t.test('whatever happens to Redis', needsRedis, async (t) => {
  const redis = await startRedis(t)
  const database = await createTestDatabase(t)
  const env = { ...limit, REDIS_URL: redis.url }
  const apps = [await startApp(t, env, database), await startApp(t, env, database)] as const
  const [app] = apps
  const acme = await createTenant(app, 'acme')
  const revoked = await acme.signIn()
  const signOut = { method: 'POST', url: '/api/v1/auth/logout' } as const
  t.equal((await acme.with(revoked.access_token, signOut)).statusCode, 204)
  await eventually(
    async () =>
      (await send(apps[1], acme.host, { url: me, headers: { authorization: `Bearer ${revoked.access_token}` } }))
        .statusCode === 401
  )
  t.equal(await isShared(t, apps), true)

  /** Checks what must hold during a fault. */
  async function holds(t: Test, { least = 10, most = 10 } = {}): Promise<void> {
    for (const each of apps) {
      const asked = await Promise.all(
        Array.from({ length: 20 }, () =>
          send(each, acme.host, { url: me, headers: { authorization: `Bearer ${acme.owner.tokens.access_token}` } })
        )
      )
      t.strictSame([...new Set(asked.map(({ statusCode }) => statusCode))], [200], 'reads')
      const reply = await send(each, acme.host, {
        url: me,
        headers: { authorization: `Bearer ${revoked.access_token}` }
      })
      t.match(reply.json(), { status: 401, code: 'session_revoked' }, 'what was revoked stays so')
      const written = await send(each, acme.host, {
        method: 'PATCH',
        url: me,
        payload: { name: 'Ada' },
        headers: { authorization: `Bearer ${acme.owner.tokens.access_token}` }
      })
      t.equal(written.statusCode, 200, 'writes')
      const checked = await guess(t, each, 14)
      t.ok(checked >= least && checked <= most, `${checked} guesses were checked`)
    }
  }

  /** Checks that everything is as before. */
  async function recovers(t: Test): Promise<void> {
    await eventually(async () => (await health(app)).status === 'ok' && (await health(apps[1])).status === 'ok', 15_000)
    await eventually(() => isShared(t, apps), 10_000)
  }

  const faults: [
    title: string,
    fault: (redis: RedisServer) => Promise<unknown>,
    mend: (redis: RedisServer) => Promise<unknown>
  ][] = [
    ['it is killed', async ({ signal }) => signal('SIGKILL'), ({ restart }) => restart()],
    ['it is frozen', async ({ signal }) => signal('SIGSTOP'), async ({ signal }) => signal('SIGCONT')],
    [
      'it pauses its clients',
      ({ admin }) => admin.call('CLIENT', 'PAUSE', '5000', 'ALL'),
      // answered when Redis continues
      ({ admin }) => admin.ping()
    ],
    [
      'it is a read-only replica',
      ({ admin }) => admin.call('REPLICAOF', '127.0.0.1', '1'),
      ({ admin }) => admin.call('REPLICAOF', 'NO', 'ONE')
    ],
    [
      'it is full',
      async ({ admin }) => {
        await admin.config('SET', 'maxmemory-policy', 'noeviction')
        await admin.config('SET', 'maxmemory', '1mb')
      },
      ({ admin }) => admin.config('SET', 'maxmemory', '200mb')
    ]
  ]
  for (const [title, fault, mend] of faults) {
    await t.test(title, async (t) => {
      await fault(redis)
      await holds(t)
      t.equal(await ready(app), 200)
      const [killed, frozen] = [title === 'it is killed', title === 'it is frozen']
      if (killed || frozen) t.match(await health(app), { status: 'degraded', checks: { redis: { status: 'down' } } })
      await mend(redis)
      await recovers(t)
    })
  }

  await t.test('it is emptied every 50 ms', async (t) => {
    let flushing = true
    let flushes = 0
    const emptier = (async () => {
      while (flushing) {
        await redis.admin.flushall()
        flushes++
        await sleep(50)
      }
    })()
    await holds(t)
    flushing = false
    await emptier
    t.ok(flushes > 2, `${flushes} times`)
    await recovers(t)
  })

  await t.test('nothing piles up while it is frozen', async (t) => {
    redis.signal('SIGSTOP')
    const waiting = () => {
      const { commandQueue, offlineQueue } = app.redis as unknown as Record<
        'commandQueue' | 'offlineQueue',
        { length: number }
      >
      return commandQueue.length + offlineQueue.length
    }
    let most = 0
    for (let i = 0; i < 300; i++) {
      // each from another address, so that each request needs Redis
      await send(app, 'localhost', { url: me, remoteAddress: `192.0.${i % 250}.${i}` })
      most = Math.max(most, waiting())
    }
    redis.signal('SIGCONT')
    t.ok(most < 50, `${most} commands waited`)
    await recovers(t)
  })

  await t.test('its account can do what the product does, and no more', async (t) => {
    const forbidden: [command: string, ...values: string[]][] = [
      ['CONFIG', 'GET', '*'],
      ['DEBUG', 'SLEEP', '0'],
      ['KEYS', '*'],
      ['SCAN', '0'],
      ['FLUSHALL'],
      ['EVAL', 'return 1', '0'],
      ['FUNCTION', 'LIST'],
      ['MODULE', 'LIST'],
      ['ACL', 'LIST'],
      ['CLIENT', 'LIST'],
      ['INFO'],
      ['MONITOR'],
      ['SHUTDOWN'],
      ['DEL', 'aggios:x'],
      ['GET', 'others'],
      ['SET', 'others', '1'],
      ['PUBLISH', 'others', ''],
      ['SUBSCRIBE', 'others']
    ]
    for (const [command, ...values] of forbidden) {
      await t.rejects(app.redis.call(command, ...values), /NOPERM|not allowed/, `${command} ${values.join(' ')}`)
    }
    const sha = String(await app.redis.script('LOAD', "return redis.call('get', KEYS[1])"))
    await t.rejects(app.redis.evalsha(sha, 1, 'others'), /NOPERM|ACL/, 'nor by a script')
    t.equal(await app.redis.set('aggios:quota:x', '1', 'PX', 1000), 'OK')
  })
})

t.test('what is revoked on one process is refused by another without its poll', needsRedis, async (t) => {
  const redis = await startRedis(t)
  const database = await createTestDatabase(t)
  const env = { REDIS_URL: redis.url }
  const here = await startApp(t, env, database)
  const there = await startApp(t, env, database)
  const acme = await createTenant(here, 'acme')
  const times: number[] = []
  for (let round = 0; round < 15; round++) {
    const { access_token } = await acme.signIn()
    const headers = { authorization: `Bearer ${access_token}` }
    t.equal((await send(there, acme.host, { url: me, headers })).statusCode, 200)
    await acme.with(access_token, { method: 'POST', url: '/api/v1/auth/logout' })
    const elapsed = stopwatch()
    while ((await send(there, acme.host, { url: me, headers })).statusCode === 200) await sleep(2)
    times.push(elapsed())
  }
  const median = times.toSorted((a, b) => a - b)[7] as number
  t.comment(`median ${median.toFixed(1)} ms`)
  // by the poll alone a quarter of a second
  t.ok(median < 100, `${median.toFixed()} ms`)

  t.test('also where Redis is gone, at the next poll', async () => {
    redis.signal('SIGKILL')
    const { access_token } = await acme.signIn()
    const headers = { authorization: `Bearer ${access_token}` }
    await acme.with(access_token, { method: 'POST', url: '/api/v1/auth/logout' })
    await eventually(async () => (await send(there, acme.host, { url: me, headers })).statusCode === 401, 2000)
  })
})
