import { availableParallelism } from 'node:os'
import { setTimeout as sleep } from 'node:timers/promises'
import argon2 from 'argon2'
import t, { type Test } from 'tap'
import type { Hasher } from '../src/auth/hasher.ts'
import { createPasswords, waitTimeoutMs } from '../src/auth/passwords.ts'
import { Problem } from '../src/http/problems.ts'
import { createKeyRing } from '../src/keys.ts'
import { createBoundedQueue, QueueFull } from '../src/limits/bounded-queue.ts'
import { createTenant, eventually, password, post, type Reply, send, startApp, type TestApp } from './harness.ts'
import { stopwatch } from './machine.ts'
import { bearer, from, login, me } from './requests.ts'

// bounded in time: answers beside a flood of sign-ins

t.test('when there is more to hash than can be', async (t) => {
  t.test('a queue runs so many, lets so many wait, and refuses the rest at once', async (t) => {
    const queue = createBoundedQueue(2, 3, 60_000)
    const finish: (() => void)[] = []
    let running = 0
    let most = 0
    const job = async () => {
      most = Math.max(most, ++running)
      await new Promise<void>((done) => finish.push(done))
      running--
      return 'done'
    }
    const accepted = Array.from({ length: 5 }, () => queue.run(job))
    t.match(queue.stats(), { running: 2, waiting: 3 })
    const refusal = await queue.run(job).catch((err: unknown) => err)
    t.ok(refusal instanceof QueueFull)
    for (let left = 5; left > 0; left--) {
      finish.shift()?.()
      await new Promise(setImmediate)
    }
    t.strictSame(await Promise.all(accepted), ['done', 'done', 'done', 'done', 'done'])
    t.equal(most, 2)
    t.match(queue.stats(), { running: 0, waiting: 0 })
    await t.rejects(
      queue.run(() => Promise.reject(new Error('a job fails'))),
      { message: 'a job fails' }
    )
    t.match(queue.stats(), { running: 0, waiting: 0 }, 'a failure gives its place back')
  })
  t.test('parties take turns, and a flood gives way to who has less', async (t) => {
    const queue = createBoundedQueue(1, 4, 60_000)
    const order: string[] = []
    const finish: (() => void)[] = []
    const ask = (fairnessKey: string, name: string) =>
      queue.run(async () => {
        order.push(name)
        await new Promise<void>((done) => finish.push(done))
      }, fairnessKey)
    const flood = ['a1', 'a2', 'a3', 'a4', 'a5'].map((name) => ask('a', name))
    const others = [ask('b', 'b1'), ask('b', 'b2')]
    for (const each of [...flood.slice(3), ask('a', 'a6')]) {
      t.ok((await each.catch((err: unknown) => err)) instanceof QueueFull, 'the latest went')
    }
    for (let left = 5; left > 0; left--) {
      finish.shift()?.()
      await new Promise(setImmediate)
    }
    await Promise.all([...flood.slice(0, 3), ...others])
    t.strictSame(order, ['a1', 'a2', 'b1', 'a3', 'b2'])
    t.match(queue.stats(), { running: 0, waiting: 0, refused: 3 })
  })
  t.test('a hash waits for a bounded time, and is then refused as if there were no room', async (t) => {
    let finish = () => {}
    const stuck: Hasher = {
      hash: () => new Promise((done) => (finish = () => done('a hash'))),
      verify: async () => true
    }
    const passwords = await createPasswords(createKeyRing(['a pepper'], 'pepper'), stuck, 1, 2, 50)
    const first = passwords.hash(password)
    const err = await passwords.hash(password).catch((reason: unknown) => reason)
    t.match(err, { kind: { code: 'overloaded' }, options: { headers: { 'retry-after': '1' } } })
    t.match(passwords.stats(), { running: 1, waiting: 0, refused: 1 })
    finish()
    t.match(await first, { password_hash: 'a hash' })
  })
  t.test('hashing and checking share one queue, and the excess is told to come back', async (t) => {
    const passwords = await createPasswords(createKeyRing(['a pepper'], 'pepper'), argon2, 1, 2)
    const stored = await passwords.hash(password)
    const jobs = [passwords.hash(password), passwords.verify(password, stored), passwords.verify(password, undefined)]
    t.match(passwords.stats(), { running: 1, waiting: 2 })
    for (const attempt of [() => passwords.hash(password), () => passwords.verify(password, stored)]) {
      const err = await attempt().then(
        () => undefined,
        (reason: unknown) => reason
      )
      t.ok(err instanceof Problem)
      t.match(err, { kind: { code: 'overloaded', status: 503 }, options: { headers: { 'retry-after': /^[1-9]\d*$/ } } })
    }
    t.match(await Promise.all(jobs), [{ pepper_id: stored.pepper_id }, true, false])
    t.match(passwords.stats(), { running: 0, waiting: 0 })
    t.equal(await passwords.verify(password, stored), true, 'and there is room again')
  })
  t.test('a flood of sign-ins is answered, and nobody else waits for it', async (t) => {
    const app = await startApp(t)
    const acme = await createTenant(app, 'acme')
    const sinceFlood = stopwatch()
    const flood = Array.from({ length: 2 * (64 + availableParallelism()) }, () =>
      login(app, acme.owner.email, 'a wrong one')
    )
    await eventually(() => app.passwords.stats().waiting === 64)
    const elapsed = stopwatch()
    t.equal((await acme.send(me)).statusCode, 200)
    const waited = elapsed()
    const replies = await Promise.all(flood)
    const count = (status: number) => replies.filter(({ statusCode }) => statusCode === status).length
    // a starved machine sends some of those that wait away
    const inTime = sinceFlood() < waitTimeoutMs
    t.ok(count(401) >= (inTime ? 64 : 1), `${count(401)} were checked`)
    t.ok(count(503) > 0, `${count(503)} were sent away`)
    t.equal(count(401) + count(503), replies.length)
    for (const reply of replies.filter(({ statusCode }) => statusCode === 503)) {
      t.match(reply.json(), { code: 'overloaded' })
      t.match(reply.headers['retry-after'], /^[1-9]\d*$/)
    }
    t.ok(waited < 1000, `${waited.toFixed()} ms`)
    t.equal((await login(app, acme.owner.email, password)).statusCode, 200)
  })
})

t.test('guessing is slowed', async (t) => {
  const limit = { RATE_LIMIT_AUTH: '10/1m', TRUST_PROXY: '10.0.0.0/8' }
  const wrong = 'not the right password'
  const guess = (app: TestApp, email: string, ip: string, word = wrong) =>
    send(app, 'localhost', { ...post('/auth/login', { email, password: word }), ...from(ip) })
  /** An attempt that costs no hash. */
  const forge = (app: TestApp, ip: string) =>
    send(app, 'localhost', { ...post('/auth/refresh', { refresh_token: 'forged' }), ...from(ip) })
  const refused = (t: Test, reply: Reply, name: string) => {
    t.match(reply.json(), { status: 429, code: 'rate_limited' }, name)
    const retry = Number(reply.headers['retry-after'])
    t.ok(Number.isInteger(retry) && retry >= 1 && retry <= 60, `${name}: Retry-After ${retry}`)
    t.match(reply.headers['ratelimit-policy'], `"${name}";q=10;w=60`)
    t.match(reply.headers.ratelimit, new RegExp(`"${name}";r=0;t=\\d+`))
    t.equal(reply.headers['content-type'], 'application/problem+json; charset=utf-8')
  }

  t.test('from one address, whoever is tried', async (t) => {
    const app = await startApp(t, limit)
    const acme = await createTenant(app, 'acme')
    for (let count = 1; count <= 10; count++) {
      const reply = await guess(app, `nobody${count}@acme.example`, '198.51.100.1')
      t.equal(reply.statusCode, 401)
      t.match(reply.headers['ratelimit-policy'], /^"address";q=10;w=60, "account";q=10;w=60$/)
      t.match(reply.headers.ratelimit, new RegExp(`^"address";r=${10 - count};t=\\d+, "account";r=9;t=\\d+$`))
    }
    refused(t, await guess(app, 'nobody11@acme.example', '198.51.100.1'), 'address')
    refused(t, await guess(app, acme.owner.email, '198.51.100.1', password), 'address')
    t.equal((await guess(app, acme.owner.email, '198.51.100.2', password)).statusCode, 200, 'another address can')
    const body = { tenant: { name: 'New', slug: 'new' }, name: 'New', email: 'new@new.example', password }
    refused(t, await send(app, 'localhost', { ...post('/auth/register', body), ...from('198.51.100.1') }), 'address')
    t.equal((await send(app, 'localhost', { url: '/api/v1/health', ...from('198.51.100.1') })).statusCode, 200)
    const asked = { url: me, remoteAddress: '10.0.0.1', headers: { 'x-forwarded-for': '198.51.100.1' } }
    const signedIn = { ...asked, headers: { ...asked.headers, ...bearer(acme.owner.tokens.access_token) } }
    t.equal((await send(app, 'localhost', signedIn)).statusCode, 200, 'who is signed in works on')
  })
  t.test('at one account from many addresses, but not for its own address', async (t) => {
    const app = await startApp(t, limit)
    const acme = await createTenant(app, 'acme')
    t.equal((await guess(app, acme.owner.email, '203.0.113.5', password)).statusCode, 200, 'at home')
    const before = []
    for (let count = 1; count <= 14; count++) before.push(await guess(app, acme.owner.email, `198.51.100.${count}`))
    const statuses = before.map(({ statusCode }) => statusCode)
    t.ok(statuses.filter((status) => status === 401).length <= 10, 'at most ten are checked')
    t.strictSame(statuses.slice(-3), [429, 429, 429])
    refused(t, before.at(-1) as Reply, 'account')
    refused(t, await guess(app, acme.owner.email.toUpperCase(), '198.51.100.99', password), 'account')
    t.equal((await guess(app, acme.owner.email, '203.0.113.5', password)).statusCode, 200, 'its own address still can')
    const rival = await createTenant(app, 'rival')
    t.equal((await guess(app, rival.owner.email, '198.51.100.1', password)).statusCode, 200, 'other accounts can')
    // the known address has a limit of its own
    const own = []
    for (let count = 0; count < 12; count++) own.push((await guess(app, acme.owner.email, '203.0.113.5')).statusCode)
    t.equal(own.at(-1), 429)
  })
  t.test('tells the same of an account that is not there', async (t) => {
    const app = await startApp(t, limit)
    const acme = await createTenant(app, 'acme')
    const run = async (email: string, net: string) => {
      const seen = []
      for (let count = 1; count <= 12; count++) {
        const reply = await guess(app, email, `${net}.${count}`)
        seen.push([reply.statusCode, String(reply.headers.ratelimit).replaceAll(/t=\d+/g, 't')])
      }
      return seen
    }
    t.strictSame(await run('nobody@acme.example', '198.51.100'), await run(acme.owner.email, '192.0.2'))
  })
  t.test('within one IPv6 network, however it is written', async (t) => {
    const app = await startApp(t, limit)
    const addresses = [
      '2001:db8:1:2::1',
      '2001:DB8:1:2::2',
      '2001:0db8:0001:0002:0000:0000:0000:0003',
      '2001:db8:1:2:ffff:ffff:ffff:ffff',
      '2001:db8:1:2:0:0:192.0.2.1'
    ]
    for (let count = 0; count < 10; count++) {
      const ip = addresses[count % addresses.length] as string
      t.equal((await forge(app, ip)).statusCode, 401, ip)
    }
    refused(t, await forge(app, '2001:db8:1:2:aaaa::1'), 'address')
    t.equal((await forge(app, '2001:db8:1:3::1')).statusCode, 401, 'the next network')
    for (let count = 0; count < 10; count++) {
      await forge(app, count % 2 ? '::ffff:192.0.2.7' : '192.0.2.7')
    }
    refused(t, await forge(app, '192.0.2.7'), 'address')
    refused(t, await forge(app, '::ffff:192.0.2.7'), 'address')
  })
  t.test("the person's own IPv6 network is known, whichever address of it a device has today", async (t) => {
    const app = await startApp(t, limit)
    const acme = await createTenant(app, 'acme')
    t.equal((await guess(app, acme.owner.email, '2001:db8:7:7::1', password)).statusCode, 200)
    for (let count = 1; count <= 12; count++) await guess(app, acme.owner.email, `198.51.100.${count}`)
    t.equal((await guess(app, acme.owner.email, '198.51.100.50', password)).statusCode, 429)
    t.equal((await guess(app, acme.owner.email, '2001:db8:7:7::1', password)).statusCode, 200)
    t.equal((await guess(app, acme.owner.email, '2001:db8:7:7:1234::9', password)).statusCode, 200)
  })
  t.test('by nothing that a client can write itself', async (t) => {
    const app = await startApp(t, limit)
    const statuses = []
    for (let count = 0; count < 12; count++) {
      const headers = {
        'x-forwarded-for': `198.51.100.${count}`,
        forwarded: `for=198.51.100.${count}`,
        'x-real-ip': `198.51.100.${count}`,
        'true-client-ip': `198.51.100.${count}`,
        'cf-connecting-ip': `198.51.100.${count}`
      }
      const request = post('/auth/refresh', { refresh_token: 'forged' }, headers)
      statuses.push((await send(app, 'localhost', { ...request, remoteAddress: '192.0.2.200' })).statusCode)
    }
    t.strictSame(statuses.slice(-2), [429, 429], 'straight to the server')
    const behind = []
    for (let count = 0; count < 12; count++) {
      // the client's own header stands to the left of the address that the proxy adds
      behind.push((await forge(app, `203.0.113.${count}, 192.0.2.201`)).statusCode)
    }
    t.strictSame(behind.slice(-2), [429, 429], 'through the proxy')
  })
  t.test('of refresh tokens by address, and of genuine ones by session', async (t) => {
    const app = await startApp(t, { ...limit, REFRESH_GRACE: '60' })
    const acme = await createTenant(app, 'acme')
    const refresh = (token: string, ip: string) =>
      send(app, 'localhost', { ...post('/auth/refresh', { refresh_token: token }), ...from(ip) })
    for (let count = 0; count < 10; count++) t.equal((await forge(app, '198.51.100.1')).statusCode, 401)
    refused(t, await forge(app, '198.51.100.1'), 'address')
    const { refresh_token } = acme.owner.tokens
    t.equal(
      (await refresh(refresh_token, '198.51.100.1')).statusCode,
      200,
      'the office of somebody who forges works on'
    )
    for (let count = 1; count < 10; count++)
      t.equal((await refresh(refresh_token, `198.51.100.${count}`)).statusCode, 200)
    refused(t, await refresh(refresh_token, '198.51.100.77'), 'account')
  })
  t.test('of the password of somebody who is signed in, too', async (t) => {
    const app = await startApp(t, limit)
    const acme = await createTenant(app, 'acme')
    const change = (word: string, ip: string) =>
      acme.send({
        ...post('/users/me/password', { current_password: word, new_password: 'an entirely different one' }),
        remoteAddress: '10.0.0.1',
        headers: { 'x-forwarded-for': ip, ...bearer(acme.owner.tokens.access_token) }
      })
    for (let count = 1; count <= 10; count++) {
      t.match((await change(wrong, `198.51.100.${count}`)).json(), { status: 401, code: 'invalid_credentials' })
    }
    refused(t, await change(password, '198.51.100.11'), 'account')
    const removal = await acme.send({ method: 'DELETE', url: me, payload: { password: wrong } })
    t.ok([401, 429].includes(removal.statusCode))
    t.equal((await login(app, acme.owner.email, password, from('198.51.100.30'))).statusCode, 429, 'the same count')
  })
  t.test('200 at once get no further than ten', async (t) => {
    const app = await startApp(t, limit)
    const acme = await createTenant(app, 'acme')
    const replies = await Promise.all(
      Array.from({ length: 200 }, (_, index) => guess(app, acme.owner.email, `198.51.${index % 100}.${index}`))
    )
    const checked = replies.filter(({ statusCode }) => statusCode !== 429)
    t.ok(checked.length <= 10, `${checked.length}`)
  })
  t.test('not at all where it is switched off', async (t) => {
    const app = await startApp(t, { RATE_LIMIT_AUTH: '0' })
    for (let count = 0; count < 15; count++) {
      const reply = await forge(app, '198.51.100.1')
      t.equal(reply.statusCode, 401)
      t.equal(reply.headers.ratelimit, undefined)
    }
  })
  t.test('until the time is over', async (t) => {
    const app = await startApp(t, { ...limit, RATE_LIMIT_AUTH: '2/2s' })
    const acme = await createTenant(app, 'acme')
    for (let count = 0; count < 3; count++) await guess(app, acme.owner.email, '198.51.100.1')
    const reply = await guess(app, acme.owner.email, '198.51.100.1', password)
    t.equal(reply.statusCode, 429)
    await sleep(Number(reply.headers['retry-after']) * 1000 + 50)
    t.equal((await guess(app, acme.owner.email, '198.51.100.1', password)).statusCode, 200)
  })
})
