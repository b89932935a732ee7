import t from 'tap'
import { maxWrongCodes } from '../plugins/auth/second-factors.ts'
import { createMfaTokens } from '../src/auth/mfa-tokens.ts'
import { findStep } from '../src/auth/one-time-codes.ts'
import { createKeyRing } from '../src/keys.ts'
import { withClient } from './databases.ts'
import { complete, type Enrolled, enroll, forgetUsedCodes } from './factors.ts'
import {
  allRows,
  createTenant,
  createTestDatabase,
  password,
  post,
  send,
  startApp,
  type Tenant,
  type TestApp
} from './harness.ts'
import { from, login, me } from './requests.ts'
import { singleSecret } from './tokens.ts'

/*
 * What protects a second factor: codes are good once, can't be guessed, and can't be computed from the database.
 */

/** A token as the right password gives it, without the hash of a password. */
function issueToken({ id, owner }: Tenant): string {
  const subject = { tenant_id: id, user_id: owner.id, password_version: 1 }
  return createMfaTokens(createKeyRing([singleSecret], 'mfa token')).issue('sign_in', subject)
}

t.test('guessing', async (t) => {
  const app = await startApp(t, { JWT_SECRET: singleSecret, RATE_LIMIT_AUTH: '10/1m', TRUST_PROXY: '10.0.0.0/8' })
  const acme = await createTenant(app, 'acme')
  const authenticator = await enroll(app, acme)
  const guess = (ip: string, code: string) =>
    send(app, 'localhost', { ...post('/auth/mfa', { mfa_token: issueToken(acme), code }), ...from(ip) })
  const failures = async () =>
    (await allRows(app.database, 'select failures from sign_in_failures where email = $1', [acme.owner.email]))[0]
      ?.failures

  await t.test('is slowed by account, from many addresses and with many tokens', async (t) => {
    const statuses: number[] = []
    for (let count = 1; count <= 14; count++) statuses.push((await guess(`198.51.100.${count}`, '000000')).statusCode)
    t.ok(statuses.filter((status) => status === 401).length <= 10)
    t.strictSame(statuses.slice(-3), [429, 429, 429])
    const denied = await allRows(app.database, "select from audit_events where action = 'session.refused'")
    t.equal(denied.length, statuses.filter((status) => status === 401).length, 'each is in the audit log')
  })
  await t.test('counts with wrong passwords, and the right password alone forgets nothing', async (t) => {
    const other = await startApp(t, { JWT_SECRET: singleSecret }, app.database)
    const before = await failures()
    t.ok(before > 0)
    const { mfa_token } = (await login(other, acme.owner.email, password)).json()
    t.equal(await failures(), before)
    t.match((await complete(other, mfa_token, '000000')).json(), { code: 'invalid_credentials' })
    t.equal(await failures(), before + 1)
    t.equal((await complete(other, mfa_token, authenticator.code())).statusCode, 200)
    t.equal(await failures(), undefined)
  })
  await t.test('has an end, after which only a recovery code is good', async (t) => {
    const other = await startApp(t, { JWT_SECRET: singleSecret }, app.database)
    await forgetUsedCodes(app, acme.owner.id)
    await allRows(app.database, 'update second_factors set failures = $1', [maxWrongCodes])
    const refused = await complete(other, issueToken(acme), authenticator.code())
    t.match(refused.json(), { status: 401, code: 'invalid_credentials', detail: /recovery code/ })
    const [recovery = ''] = authenticator.recovery_codes
    t.equal((await complete(other, issueToken(acme), recovery)).statusCode, 200)
    t.equal(
      (await complete(other, issueToken(acme), authenticator.code())).statusCode,
      200,
      'then codes are good again'
    )
  })
})

/** All rows of all tables, as text. */
async function dump(app: TestApp): Promise<string> {
  const tables = await allRows(
    app.database,
    "select relname as name from pg_class where relkind in ('r', 'p') and relnamespace = 'public'::regnamespace"
  )
  const texts = await Promise.all(tables.map(({ name }) => allRows(app.database, `select t::text from ${name} t`)))
  return texts
    .flat()
    .map(({ t: text }) => text)
    .join('\n')
}

t.test('a copy of the database makes no code', async (t) => {
  const app = await startApp(t, { LOG_LEVEL: 'debug' })
  const acme = await createTenant(app, 'acme')
  const rival = await createTenant(app, 'rival')
  const mine: Enrolled = await enroll(app, acme)
  const theirs = await enroll(app, rival)

  await t.test('for no secret is in it, and none is in the log', async (t) => {
    const rows = await dump(app)
    const log = app.logLines.join('')
    t.match(rows, acme.owner.email, 'the control')
    for (const secret of [mine.secret, ...mine.recovery_codes]) {
      for (const form of [secret, secret.replaceAll('-', ''), Buffer.from(secret).toString('hex')]) {
        t.notOk(rows.includes(form) || log.includes(form))
      }
    }
    const bits = [...mine.secret].map((each) =>
      'ABCDEFGHIJKLMNOPQRSTUVWXYZ234567'.indexOf(each).toString(2).padStart(5, '0')
    )
    const bytes = bits
      .join('')
      .match(/.{8}/g)
      ?.map((byte) => Number.parseInt(byte, 2)) as number[]
    t.equal(bytes.length, 20)
    t.notOk(rows.includes(Buffer.from(bytes).toString('hex')), 'nor its bytes')
  })
  await t.test('and who can write it gives nobody the secret of another', async (t) => {
    await allRows(
      app.database,
      `update second_factors f set secret = g.secret from second_factors g where f.user_id = $1 and g.user_id = $2`,
      [acme.owner.id, rival.owner.id]
    )
    const { mfa_token } = (await login(app, acme.owner.email, password)).json()
    for (const code of [mine.code(), theirs.code()]) {
      t.match((await complete(app, mfa_token, code)).json(), { code: 'invalid_credentials' })
    }
  })
  await t.test('and the server itself sees one person at a time, through its functions', async (t) => {
    await withClient(app.database.app, async (client) => {
      for (const text of ['select from second_factors', 'update users set mfa_enabled_at = null']) {
        t.equal((await client.query(text).catch((err) => err)).code, '42501', text)
      }
      t.equal((await client.query('select from my_factor()')).rowCount, 0, 'of nobody')
      await client.query('begin')
      await client.query("select set_config('app.tenant_id', $1, true), set_config('app.user_id', $2, true)", [
        acme.id,
        rival.owner.id
      ])
      const { rows } = await client.query('select email from my_factor()')
      t.strictSame(rows, [{ email: rival.owner.email }], 'whatever the agency')
      await client.query("select record_my_factor_change('tenant.deleted', null, null)")
      await client.query('commit')
    })
    const forged = await allRows(app.database, "select from audit_events where action = 'tenant.deleted'")
    t.equal(forged.length, 0, 'and records nothing else')
  })
})

t.test('the key of secrets is replaced without a new factor', async (t) => {
  const database = await createTestDatabase(t)
  const [older, newer] = ['the old pepper of second factors', 'the new pepper of second factors']
  const run = (peppers: string) => startApp(t, { PASSWORD_PEPPER: peppers }, database)
  const before = await run(older)
  const acme = await createTenant(before, 'acme')
  const authenticator = await enroll(before, acme)
  const keys = async () => (await allRows(database, 'select key_id from second_factors')).map(({ key_id }) => key_id)
  const [oldKey] = await keys()
  const both = await run(`${newer},${older}`)
  const signIn = async (app: TestApp, code: string) => {
    const { mfa_token } = (await login(app, acme.owner.email, password)).json()
    return complete(app, mfa_token, code)
  }
  t.equal((await signIn(both, authenticator.recovery_codes[0] as string)).statusCode, 200)
  t.strictSame(await keys(), [oldKey], 'a recovery code needs no secret')
  await t.rejects(run(newer), /PASSWORD_PEPPER lacks the pepper of stored second factors/)

  t.equal((await signIn(both, authenticator.code())).statusCode, 200)
  t.not((await keys())[0], oldKey, 'the next code encrypts it anew')
  const after = await run(newer)
  await forgetUsedCodes(after, acme.owner.id)
  const reply = await signIn(after, authenticator.code())
  t.equal(reply.statusCode, 200)
  t.match((await acme.with(reply.json().access_token, me)).json(), { mfa_enabled: true })
  t.equal((await signIn(after, authenticator.recovery_codes[1] as string)).statusCode, 200)
})

t.test('the codes are those of RFC 6238, of this step and of the two beside it', (t) => {
  const secret = Buffer.from('12345678901234567890')
  for (const [at, code] of [
    [59, '287082'],
    [1_111_111_109, '081804'],
    [20_000_000_000, '353130']
  ] as const) {
    const step = Math.floor(at / 30)
    for (const aside of [-30, 0, 30]) t.equal(findStep(secret, code, (at + aside) * 1000), step)
    for (const aside of [-60, 60]) t.equal(findStep(secret, code, (at + aside) * 1000), undefined)
  }
  t.equal(findStep(secret, '287083', 59_000), undefined)
  t.end()
})
