import { setTimeout as sleep } from 'node:timers/promises'
import argon2 from 'argon2'
import t, { type Test } from 'tap'
import { buildApp } from '../src/app.ts'
import { parameters } from '../src/auth/passwords.ts'
import { readConfig } from '../src/config/config.ts'
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
import { bearer, login, me } from './requests.ts'
import { fingerprint } from './tokens.ts'

function register(app: TestApp, word: unknown, slug: string, change: object = {}): Promise<Reply> {
  const body = { tenant: { name: 'An agency', slug }, name: 'Ada', email: `${slug}@agency.example`, password: word }
  return send(app, 'localhost', post('/auth/register', { ...body, ...change }))
}

/** Counts the passwords that an application compares from now on. Each costs a hash. */
function countComparisons({ passwords }: TestApp): () => number {
  const { verify } = passwords
  let count = 0
  const counting: typeof verify = (...given) => {
    count++
    return verify(...given)
  }
  Object.assign(passwords, { verify: counting })
  return () => count
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
  const compared = countComparisons(app)
  for (const word of ['', 'x'.repeat(1025), '🦊'.repeat(257), 'é'.repeat(513), 'x'.repeat(60_000)]) {
    const reply = await login(app, acme.owner.email, word)
    t.match(reply.json(), { status: 400, code: 'validation_failed', errors: [{ path: '/body/password' }] })
  }
  t.equal(compared(), 0)
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
    // the rival has not signed in since the pepper changed
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

t.test('who can not sign in is told the same, after the same work', async (t) => {
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

  // test/sign-in-timing.test.ts compares the times
  const compared = countComparisons(app)
  for (const [name, body] of Object.entries(cases)) {
    const before = compared()
    await attempt(body)
    t.equal(compared() - before, 1, `${name}: one hash, as where there is a password`)
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

/** The parameters of a hash by name, because libraries write them in different orders. */
function costsOf(text: string): Record<string, string> {
  return Object.fromEntries(text.split(',').map((each) => each.split('=')))
}
