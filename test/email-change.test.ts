import t, { type Test } from 'tap'
import {
  allRows,
  createTenant,
  mailedTokens,
  mailsTo,
  password,
  post,
  type Reply,
  send,
  startApp,
  type Tenant,
  type TestApp
} from './harness.ts'
import { forgotToken, linkMailedBy, mailsAreSent, paths, reset, subjectsTo, verify, verifyAll } from './mailed-links.ts'
import { bearer, login, me } from './requests.ts'

/*
 * A person changes their address, and is told what happens to their account.
 */

const expired = { status: 410, code: 'link_expired' }
const fresh = 'an entirely different one'
const change = (tenant: Tenant, email: string, word = password, headers = {}): Promise<Reply> =>
  tenant.send(post('/users/me/email', { email, password: word }, headers))

/** Asks for a change, and resolves to the tokens of the two mails. */
async function askForChange(t: Test, app: TestApp, tenant: Tenant, from: string, to: string) {
  // the mail after signing up
  await mailsAreSent(app)
  const before = [from, to].map((email) => mailedTokens(app, email, paths.verify).length)
  t.equal((await change(tenant, to)).statusCode, 202)
  await mailsAreSent(app)
  return [from, to].map((email, index) => mailedTokens(app, email, paths.verify)[before[index] as number])
}

const userOf = async (tenant: Tenant) => (await tenant.send(me)).json()

t.test('a new address', async (t) => {
  const app = await startApp(t, { LOG_LEVEL: 'info', APP_URL: 'https://{slug}.aggios.test' })

  for (const order of ['the old one first', 'the new one first']) {
    t.test(`takes effect when both mailboxes have confirmed it, ${order}`, async (t) => {
      const slug = `acme-${order.split(' ')[1]}`
      const acme = await createTenant(app, slug)
      const rival = await createTenant(app, `rival-${order.split(' ')[1]}`)
      const old = acme.owner.email
      const next = `next@${slug}.example`
      await mailsAreSent(app)
      const links = await askForChange(t, app, acme, old, next)
      t.match(mailsTo(app, old).at(-1)?.text, `https://${slug}.aggios.test/email/verify?token=`)
      const [first, second] = order.startsWith('the old') ? links : links.toReversed()
      const tag = (await acme.send(me)).headers.etag

      t.equal((await verify(app, first)).statusCode, 204)
      t.match(await userOf(acme), { email: old, email_verified: false })
      t.match((await verify(app, first)).json(), expired, 'once')
      t.equal((await login(app, next, password)).statusCode, 401)
      t.equal((await verify(app, second)).statusCode, 204)
      t.match(await userOf(acme), { email: next, email_verified: true }, 'the session stays')
      t.not((await acme.send(me)).headers.etag, tag)
      t.match((await verify(app, second)).json(), expired)
      t.equal((await login(app, old, password)).statusCode, 401)
      t.equal((await login(app, next, password)).statusCode, 200)
      await mailsAreSent(app)
      t.ok(subjectsTo(app, old).includes('Your e-mail address was changed'))
      t.notMatch(mailsTo(app, old).at(-1)?.text, next)

      const { data } = (await acme.send('/api/v1/audit-events?action=user.email_changed')).json()
      t.match(data, [{ target_id: acme.owner.id, detail: { before: { email: old }, after: { email: next } } }])
      t.strictSame((await rival.send('/api/v1/audit-events?action=user.email_changed')).json().data, [])
    })
  }
  t.test('needs the password, another address, and a person', async (t) => {
    const acme = await createTenant(app, 'strict')
    t.match((await change(acme, 'x@y.example', 'not the right one')).json(), { code: 'invalid_credentials' })
    t.match((await change(acme, acme.owner.email.toUpperCase())).json(), {
      status: 400,
      errors: [{ path: '/body/email' }]
    })
    for (const email of [
      '"victim@x.com y"@evil.com',
      'a@evil.com,b@x',
      'a@b.example\r\nBcc: c@d.example',
      'a＠b.example'
    ]) {
      t.equal((await change(acme, email)).statusCode, 400, email)
    }
    t.equal((await acme.anonymous(post('/users/me/email', { email: 'x@y.example', password }))).statusCode, 401)
    t.strictSame(
      await allRows(app.database, "select from account_mails where kind like 'change%' and sent_at is null"),
      []
    )
  })
  t.test('that somebody has answers the same, and its owner is told, without a link', async (t) => {
    const acme = await createTenant(app, 'curious')
    const taken = (await createTenant(app, 'taken')).owner.email
    await mailsAreSent(app)
    const [yes, no] = [await change(acme, taken), await change(acme, 'free@taken.example')]
    t.strictSame([yes.statusCode, yes.body], [no.statusCode, no.body])
    const count = mailsTo(app, taken).length
    const [fromOld] = await askForChange(t, app, acme, acme.owner.email, taken)
    t.ok(fromOld, 'the own address gets its mail all the same')
    const mail = mailsTo(app, taken)[count]
    t.equal(mail?.subject, 'Somebody tried to use your e-mail address')
    t.notMatch(mail?.text, /token=|curious/)
    t.equal((await verify(app, fromOld)).statusCode, 204)
    t.equal((await userOf(acme)).email, acme.owner.email)
  })
  t.test('that two people want becomes that of one', async (t) => {
    const [one, two] = await Promise.all([createTenant(app, 'one'), createTenant(app, 'two')])
    const wanted = 'wanted@race.example'
    const links: (string | undefined)[][] = []
    for (const each of [one, two]) links.push(await askForChange(t, app, each, each.owner.email, wanted))
    for (const [fromOld] of links) t.equal((await verify(app, fromOld)).statusCode, 204)
    const replies = await Promise.all(links.map(([, toNew]) => verify(app, toNew)))
    t.strictSame(replies.map(({ statusCode }) => statusCode).sort(), [204, 410])
    const emails = [(await userOf(one)).email, (await userOf(two)).email]
    t.equal(emails.filter((email) => email === wanted).length, 1)
  })
  t.test('is confirmed by both mailboxes at the same moment', async (t) => {
    const acme = await createTenant(app, 'atonce')
    for (let round = 0; round < 5; round++) {
      const { email } = await userOf(acme)
      const links = await askForChange(t, app, acme, email, `round-${round}@atonce.example`)
      const replies = await Promise.all(links.map((link) => verify(app, link)))
      t.strictSame(
        replies.map(({ statusCode }) => statusCode),
        [204, 204]
      )
      t.equal((await userOf(acme)).email, `round-${round}@atonce.example`)
    }
  })
  t.test('is given up for a newer one, and by a change of the password', async (t) => {
    const acme = await createTenant(app, 'wavering')
    const { email } = acme.owner
    const first = await askForChange(t, app, acme, email, 'first@wavering.example')
    const second = await askForChange(t, app, acme, email, 'second@wavering.example')
    for (const link of first) t.match((await verify(app, link)).json(), expired)
    t.equal((await verify(app, second[0])).statusCode, 204)
    t.equal((await reset(app, await forgotToken(app, email), fresh)).statusCode, 204)
    t.match((await verify(app, second[1])).json(), expired)
    const signedIn = (await login(app, email, fresh)).json()
    t.match((await acme.with(signedIn.access_token, me)).json(), { email })
  })
  t.test('ends the links of the old one', async (t) => {
    const acme = await createTenant(app, 'moving')
    const { email } = acme.owner
    const forgotten = await forgotToken(app, email)
    const links = await askForChange(t, app, acme, email, 'moved@moving.example')
    for (const link of links) t.equal((await verify(app, link)).statusCode, 204)
    t.match((await reset(app, forgotten, fresh)).json(), expired)
    await allRows(app.database, `update users set email = '${email}' where id = '${acme.owner.id}'`)
    t.match((await reset(app, forgotten, fresh)).json(), expired, 'also when the account moves back')
  })
  t.test('is not that of old tokens, which name who they are for by id', async (t) => {
    const acme = await createTenant(app, 'claims')
    const old = acme.owner.email
    const links = await askForChange(t, app, acme, old, 'moved@claims.example')
    for (const link of links) t.equal((await verify(app, link)).statusCode, 204)
    const heir = await createTenant(app, 'heir', old)
    t.equal((await userOf(acme)).email, 'moved@claims.example')
    t.equal((await userOf(acme)).id, acme.owner.id)
    const body = { current_password: password, new_password: fresh }
    t.equal((await acme.send(post('/users/me/password', body))).statusCode, 204)
    t.equal((await login(app, old, password)).statusCode, 200, 'of the one who has the old address now')
    t.equal((await login(app, 'moved@claims.example', fresh)).statusCode, 200)
    t.equal((await heir.send(me)).json().id, heir.owner.id)
    const refreshed = await send(
      app,
      'localhost',
      post('/auth/refresh', { refresh_token: acme.owner.tokens.refresh_token })
    )
    const claims = JSON.parse(Buffer.from(refreshed.json().access_token.split('.')[1], 'base64url').toString())
    t.equal(claims.email, 'moved@claims.example')
  })
  t.test('is asked for as often as one person may cause mails', async (t) => {
    const few = await startApp(t, {
      RATE_LIMIT_MAIL_UNVERIFIED: '2/24h',
      RATE_LIMIT_MAIL_TO: '1/24h',
      LOG_LEVEL: 'info'
    })
    const acme = await createTenant(few, 'acme')
    const beta = await createTenant(few, 'beta')
    t.equal((await change(acme, 'a@b.example')).statusCode, 202)
    await mailsAreSent(few)
    t.match((await change(beta, 'a+x@b.example')).json(), { status: 429, detail: /this address/ })
    t.equal((await acme.send(post('/invitations', { email: 'c@d.example', role: 'viewer' }))).statusCode, 201)
    t.match((await change(acme, 'e@f.example')).json(), { status: 429, detail: /as many mails/ })
  })
})

t.test('a person is told', async (t) => {
  const app = await startApp(t, { LOG_LEVEL: 'info', TRUST_PROXY: '10.0.0.0/8' })
  const acme = await createTenant(app, 'acme')
  await verifyAll(app)
  const { email } = acme.owner
  const from = (ip: string, agent: string) => ({
    remoteAddress: '10.0.0.1',
    headers: { 'x-forwarded-for': ip, 'user-agent': agent }
  })
  const signIn = async (who: string, ip: string, agent: string) => {
    t.equal((await login(app, who, password, from(ip, agent))).statusCode, 200)
    await mailsAreSent(app)
    return subjectsTo(app, who).filter((subject) => subject.startsWith('A new sign-in')).length
  }

  t.test('of a sign-in from a network and with a program that were not used before', async (t) => {
    const own = acme.owner.tokens.refresh_token
    await send(app, 'localhost', {
      ...post('/auth/refresh', { refresh_token: own }),
      ...from('203.0.113.5', 'Phone/1')
    })
    t.equal(await signIn(email, '203.0.113.5', 'Laptop/1'), 0, 'a known network')
    t.equal(await signIn(email, '198.51.100.1', 'Phone/1'), 0, 'a known program')
    t.equal(await signIn(email, '192.0.2.1', '<b>Evil</b> https://evil.example'), 1)
    const text = mailsTo(app, email).at(-1)?.text
    t.match(text, 'IP 192.0.2.1')
    t.match(text, 'https: //evil. example')
    t.equal(await signIn(email, '192.0.2.1', 'Another/1'), 1, 'it is known now')
    await allRows(app.database, "update sessions set created_at = created_at - interval '91 days'")
    t.equal(await signIn(email, '192.0.2.1', 'Another/1'), 2, 'for 90 days')
  })
  t.test('but not of the very first', async (t) => {
    const seeded = await createTenant(app, 'seeded')
    await verifyAll(app)
    await allRows(app.database, `delete from sessions where tenant_id = '${seeded.id}'`)
    await allRows(app.database, `update memberships set last_used_at = null where tenant_id = '${seeded.id}'`)
    t.equal(await signIn(seeded.owner.email, '192.0.2.9', 'First/1'), 0)
    t.equal(await signIn(seeded.owner.email, '198.51.100.9', 'Second/1'), 1)
  })
  t.test('of a new password, in the language of the agency', async (t) => {
    await acme.send({ method: 'PATCH', url: '/api/v1/tenant', payload: { settings: { locale: 'pt-BR' } } })
    const { access_token } = (await login(app, email, password)).json()
    const body = { current_password: password, new_password: fresh }
    t.equal((await acme.with(access_token, post('/users/me/password', body))).statusCode, 204)
    await mailsAreSent(app)
    t.equal(subjectsTo(app, email).at(-1), 'A sua senha foi trocada')
  })
  t.test('twenty times a day at most, and not when they are disabled', async (t) => {
    const busy = await createTenant(app, 'busy')
    await verifyAll(app)
    const notices = () => subjectsTo(app, busy.owner.email).filter((subject) => subject.includes('was changed')).length
    const plant = (count: number) =>
      allRows(
        app.database,
        `insert into account_mails (kind, user_id) select 'password_changed', $1 from generate_series(1, ${count})`,
        [busy.owner.id]
      )
    await plant(23)
    await mailsAreSent(app)
    t.equal(notices(), 20)
    await allRows(app.database, "update account_mails set sent_at = sent_at - interval '2 days'")
    await allRows(app.database, `update users set disabled_at = now() where id = '${busy.owner.id}'`)
    await plant(1)
    await mailsAreSent(app)
    t.equal(notices(), 20)
  })
  t.test('and a kind that this version does not know is left to a newer one', async (t) => {
    await allRows(app.database, "insert into account_mails (kind, user_id) values ('later_kind', $1)", [acme.owner.id])
    app.mail.wake()
    await linkMailedBy(app, email, 'reset', () => send(app, 'localhost', post('/auth/password/forgot', { email })))
    const [row] = await allRows(app.database, "select attempts, sent_at from account_mails where kind = 'later_kind'")
    t.strictSame(row, { attempts: 0, sent_at: null })
  })
})

t.test('whoever ends their account leaves no link and no mail behind', async (t) => {
  const app = await startApp(t, { LOG_LEVEL: 'info' })
  const acme = await createTenant(app, 'acme')
  await acme.send(post('/tenants', { name: 'Second', slug: 'second' }))
  await forgotToken(app, acme.owner.email)
  await change(acme, 'x@y.example')
  await allRows(app.database, "update memberships set role = 'admin'")
  const left = await acme.send({ method: 'DELETE', url: me, payload: { password } })
  t.equal(left.statusCode, 204, left.body)
  const rows = 'select 1 from account_links union all select 1 from account_mails where user_id is not null'
  t.strictSame(await allRows(app.database, rows), [])
  t.equal((await send(app, 'localhost', { url: me, headers: bearer(acme.owner.tokens.access_token) })).statusCode, 401)
})
