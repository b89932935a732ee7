import t from 'tap'
import {
  addMember,
  allRows,
  createTenant,
  eventually,
  mailedTokens,
  mailsTo,
  password,
  post,
  send,
  startApp,
  startServer,
  type TestApp,
  testEnvironment
} from './harness.ts'
import { forgot, forgotToken, linkMailedBy, mailsAreSent, paths, reset, verify, verifyAll } from './mailed-links.ts'
import { bearer, login, me } from './requests.ts'

/*
 * A forgotten password, and the proof that an address belongs to its account.
 */

const fresh = 'an entirely different one'
const expired = { status: 410, code: 'link_expired' }
const actionsOf = async (app: TestApp, tenantId: string) =>
  (
    await allRows(app.database, "select action from audit_events where tenant_id = $1 and action like 'user.%'", [
      tenantId
    ])
  ).map(({ action }) => action as string)

t.test('a forgotten password', async (t) => {
  const app = await startApp(t, { LOG_LEVEL: 'info', APP_URL: 'https://{slug}.aggios.test' })

  t.test('is replaced by a mail, and everybody who was signed in is out, everywhere', async (t) => {
    const acme = await createTenant(app, 'acme')
    const { email, id } = acme.owner
    await acme.send(post('/tenants', { name: 'Second', slug: 'second' }))
    const second = (await acme.send(post('/auth/switch', { tenant: 'second' }))).json()
    for (let i = 0; i < 2; i++) t.equal((await login(app, email, 'not the right one')).statusCode, 401)

    const asked = await acme.anonymous(post('/auth/password/forgot', { email: email.toUpperCase() }))
    t.equal(asked.statusCode, 202)
    t.strictSame(asked.json(), { status: 'accepted' })
    await mailsAreSent(app)
    const [mail] = mailsTo(app, email).filter(({ text }) => text.includes(paths.reset))
    t.match(mail?.text, 'https://acme.aggios.test/password/reset?token=')
    const token = mailedTokens(app, email, paths.reset)[0]
    const server = await startServer(t, testEnvironment(app.database))
    const elsewhere = () => fetch(server.url + me, { headers: bearer(second.access_token) })
    t.equal((await elsewhere()).status, 200)

    const done = await reset(app, token, fresh)
    t.equal(done.statusCode, 204, done.body)
    t.equal(done.body, '', 'nobody is signed in by it')
    t.match((await acme.send(me)).json(), { status: 401, code: 'session_revoked' })
    await eventually(async () => (await elsewhere()).status === 401, 3000)
    const { refresh_token } = second
    t.equal((await send(app, 'localhost', post('/auth/refresh', { refresh_token }))).statusCode, 401)
    t.equal((await login(app, email, password)).statusCode, 401)
    const again = await login(app, email, fresh)
    t.equal(again.statusCode, 200)
    const headers = bearer(again.json().access_token)
    t.match((await send(app, 'localhost', { url: me, headers })).json(), { id, email_verified: true })
    t.strictSame(await allRows(app.database, 'select from sign_in_failures where email = $1', [email]), [])
    t.ok((await actionsOf(app, acme.id)).includes('user.password_reset_requested'))
    for (const tenant of await allRows(app.database, 'select tenant_id as id from memberships where user_id = $1', [
      id
    ])) {
      t.ok((await actionsOf(app, tenant.id)).includes('user.password_reset'), 'each agency sees it')
    }
    const notice = "select from account_mails where kind = 'password_changed' and sent_at is not null"
    await eventually(async () => (await allRows(app.database, notice)).length === 1)
    server.child.kill('SIGKILL')
  })
  t.test('has one answer, and no mail, for an address that nobody has or that is disabled', async (t) => {
    const gone = await createTenant(app, 'gone')
    await allRows(app.database, `update users set disabled_at = now() where id = '${gone.owner.id}'`)
    const known = await createTenant(app, 'known')
    const answers = []
    for (const email of [known.owner.email, gone.owner.email, 'nobody@gone.example']) {
      const { statusCode, body, headers } = await forgot(app, email)
      answers.push([statusCode, body, Object.keys(headers)])
    }
    t.strictSame(answers[1], answers[0])
    t.strictSame(answers[2], answers[0])
    await mailsAreSent(app)
    t.equal(mailedTokens(app, known.owner.email, paths.reset).length, 1)
    t.equal(mailedTokens(app, gone.owner.email, paths.reset).length, 0)
    t.strictSame(mailsTo(app, 'nobody@gone.example'), [])
    const left = "select from account_mails where address in ('nobody@gone.example', $1) and kind = 'reset'"
    t.strictSame(await allRows(app.database, left, [gone.owner.email]), [], 'and nothing is kept of it')
    t.notOk((await actionsOf(app, gone.id)).includes('user.password_reset_requested'))
  })
  t.test('is how somebody without one sets one', async (t) => {
    const bare = await createTenant(app, 'bare')
    const { email, id } = bare.owner
    await allRows(app.database, `update users set password_hash = null, pepper_id = null where id = '${id}'`)
    t.equal((await login(app, email, password)).statusCode, 401)
    t.equal((await reset(app, await forgotToken(app, email), fresh)).statusCode, 204)
    t.equal((await login(app, email, fresh)).statusCode, 200)
  })
  t.test('can be asked for by somebody in no agency, and the link then leads above all of them', async (t) => {
    const left = await createTenant(app, 'left')
    await allRows(app.database, `delete from memberships where user_id = '${left.owner.id}'`)
    const token = await forgotToken(app, left.owner.email)
    const [mail] = mailsTo(app, left.owner.email).filter(({ text }) => text.includes(paths.reset))
    t.match(mail?.text, 'https://aggios.test/password/reset?token=')
    t.equal((await reset(app, token, fresh)).statusCode, 204)
    t.match((await login(app, left.owner.email, fresh)).json(), { code: 'not_a_member' })
  })
  t.test('leads to an agency of the person, and never to a host that a request names', async (t) => {
    const one = await createTenant(app, 'hostone')
    const two = await createTenant(app, 'hosttwo')
    const { email, id } = one.owner
    const hostile = {
      'x-forwarded-host': 'evil.example',
      'x-forwarded-proto': 'javascript',
      'x-forwarded-port': '666',
      'x-forwarded-prefix': '/evil',
      'x-original-host': 'evil.example',
      forwarded: 'host=evil.example;proto=javascript'
    }
    const mailOf = async (host: string) => {
      const before = mailsTo(app, email).length
      const asked = await send(app, host, post('/auth/password/forgot', { email }, hostile))
      await mailsAreSent(app)
      return { status: asked.statusCode, mail: mailsTo(app, email)[before] }
    }
    const foreign = await mailOf('hosttwo.localhost')
    t.match(foreign.mail?.text, 'https://hostone.aggios.test/password/reset', 'not a member there')
    await addMember(app, two, id, 'viewer')
    const member = await mailOf('hosttwo.localhost')
    t.match(member.mail?.text, 'https://hosttwo.aggios.test/password/reset')
    const general = await mailOf('api.localhost')
    t.match(general.mail?.text, 'https://hostone.aggios.test/password/reset', 'the one used last')
    for (const { mail } of [foreign, member, general]) t.notMatch(JSON.stringify(mail), /evil|javascript|666/)
    t.equal((await mailOf('evil.example')).status, 421)
  })
  t.test('leads to a mail in the language of the agency', async (t) => {
    const sul = await createTenant(app, 'sul')
    const change = { name: 'Café <b>& Cia</b>', settings: { locale: 'pt-BR' } }
    await sul.send({ method: 'PATCH', url: '/api/v1/tenant', payload: change })
    await forgotToken(app, sul.owner.email)
    const mail = mailsTo(app, sul.owner.email).at(-1)
    t.equal(mail?.subject, 'Defina uma nova senha para Café & Cia')
    t.match(mail?.text, 'Definir uma nova senha:\n')
  })
})

t.test('a token of a mail', async (t) => {
  const app = await startApp(t, { LOG_LEVEL: 'info' })
  const acme = await createTenant(app, 'acme')
  const rival = await createTenant(app, 'rival')
  const { email } = acme.owner

  t.test('is good once, whoever comes first, and its refusal has one text', async (t) => {
    const token = await forgotToken(app, email)
    const replies = await Promise.all(Array.from({ length: 10 }, () => reset(app, token, fresh)))
    t.equal(replies.filter(({ statusCode }) => statusCode === 204).length, 1)
    const refusals = replies.filter(({ statusCode }) => statusCode !== 204)
    for (const refusal of [...refusals, await reset(app, 'x', fresh), await reset(app, `${token}A`, fresh)]) {
      const { request_id: _, ...document } = refusal.json()
      t.strictSame(document, {
        type: '/api/v1/problems/link_expired',
        title: 'The link is no longer good',
        ...expired
      })
    }
  })
  t.test('stays good when the password is refused', async (t) => {
    const token = await forgotToken(app, email)
    for (const word of ['short', email, `Owner of acme`]) {
      t.match((await reset(app, token, word)).json(), { status: 400, errors: [{ path: '/body/password' }] }, word)
    }
    t.equal((await reset(app, token, password)).statusCode, 204)
  })
  t.test('is dead by a newer one, by time, and by any change of what it was made for', async (t) => {
    const user = `where id = '${acme.owner.id}'`
    async function signedIn() {
      let headers = {}
      // the process may not know yet that an account is no longer disabled
      await eventually(async () => {
        headers = bearer((await login(app, email, password)).json().access_token)
        return (await send(app, 'localhost', { url: me, headers })).statusCode === 200
      })
      return headers
    }
    const deaths: Record<string, () => Promise<unknown>> = {
      'a newer one': () => forgotToken(app, email),
      'an hour': () => allRows(app.database, "update account_links set expires_at = now() where purpose = 'reset'"),
      'a change of the password': async () => {
        const body = { current_password: password, new_password: fresh }
        const headers = await signedIn()
        const changed = await send(app, 'localhost', post('/users/me/password', body, headers))
        t.equal(changed.statusCode, 204)
        const back = { current_password: fresh, new_password: password }
        t.equal((await send(app, 'localhost', post('/users/me/password', back, headers))).statusCode, 204)
      },
      'the end of the account': async () => {
        await allRows(app.database, `update users set disabled_at = now() ${user}`)
        await allRows(app.database, `update users set disabled_at = null ${user}`)
      },
      'a change of the address': () => allRows(app.database, `update users set email = 'moved@acme.example' ${user}`)
    }
    for (const [reason, kill] of Object.entries(deaths)) {
      const token = await forgotToken(app, email)
      const verification = await linkMailedBy(app, email, 'verify', async () => {
        await allRows(app.database, `update users set email_verified_at = null ${user}`)
        const headers = await signedIn()
        t.equal((await send(app, 'localhost', post('/auth/email/resend', undefined, headers))).statusCode, 202)
      })
      await kill()
      t.match((await reset(app, token, fresh)).json(), expired, reason)
      if (!['a newer one', 'an hour'].includes(reason))
        t.match((await verify(app, verification)).json(), expired, reason)
    }
    await allRows(app.database, `update users set email = '${email}' ${user}`)
    t.equal((await login(app, email, password)).statusCode, 200, 'none of them set a password')
  })
  t.test('is for one purpose, and no bearer or other token', async (t) => {
    const purposes = ['reset', 'verification', 'change_from', 'change_to', 'invitation'] as const
    const make = async () => {
      await forgotToken(app, rival.owner.email)
      const [link] = await allRows(
        app.database,
        "select id from account_links where user_id = $1 and purpose = 'reset'",
        [rival.owner.id]
      )
      return link?.id as string
    }
    const id = await make()
    const verified = 'select email_verified_at from users where id = $1'
    const before = await allRows(app.database, verified, [rival.owner.id])
    for (const purpose of purposes) {
      const token = app.oneTimeTokens.issue(purpose, { tenant_id: rival.id, id, generation: 1 })
      t.match((await verify(app, token)).json(), expired, `${purpose} to verify`)
      if (purpose !== 'reset') t.match((await reset(app, token, fresh)).json(), expired, `${purpose} to reset`)
      if (purpose !== 'invitation') {
        t.equal((await send(app, 'localhost', post('/invitations/accept', { token }))).statusCode, 404, purpose)
      }
      t.equal((await send(app, 'localhost', { url: me, headers: bearer(token) })).statusCode, 401)
      t.equal((await send(app, 'localhost', post('/auth/refresh', { refresh_token: token }))).statusCode, 401)
    }
    t.strictSame(await allRows(app.database, verified, [rival.owner.id]), before)
    t.match((await reset(app, rival.owner.tokens.refresh_token, fresh)).json(), expired)
  })
  t.test('is not good on the host of another agency', async (t) => {
    const token = await forgotToken(app, rival.owner.email)
    t.match((await reset(app, token, fresh, acme.host)).json(), expired)
    t.equal((await reset(app, token, fresh, rival.host)).statusCode, 204)
  })
  t.test('is nowhere in the database', async (t) => {
    const token = await forgotToken(app, email)
    const rows = await allRows(
      app.database,
      'select l::text as row from account_links l union all select m::text from account_mails m'
    )
    t.ok(rows.length > 2)
    t.notOk(rows.some(({ row }) => row.includes(token) || row.includes(token.slice(-40))))
  })
})

t.test('the address of an account', async (t) => {
  const app = await startApp(t, { LOG_LEVEL: 'info' })
  const acme = await createTenant(app, 'acme')
  const rival = await createTenant(app, 'rival')
  const { email } = acme.owner
  const user = async () => (await acme.send(me)).json()
  const resend = () => acme.send(post('/auth/email/resend', undefined))

  t.test('is confirmed by the mail after signing up, once, and the person has changed', async (t) => {
    await mailsAreSent(app)
    const [token] = mailedTokens(app, email, paths.verify)
    t.equal((await user()).email_verified, false)
    const tag = (await acme.send(me)).headers.etag
    t.equal((await verify(app, token)).statusCode, 204)
    t.equal((await user()).email_verified, true)
    t.not((await acme.send(me)).headers.etag, tag)
    t.match((await verify(app, token)).json(), expired)
    t.ok((await actionsOf(app, acme.id)).includes('user.email_verified'))
    t.notOk((await actionsOf(app, rival.id)).includes('user.email_verified'), 'another agency sees none of it')
    t.equal((await rival.send(me)).json().email_verified, false)
  })
  t.test('is asked for again, but not when it is confirmed', async (t) => {
    const before = mailsTo(app, email).length
    t.equal((await resend()).statusCode, 202)
    await mailsAreSent(app)
    t.equal(mailsTo(app, email).length, before)
    const [old] = mailedTokens(app, rival.owner.email, paths.verify)
    const token = await linkMailedBy(app, rival.owner.email, 'verify', () =>
      rival.send(post('/auth/email/resend', undefined))
    )
    t.match((await verify(app, old)).json(), expired)
    t.equal((await verify(app, token)).statusCode, 204)
    t.equal((await rival.anonymous(post('/auth/email/resend', undefined))).statusCode, 401)
  })
})

t.test('how often', async (t) => {
  t.test(
    'an address gets such a mail is limited in silence, but not for a network that the account knows',
    async (t) => {
      const app = await startApp(t, { LOG_LEVEL: 'info', RATE_LIMIT_MAIL_TO: '3/24h', TRUST_PROXY: '10.0.0.0/8' })
      const acme = await createTenant(app, 'acme')
      const { email } = acme.owner
      await verifyAll(app)
      const from = (ip: string) => ({ remoteAddress: '10.0.0.1', headers: { 'x-forwarded-for': ip } })
      await send(app, 'localhost', { ...post('/auth/login', { email, password }), ...from('203.0.113.5') })
      const ask = async (ip: string) => {
        t.equal((await forgot(app, email, from(ip))).statusCode, 202)
        await mailsAreSent(app)
        return mailedTokens(app, email, paths.reset).length
      }
      const counts = []
      for (let i = 1; i <= 5; i++) counts.push(await ask(`198.51.100.${i}`))
      t.strictSame(counts, [1, 2, 3, 3, 3])
      t.equal(await ask('203.0.113.5'), 4)
      const invited = await acme.send(post('/invitations', { email: 'ana@example.com', role: 'viewer' }))
      t.equal(invited.statusCode, 201)
      await allRows(app.database, "update account_mails set sent_at = sent_at - interval '25 hours'")
      t.equal(await ask('198.51.100.9'), 5, 'a day later')
    }
  )
  t.test('somebody may ask is limited by address and by account', async (t) => {
    const app = await startApp(t, { RATE_LIMIT_AUTH: '4/1m', TRUST_PROXY: '10.0.0.0/8' })
    const statuses = async (ask: (i: number) => Promise<{ statusCode: number }>) => {
      const all = []
      for (let i = 1; i <= 5; i++) all.push((await ask(i)).statusCode)
      return all
    }
    const from = (ip: string) => ({ remoteAddress: '10.0.0.1', headers: { 'x-forwarded-for': ip } })
    const answers = [202, 202, 202, 202, 429]
    t.strictSame(await statuses((i) => forgot(app, `a${i}@x.example`, from('203.0.113.5'))), answers)
    t.strictSame(await statuses((i) => forgot(app, 'same@x.example', from(`198.51.100.${i}`))), answers)
    const guesses = await statuses((i) =>
      send(app, 'localhost', { ...post('/auth/password/reset', { token: `t${i}`, password }), ...from('203.0.113.77') })
    )
    t.strictSame(guesses, [410, 410, 410, 410, 429])
  })
})
