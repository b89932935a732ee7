import t from 'tap'
import { systemScope } from '../db/gate/gate-query.ts'
import { requestPasswordReset } from '../db/queries/accounts/mails.ts'
import { demandFactor, enroll, forgetUsedCodes, totp } from './factors.ts'
import { allRows, createTenant, mailedTokens, mailsTo, password, post, send, startApp } from './harness.ts'
import { forgot, forgotToken, mailsAreSent, paths, reset, subjectsTo, verifyAll } from './mailed-links.ts'
import { login, me } from './requests.ts'
import { refresh } from './session-requests.ts'

/*
 * What somebody tries with an address that is not theirs, with a stolen password or with a stolen token. Each was
 * possible once, before the product was released.
 */

const fresh = 'an entirely different one'
const from = (ip: string) => ({ remoteAddress: '10.0.0.1', headers: { 'x-forwarded-for': ip } })
const limited = { LOG_LEVEL: 'info', RATE_LIMIT_MAIL_TO: '3/24h', TRUST_PROXY: '10.0.0.0/8' }
const changeEmail = (email: string) => post('/users/me/email', { email, password })

t.test('the mailbox of somebody whose address a stranger registered', async (t) => {
  const app = await startApp(t, limited)
  const victim = (i: number) => `victim+${i}@mail.example`

  t.test('is not filled with notices, changes and confirmations', async (t) => {
    for (const i of [1, 2]) {
      const stranger = await createTenant(app, `stranger-${i}`, victim(i))
      for (let k = 0; k < 4; k++) {
        await stranger.send(changeEmail(`elsewhere-${i}-${k}@mail-${k}.example`))
        await stranger.send(post('/auth/email/resend', {}))
        await mailsAreSent(app)
      }
      const word = { current_password: password, new_password: fresh }
      t.equal((await stranger.send(post('/users/me/password', word))).statusCode, 204)
      await mailsAreSent(app)
    }
    const all = [1, 2].flatMap((i) => mailsTo(app, victim(i)).map(({ subject }) => subject))
    const about = (words: RegExp) => all.filter((subject) => words.test(subject)).length
    t.equal(about(/password was changed/), 0, 'no notice goes to a mailbox that was never proven')
    t.ok(about(/change of your e-mail/) <= 3, `${about(/change of your e-mail/)} about changes`)
    t.ok(about(/Confirm your e-mail address/) <= 6, `${about(/Confirm your e-mail address/)} to confirm it`)
  })

  t.test('and the stranger’s network is no known one of theirs', async (t) => {
    const here = { ...post('/auth/login', { email: victim(1), password: fresh }), ...from('198.51.100.7') }
    t.equal((await send(app, 'localhost', here)).statusCode, 200)
    for (let i = 0; i < 6; i++) {
      await forgot(app, victim(1), from('198.51.100.7'))
      await mailsAreSent(app)
    }
    t.equal(mailedTokens(app, victim(1), paths.reset).length, 3)
  })

  t.test('is theirs again after a reset, whatever factor the stranger set up', async (t) => {
    const stranger = await createTenant(app, 'taken', 'owner@taken.example')
    await enroll(app, stranger)
    t.match((await login(app, 'owner@taken.example', password)).json(), { code: 'mfa_required' })
    t.equal((await reset(app, await forgotToken(app, 'owner@taken.example'), fresh)).statusCode, 204)
    t.equal((await login(app, 'owner@taken.example', fresh)).statusCode, 200)
    const proven = await createTenant(app, 'proven', 'owner@proven.example')
    await verifyAll(app)
    await enroll(app, proven)
    t.equal((await reset(app, await forgotToken(app, 'owner@proven.example'), fresh)).statusCode, 204)
    t.match((await login(app, 'owner@proven.example', fresh)).json(), { code: 'mfa_required' }, 'a proven one keeps it')
  })
})

t.test('the recovery of an honest owner', async (t) => {
  const app = await startApp(t, limited)
  const acme = await createTenant(app, 'acme')
  const { email } = acme.owner
  await verifyAll(app)
  await send(app, 'localhost', { ...post('/auth/login', { email, password }), ...from('203.0.113.5') })
  for (let i = 1; i <= 3; i++) {
    await forgot(app, email, from(`198.51.100.${i}`))
    await mailsAreSent(app)
  }

  t.test('does not depend on who asked just before', async (t) => {
    await Promise.all([forgot(app, email, from('198.51.100.9')), forgot(app, email, from('203.0.113.5'))])
    await mailsAreSent(app)
    t.equal(mailedTokens(app, email, paths.reset).length, 4)
  })

  t.test('does not depend on them when an operator asks', async (t) => {
    const detail = '{"by": "operator"}'
    await app.gate.query(systemScope, requestPasswordReset, { email, mailbox: email, tenant_id: null, detail })
    await mailsAreSent(app)
    t.equal(mailedTokens(app, email, paths.reset).length, 5)
    const text = `select detail, ip from audit_events where action = 'user.password_reset_requested' and detail ->> 'by' = 'operator'`
    t.strictSame(await allRows(app.database, text), [{ detail: { by: 'operator' }, ip: null }])
  })

  t.test('does not end because they ask again while the mail server is away', async (t) => {
    await allRows(
      app.database,
      "insert into account_mails (kind, address, mailbox, attempts, due_at, asked_by) values ('reset', 'x@y.example', 'x@y.example', 4, now() + interval '9 hours', '{\"ip\": \"203.0.113.9\"}')"
    )
    await forgot(app, 'x@y.example', from('203.0.113.9'))
    const [row] = await allRows(app.database, "select attempts from account_mails where address = 'x@y.example'")
    t.strictSame(row, { attempts: 0 })
  })
})

t.test('a change of the address', async (t) => {
  const app = await startApp(t, limited)
  const acme = await createTenant(app, 'acme')
  const gone = await createTenant(app, 'gone')
  const taken = await createTenant(app, 'taken')
  await verifyAll(app)
  await allRows(app.database, `update users set disabled_at = now() where id = '${gone.owner.id}'`)
  const answers = async (email: string) => {
    const statuses = []
    for (let i = 0; i < 5; i++) {
      statuses.push((await acme.send(changeEmail(email))).statusCode)
      await mailsAreSent(app)
    }
    return statuses
  }

  t.test('is limited alike for an address of nobody, of somebody and of somebody disabled', async (t) => {
    const expected = [202, 202, 202, 429, 429]
    t.strictSame(await answers('nobody@new.example'), expected)
    t.strictSame(await answers(taken.owner.email), expected)
    t.strictSame(await answers(gone.owner.email), expected)
  })

  t.test('stays counted when the account ends', async (t) => {
    const brief = await createTenant(app, 'brief')
    for (let i = 0; i < 3; i++) {
      t.equal((await brief.send(changeEmail('box@counted.example'))).statusCode, 202)
      await mailsAreSent(app)
    }
    await allRows(app.database, `update memberships set role = 'viewer' where user_id = '${brief.owner.id}'`)
    t.equal((await brief.send({ method: 'DELETE', url: me, payload: { password } })).statusCode, 204)
    t.equal((await acme.send(changeEmail('box@counted.example'))).statusCode, 429)
  })
})

t.test('a second factor', async (t) => {
  const app = await startApp(t, { LOG_LEVEL: 'info' })
  const acme = await createTenant(app, 'acme')
  await verifyAll(app)
  const before = await acme.signIn()
  const authenticator = await enroll(app, acme)
  const { id, email } = acme.owner
  const session = await acme.signIn().then((reply) => reply as unknown as { mfa_token: string })
  const failures = async () =>
    (await allRows(app.database, `select failures from second_factors where user_id = '${id}'`))[0].failures

  t.test('takes codes as apps show them, with a blank', async (t) => {
    const code = authenticator.code().replace(/^.../, '$& ')
    const payload = { mfa_token: session.mfa_token, code }
    t.equal((await send(app, 'localhost', post('/auth/mfa', payload))).statusCode, 200)
    await forgetUsedCodes(app, id)
  })

  t.test('forgets the wrong codes of a thief when the owner sets a new password', async (t) => {
    for (let i = 0; i < 3; i++) {
      await acme.send({ method: 'DELETE', url: totp, payload: { code: '000000' } })
    }
    t.equal(await failures(), 3)
    const word = { current_password: password, new_password: fresh }
    t.equal((await acme.send(post('/users/me/password', word))).statusCode, 204)
    t.equal(await failures(), 0)
    await mailsAreSent(app)
    t.ok(subjectsTo(app, email).includes('Your password was changed'))
  })

  t.test('that is demanded hides no refresh token that is used twice', async (t) => {
    t.match((await refresh(app, before.refresh_token)).json(), { code: 'session_revoked' })
    const rival = await createTenant(app, 'rival')
    const stale = rival.owner.tokens.refresh_token
    t.equal((await refresh(app, stale)).statusCode, 200)
    t.equal((await refresh(app, (await refresh(app, stale)).json().refresh_token)).statusCode, 200)
    await demandFactor(app, rival.id)
    t.match((await refresh(app, stale)).json(), { code: 'refresh_token_reused' })
  })

  t.test('that a switch lacks is no sign that somebody has the password', async (t) => {
    const home = await createTenant(app, 'home', 'p@home.example')
    const away = await createTenant(app, 'away')
    await allRows(
      app.database,
      `insert into memberships (tenant_id, user_id, role) values ('${away.id}', '${home.owner.id}', 'viewer')`
    )
    await demandFactor(app, away.id)
    const switched = await send(app, 'localhost', {
      ...post('/auth/switch', { tenant: 'away' }),
      headers: { authorization: `Bearer ${home.owner.tokens.access_token}` }
    })
    t.match(switched.json(), { code: 'mfa_required' })
    const challenged = `select from audit_events where action = 'session.challenged' and tenant_id = '${away.id}'`
    t.equal((await allRows(app.database, challenged)).length, 0)
  })
})
