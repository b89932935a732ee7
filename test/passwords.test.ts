import { availableParallelism } from 'node:os'
import { setTimeout as sleep } from 'node:timers/promises'
import argon2 from 'argon2'
import t, { type Test } from 'tap'
import { buildApp } from '../src/app.ts'
import { createKeyRing } from '../src/auth/keys.ts'
import { createPasswords, parameters } from '../src/auth/passwords.ts'
import { readConfig } from '../src/config/config.ts'
import { Problem } from '../src/http/problems.ts'
import { createBoundedQueue, QueueFull } from '../src/limits/bounded-queue.ts'
import {
  addMember,
  allRows,
  asOwner,
  createTenant,
  createTestDatabase,
  password,
  post,
  type Reply,
  send,
  startApp,
  type Tenant,
  type TestApp,
  type Tokens,
  testEnvironment
} from './harness.ts'
import { stopwatch } from './machine.ts'
import { bearer, me } from './requests.ts'
import { fingerprint } from './tokens.ts'

// bounded in time: that signing in takes the same time for all

const login = (app: TestApp, email: string, word: unknown, options: object = {}): Promise<Reply> =>
  send(app, 'localhost', { ...post('/auth/login', { email, password: word }), ...options })

function register(app: TestApp, word: unknown, slug: string, change: object = {}): Promise<Reply> {
  const body = { tenant: { name: 'An agency', slug }, name: 'Ada', email: `${slug}@agency.example`, password: word }
  return send(app, 'localhost', post('/auth/register', { ...body, ...change }))
}

type Stored = { password_hash: string; pepper_id: string; password_version: number }

async function storedOf(app: TestApp, email: string): Promise<Stored> {
  const [row] = await allRows(
    app.database,
    'select password_hash, pepper_id, password_version from users where email = $1',
    [email]
  )
  return row as Stored
}

function setUser(app: TestApp, tenant: Tenant, assignments: string, values: unknown[] = []): Promise<void> {
  return asOwner(app.database, tenant.id, tenant.owner.id, [
    [`update users set ${assignments} where id = '${tenant.owner.id}'`, values]
  ])
}

t.test('a new password', async (t) => {
  const app = await startApp(t)
  const acme = await createTenant(app, 'acme')
  let count = 0
  const refused = async (t: Test, word: unknown, change: object = {}, message = String(word).slice(0, 30)) => {
    const reply = await register(app, word, `refused-${++count}`, change)
    t.match(reply.json(), { status: 400, code: 'validation_failed', errors: [{ path: '/body/password' }] }, message)
  }
  const accepted = async (t: Test, word: string, message = word.slice(0, 30)) => {
    const slug = `accepted-${++count}`
    t.equal((await register(app, word, slug)).statusCode, 201, message)
    t.equal((await login(app, `${slug}@agency.example`, word)).statusCode, 200, message)
    return `${slug}@agency.example`
  }

  t.test('has 12 to 128 characters', async (t) => {
    await refused(t, '')
    await refused(t, 'elevenchars')
    await refused(t, `${'x9'.repeat(64)}x`)
    await refused(t, 'x9'.repeat(512))
    await refused(t, 'x9'.repeat(513), {}, 'over 1,024')
    await refused(t, null)
    await refused(t, 123456789012)
    await refused(t, ['correct horse battery'])
    await accepted(t, 'twelve chars')
    await accepted(t, 'x9'.repeat(32))
    await accepted(t, 'x9'.repeat(64))
  })
  t.test('is counted in characters as people see them, after NFKC', async (t) => {
    await refused(t, '🦊'.repeat(11))
    await accepted(t, '🦊🐻'.repeat(6))
    await refused(t, 'e\u0301'.repeat(11), {}, '22 code points that are 11 characters')
    await accepted(t, 'e\u0301a'.repeat(6))
    await accepted(t, 'ﬁ'.repeat(6), '6 ligatures that are 12 letters')
    await accepted(t, '🦊'.repeat(128), '512 bytes')
  })
  t.test('may be made of anything', async (t) => {
    for (const word of [
      '            x',
      'no digits and no capitals',
      '𝕬𝖇𝖈 любой пароль 密码',
      '"\'\\;--<>&%00{}[]',
      'nul\0nul\0nul\0nul'
    ]) {
      await accepted(t, word, JSON.stringify(word))
    }
  })
  t.test('is the same in each spelling of the same text', async (t) => {
    const composed = 'Ångström café à'
    const email = await accepted(t, composed.normalize('NFC'))
    for (const form of ['NFD', 'NFKD', 'NFKC'] as const) {
      t.equal((await login(app, email, composed.normalize(form))).statusCode, 200, form)
    }
    t.equal((await login(app, email, 'Angstrom cafe a')).statusCode, 401, 'but not without its accents')
    const full = await accepted(t, 'ｆｕｌｌ ｗｉｄｔｈ ｗｏｒｄ')
    t.equal((await login(app, full, 'full width word')).statusCode, 200)
  })
  t.test('counts to its last byte', async (t) => {
    const long = `${'correct horse battery '.repeat(3)}staple and som`
    t.equal(Buffer.byteLength(long), 80)
    const email = await accepted(t, long)
    for (const [word, name] of [
      [long.slice(0, 72), 'the first 72 bytes'],
      [long.slice(0, 79), 'all but the last'],
      [`${long} `, 'a space after'],
      [` ${long}`, 'a space before'],
      [long.toUpperCase(), 'another case'],
      [`${long}\0`, 'a NUL after']
    ] as const) {
      t.match((await login(app, email, word)).json(), { status: 401, code: 'invalid_credentials' }, name)
    }
    const zero = await accepted(t, 'before it\0and after')
    for (const word of ['before it', 'before it\0', 'before it\0AND AFTER']) {
      t.equal((await login(app, zero, word)).statusCode, 401, JSON.stringify(word))
    }
  })
  t.test('is none of the commonest, in whatever spelling', async (t) => {
    for (const word of [
      'passwordpassword',
      'qwerty123456',
      '123456789012',
      'administrator',
      '1Q2W3E4R5T6Y',
      'PASSWORD1234',
      'ｐａｓｓｗｏｒｄ１２３４'
    ]) {
      await refused(t, word)
    }
  })
  t.test("is not one's address or name", async (t) => {
    await refused(t, 'somebody@agency.example', { email: 'somebody@agency.example' })
    await refused(t, 'Somebody@Agency.Example', { email: 'somebody@agency.example' })
    await refused(t, 'Ada Augusta Lovelace', { name: 'Ada Augusta Lovelace' })
    await refused(t, 'the agency of ada', { tenant: { name: 'The Agency of Ada', slug: 'ada' } })
  })
  t.test('that is refused leaves nothing, and is not repeated in the answer', async (t) => {
    const reply = await register(app, 'qwerty123456', 'left-behind')
    t.notOk(reply.body.includes('qwerty123456'))
    t.equal((await allRows(app.database, "select from users where email = 'left-behind@agency.example'")).length, 0)
    t.equal((await send(app, 'left-behind.localhost', me)).json().code, 'tenant_not_found')
  })
  t.test('is held to the same rules when it is changed', async (t) => {
    const change = (word: unknown) =>
      acme.send(post('/users/me/password', { current_password: password, new_password: word }))
    for (const word of [
      'elevenchars',
      'x'.repeat(129),
      'passwordpassword',
      acme.owner.email,
      acme.owner.email.toUpperCase(),
      password
    ]) {
      t.match((await change(word)).json(), { status: 400, errors: [{ path: '/body/new_password' }] }, word.slice(0, 30))
    }
    t.equal((await login(app, acme.owner.email, password)).statusCode, 200)
  })
  t.test("is not one's name when it is changed either", async (t) => {
    const reply = await acme.send(
      post('/users/me/password', { current_password: password, new_password: 'Owner of acme' })
    )
    t.equal(reply.statusCode, 400)
    t.match(reply.body, '"path":"/body/new_password"')
  })
  t.test('has the least length that is configured, and no common one gets by', async (t) => {
    const short = await startApp(t, { PASSWORD_MIN_LENGTH: '8' })
    t.equal((await register(short, 'sevench', 'seven')).statusCode, 400)
    for (const word of ['password', 'iloveyou', 'Sunshine', '12345678', 'trustno1']) {
      t.equal((await register(short, word, 'common')).statusCode, 400, word)
    }
    t.equal((await register(short, 'v7%kQ!2z', 'eight')).statusCode, 201)
  })
})

t.test('signing in takes any password of 1 to 1,024 bytes, and hashes no other', async (t) => {
  const app = await startApp(t)
  const acme = await createTenant(app, 'acme')
  for (const word of ['x', 'x'.repeat(1024), '🦊'.repeat(256), '\0', 'é'.repeat(512)]) {
    t.match((await login(app, acme.owner.email, word)).json(), { status: 401, code: 'invalid_credentials' })
  }
  for (const word of ['', 'x'.repeat(1025), '🦊'.repeat(257), 'é'.repeat(513), 'x'.repeat(60_000)]) {
    const elapsed = stopwatch()
    const reply = await login(app, acme.owner.email, word)
    t.match(reply.json(), { status: 400, code: 'validation_failed', errors: [{ path: '/body/password' }] })
    t.ok(elapsed() < 1000)
  }
  for (const word of [null, 1, true, {}, ['x']]) t.equal((await login(app, acme.owner.email, word)).statusCode, 400)
  t.equal((await login(app, acme.owner.email.toUpperCase(), password)).statusCode, 200, 'an address in any case')
})

t.test('what is stored', async (t) => {
  const database = await createTestDatabase(t)
  const app = await startApp(t, { PASSWORD_PEPPER: 'the old pepper' }, database)
  const acme = await createTenant(app, 'acme')
  const rival = await createTenant(app, 'rival')
  const { email } = acme.owner
  const before = await storedOf(app, email)

  await t.test('is argon2id of the current cost, salted and peppered', async (t) => {
    const [empty, name, version, costs, salt = '', hash = '', ...rest] = before.password_hash.split('$')
    t.strictSame([empty, name, version, rest], ['', 'argon2id', 'v=19', []])
    const { m, t: time, p } = costsOf(costs as string)
    t.ok(Number(m) >= 19_456, 'm')
    t.ok(Number(time) >= 2, 't')
    t.equal(p, '1')
    t.ok(Buffer.from(salt, 'base64').length >= 16, 'the salt')
    t.ok(Buffer.from(hash, 'base64').length >= 32, 'the hash')
    t.not(
      (await storedOf(app, rival.owner.email)).password_hash,
      before.password_hash,
      'the same password, another hash'
    )
    t.notOk(JSON.stringify(before).includes('the old pepper'))
    t.equal(await argon2.verify(before.password_hash, password), false, 'useless without the pepper')
    t.equal(await argon2.verify(before.password_hash, password, { secret: Buffer.from('the old pepper') }), true)
  })
  await t.test('stays as it is when nothing has changed', async (t) => {
    t.equal((await login(app, email, password)).statusCode, 200)
    t.strictSame(await storedOf(app, email), before)
  })
  await t.test('is made anew at sign-in when the cost has risen', async (t) => {
    const weak = await argon2.hash(password, {
      ...{ type: argon2.argon2id, memoryCost: 8192, timeCost: 1, parallelism: 1 },
      secret: Buffer.from('the old pepper')
    })
    await setUser(app, acme, 'password_hash = $1', [weak])
    t.equal((await login(app, email, 'not the password')).statusCode, 401)
    t.equal((await storedOf(app, email)).password_hash, weak, 'a wrong password changes nothing')
    t.equal((await login(app, email, password)).statusCode, 200)
    const after = await storedOf(app, email)
    const { memoryCost, timeCost } = parameters
    t.strictSame(costsOf(after.password_hash.split('$')[3] as string), { m: `${memoryCost}`, t: `${timeCost}`, p: '1' })
    t.equal(after.password_version, before.password_version)
    t.equal((await login(app, email, password)).statusCode, 200)
    t.equal((await acme.send(me)).statusCode, 200, 'and ends no session')
  })
  await t.test('moves to the first pepper of the list at sign-in, and not before it is the first', async (t) => {
    const old = await storedOf(app, email)
    const appended = await startApp(t, { PASSWORD_PEPPER: 'the old pepper, the new pepper' }, database)
    t.equal((await login(appended, email, password)).statusCode, 200)
    t.strictSame(await storedOf(app, email), old)
    const moved = await startApp(t, { PASSWORD_PEPPER: 'the new pepper,the old pepper' }, database)
    t.equal((await login(moved, email, password)).statusCode, 200)
    const after = await storedOf(app, email)
    t.not(after.pepper_id, old.pepper_id)
    t.equal(await argon2.verify(after.password_hash, password, { secret: Buffer.from('the new pepper') }), true)
    t.equal((await login(appended, email, password)).statusCode, 200, 'a replica of before can read it')
    t.equal((await storedOf(app, email)).pepper_id, old.pepper_id, 'and puts its own first')
    t.equal((await login(moved, email, password)).statusCode, 200)
    t.equal((await storedOf(app, email)).pepper_id, after.pepper_id)
  })
  await t.test('stops a start without its pepper, which is named and not told', async (t) => {
    const start = (peppers: string) => {
      const started = buildApp(readConfig(testEnvironment(database, { PASSWORD_PEPPER: peppers })), {
        logStream: { write() {} }
      })
      t.teardown(() => started.close())
      return Promise.resolve(started.ready())
    }
    const { pepper_id } = await storedOf(app, rival.owner.email)
    // the rival has not signed in since the pepper was moved
    const err = await start('the new pepper').then(
      () => undefined,
      (reason: Error) => reason
    )
    t.match(err?.message, /PASSWORD_PEPPER/)
    t.ok(err?.message.includes(pepper_id))
    t.notOk(err?.message.includes('the new pepper') || err?.message.includes('the old pepper'))
    await t.rejects(start('another pepper'))
    const both = await startApp(t, { PASSWORD_PEPPER: 'the new pepper,the old pepper' }, database)
    t.equal((await login(both, rival.owner.email, password)).statusCode, 200)
    const alone = await startApp(t, { PASSWORD_PEPPER: 'the new pepper' }, database)
    t.equal(
      (await login(alone, rival.owner.email, password)).statusCode,
      200,
      'once all have moved, the old one can go'
    )
    t.equal((await login(alone, email, password)).statusCode, 200)
  })
})

t.test('who can not sign in is told the same, in the same time', async (t) => {
  const app = await startApp(t)
  const [acme, disabled, foreign] = (await Promise.all(
    ['acme', 'disabled', 'foreign'].map((slug) => createTenant(app, slug))
  )) as [Tenant, Tenant, Tenant]
  await addMember(app, acme, disabled.owner.id, 'member')
  await addMember(app, acme, foreign.owner.id, 'member')
  await setUser(app, disabled, 'disabled_at = now()')
  await setUser(app, foreign, 'password_hash = null, pepper_id = null')
  const stranger = await createTenant(app, 'stranger')
  const cases = {
    wrong: { email: acme.owner.email, password: 'not the right password' },
    unknown: { email: 'nobody@acme.example', password },
    disabled: { email: disabled.owner.email, password },
    'of another provider only': { email: foreign.owner.email, password }
  }
  const attempt = (body: object) => send(app, acme.host, post('/auth/login', body, { 'x-request-id': 'same' }))
  const reference = fingerprint(await attempt(cases.wrong))
  t.match(reference, { status: 401, body: { code: 'invalid_credentials' } })
  for (const [name, body] of Object.entries(cases)) t.strictSame(fingerprint(await attempt(body)), reference, name)
  t.strictSame(
    fingerprint(await attempt({ email: stranger.owner.email, password })),
    reference,
    'a stranger to the agency'
  )

  const audited = await allRows(
    app.database,
    "select detail from audit_events where tenant_id = $1 and action = 'session.refused'",
    [acme.id]
  )
  t.equal(audited.length, 6, 'and each is recorded')

  const rounds = 50
  const times = new Map<string, number[]>(Object.keys(cases).map((name) => [name, []]))
  for (let round = 0; round < rounds; round++) {
    for (const [name, body] of Object.entries(cases)) {
      const startedAt = performance.now()
      await attempt(body)
      times.get(name)?.push(performance.now() - startedAt)
    }
  }
  const typical = quickest(times.get('wrong') as number[])
  // a missing hash would be most of it; a fifth, or 5 ms, is the noise of a machine that does other things too
  const tolerance = Math.max(5, typical / 5)
  for (const [name, each] of times) {
    const difference = quickest(each) - typical
    t.ok(Math.abs(difference) < tolerance, `${name}: ${difference.toFixed(1)} of ${typical.toFixed(1)} ms`)
  }
})

t.test('changing the password', async (t) => {
  const app = await startApp(t)
  const acme = await createTenant(app, 'acme')
  const rival = await createTenant(app, 'rival')
  await addMember(app, rival, acme.owner.id, 'member')
  const newPassword = 'an entirely different one'
  const change = (body: object) => acme.send(post('/users/me/password', body))

  t.test('demands the present one', async (t) => {
    const before = await storedOf(app, acme.owner.email)
    const reply = await change({ current_password: 'not the right password', new_password: newPassword })
    t.match(reply.json(), { status: 401, code: 'invalid_credentials' })
    for (const body of [
      {},
      { new_password: newPassword },
      { current_password: password },
      { current_password: password, new_password: newPassword, user_id: rival.owner.id }
    ]) {
      t.match((await change(body)).json(), { status: 400, code: 'validation_failed' })
    }
    t.match((await acme.anonymous(post('/users/me/password', {}))).json(), { code: 'unauthenticated' })
    t.strictSame(await storedOf(app, acme.owner.email), before)
  })
  t.test('ends every other session in every agency, and is recorded', async (t) => {
    const other = await acme.signIn()
    const visit: Tokens = (await acme.send(post('/auth/switch', { tenant: 'rival' }))).json()
    const reply = await change({ current_password: password, new_password: newPassword })
    t.equal(reply.statusCode, 204)
    t.equal((await acme.send(me)).statusCode, 200, 'this one goes on')
    const refreshed = await send(
      app,
      'localhost',
      post('/auth/refresh', { refresh_token: acme.owner.tokens.refresh_token })
    )
    t.equal(refreshed.statusCode, 200)
    for (const tokens of [other, visit]) {
      const asked = await send(app, 'localhost', { url: me, headers: bearer(tokens.access_token) })
      t.match(asked.json(), { status: 401, code: 'session_revoked' })
      const renewed = await send(app, 'localhost', post('/auth/refresh', { refresh_token: tokens.refresh_token }))
      t.match(renewed.json(), { status: 401, code: 'session_revoked' })
    }
    t.equal((await rival.send(me)).statusCode, 200, "nobody else's")
    t.equal((await login(app, acme.owner.email, password)).statusCode, 401)
    t.equal((await login(app, acme.owner.email, newPassword)).statusCode, 200)
    const rows = await allRows(app.database, "select * from audit_events where action = 'user.password_changed'")
    t.match(rows, [{ tenant_id: acme.id, actor_id: acme.owner.id, target_id: acme.owner.id, ip: '127.0.0.1' }])
    t.equal(rows.length, 1)
    t.notOk(JSON.stringify(rows).includes(newPassword))
  })
  t.test('at the same time as somebody else does, happens once', async (t) => {
    const words = ['the first of two new ones', 'the second of two new ones']
    const replies = await Promise.all(
      words.map((word) => change({ current_password: newPassword, new_password: word }))
    )
    t.strictSame(replies.map(({ statusCode }) => statusCode).sort(), [204, 401])
    const index = replies.findIndex(({ statusCode }) => statusCode === 204)
    t.equal((await login(app, acme.owner.email, words[index])).statusCode, 200)
    t.equal((await login(app, acme.owner.email, words[1 - index])).statusCode, 401)
  })
  t.test('leaves no session of a sign-in that is under way with the old one', async (t) => {
    const old = 'the race is on, the old one'
    for (let round = 0; round < 3; round++) {
      const word = `the race is on, round ${round}`
      const present = round === 0 ? old : `the race is on, round ${round - 1}`
      if (round === 0) {
        const hash = await argon2.hash(old, { ...parameters, secret: Buffer.from('a pepper of the tests') })
        await setUser(app, acme, 'password_hash = $1, password_version = password_version + 1', [hash])
      }
      const change = acme.send(post('/users/me/password', { current_password: present, new_password: word }))
      const signIns = Array.from({ length: 5 }, async (_, index) => {
        await sleep(index * 12)
        return login(app, acme.owner.email, present)
      })
      t.equal((await change).statusCode, 204)
      for (const reply of await Promise.all(signIns)) {
        if (reply.statusCode !== 200) continue
        const renewed = await send(
          app,
          'localhost',
          post('/auth/refresh', { refresh_token: reply.json().refresh_token })
        )
        t.match(renewed.json(), { status: 401, code: 'session_revoked' })
      }
    }
  })
})

t.test('when there is more to hash than can be', async (t) => {
  t.test('a queue runs so many, lets so many wait, and refuses the rest at once', async (t) => {
    const queue = createBoundedQueue(2, 3)
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
    const queue = createBoundedQueue(1, 4)
    const order: string[] = []
    const finish: (() => void)[] = []
    const ask = (party: string, name: string) =>
      queue.run(async () => {
        order.push(name)
        await new Promise<void>((done) => finish.push(done))
      }, party)
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
    const flood = Array.from({ length: 2 * (64 + availableParallelism()) }, () =>
      login(app, acme.owner.email, 'a wrong one')
    )
    await sleep(20)
    const elapsed = stopwatch()
    t.equal((await acme.send(me)).statusCode, 200)
    const waited = elapsed()
    const replies = await Promise.all(flood)
    const count = (status: number) => replies.filter(({ statusCode }) => statusCode === status).length
    t.ok(count(401) >= 64, `${count(401)} were checked`)
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
  /** As the trusted proxy passes it on. */
  const from = (ip: string) => ({ remoteAddress: '10.0.0.1', headers: { 'x-forwarded-for': ip } })
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
    // the known address is limited as well, by itself
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
      // what the client wrote stands to the left of what the proxy saw
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

/** By name: libraries write them in different orders. */
function costsOf(text: string): Record<string, string> {
  return Object.fromEntries(text.split(',').map((each) => each.split('=')))
}

/** What the machine does besides only adds to a time: the quickest quarter shows what something takes. */
function quickest(times: number[]): number {
  const sorted = times.toSorted((a, b) => a - b)
  return sorted[Math.floor(sorted.length / 4)] as number
}
