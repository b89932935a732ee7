import { once } from 'node:events'
import type { AddressInfo } from 'node:net'
import { SMTPServer } from 'smtp-server'
import t, { type Test } from 'tap'
import { mailboxOf } from '../src/mail/mailboxes.ts'
import { nameInMail, nameInSubject, trimName } from '../src/names.ts'
import {
  allRows,
  createTenant,
  eventually,
  password,
  post,
  send,
  startApp,
  startServer,
  testEnvironment
} from './harness.ts'
import { decodeMail } from './mail-server.ts'

type Received = { to: string[]; text: string }

/**
 * A mail server that keeps its mails. It refuses the first `refuse` mails with `code`, and every mail to the address `unknown`.
 */
async function startMailServer(t: Test, { refuse = 0, code = 451, unknown = '' } = {}) {
  const received: Received[] = []
  let refused = 0
  const server = new SMTPServer({
    authOptional: true,
    disabledCommands: ['STARTTLS'],
    logger: false,
    onRcptTo({ address }, _session, done) {
      if (address !== unknown) return done()
      refused++
      done(Object.assign(new Error('no such user'), { responseCode: 550 }))
    },
    onData(stream, session, done) {
      let text = ''
      stream.setEncoding('utf8').on('data', (chunk: string) => {
        text += chunk
      })
      stream.on('end', () => {
        // whoever signs up is asked to confirm their address (test/recovery.test.ts)
        if (decodeMail(text).includes('/email/verify?token=')) return done()
        if (refused < refuse) {
          refused++
          return done(Object.assign(new Error('not this one'), { responseCode: code }))
        }
        received.push({ to: session.envelope.rcptTo.map(({ address }) => address), text })
        done()
      })
    }
  })
  server.listen(0, '127.0.0.1')
  await once(server.server, 'listening')
  t.teardown(() => new Promise<void>((done) => server.close(() => done())))
  const { port } = server.server.address() as AddressInfo
  return { url: `smtp://127.0.0.1:${port}`, received, refusals: () => refused }
}

t.test('an invitation reaches the mail server, in the language of the agency', async (t) => {
  const mail = await startMailServer(t)
  const settings = {
    SMTP_URL: mail.url,
    MAIL_FROM: 'Aggios <no-reply@aggios.test>',
    APP_URL: 'https://{slug}.aggios.test'
  }
  const app = await startApp(t, settings)
  const acme = await createTenant(app, 'acme')
  await acme.send({
    method: 'PATCH',
    url: '/api/v1/tenant',
    payload: { name: 'Café <b>& Cia</b>', settings: { locale: 'pt-BR' } }
  })
  const evil = { host: 'acme.localhost', 'x-forwarded-host': 'evil.example', forwarded: 'host=evil.example' }
  const invited = await acme.send(post('/invitations', { email: 'ana@example.com', role: 'admin' }, evil))
  t.equal(invited.statusCode, 201)
  await eventually(() => mail.received.length === 1)
  const [{ to, text }] = mail.received as [Received]
  const body = decodeMail(text)
  t.strictSame(to, ['ana@example.com'])
  t.match(body, /^From: Aggios <no-reply@aggios\.test>/m)
  t.match(body, 'como administrador')
  t.match(body, 'https://acme.aggios.test/invitations/accept?token=')
  t.match(body, 'Caf\u00e9 &lt;b&gt;&amp; Cia&lt;/b&gt;', 'what people wrote is escaped in HTML')
  t.match(body, 'Content-Type: text/plain')
  t.match(body, 'Content-Type: text/html')
  t.notMatch(body, 'evil.example')
})

t.test('a mail server that refuses is asked again, and the mail comes once', async (t) => {
  const mail = await startMailServer(t, { refuse: 1 })
  const app = await startApp(t, { SMTP_URL: mail.url })
  const acme = await createTenant(app, 'acme')
  await acme.send(post('/invitations', { email: 'ana@example.com', role: 'member' }))
  await eventually(() => mail.refusals() === 1)
  const due = () => allRows(app.database, 'select attempts, last_error, sent_at, due_at > now() as later from outbox')
  await eventually(async () => (await due())[0]?.last_error !== null)
  t.match((await due())[0], { attempts: 1, later: true, sent_at: null })
  await allRows(app.database, 'update outbox set due_at = now()')
  app.mail.wake()
  await eventually(() => mail.received.length === 1)
  await eventually(async () => (await due())[0]?.sent_at !== null)
  app.mail.wake()
  app.mail.wake()
  await eventually(async () => (await due())[0]?.attempts === 2)
  t.equal(mail.received.length, 1)
})

t.test('a forgotten password while the mail server is away is answered, and its mail comes once', async (t) => {
  const mail = await startMailServer(t, { refuse: 1 })
  const app = await startApp(t, { SMTP_URL: mail.url })
  const acme = await createTenant(app, 'acme')
  const ask = () => send(app, 'localhost', post('/auth/password/forgot', { email: acme.owner.email }))
  const waiting = `select attempts, due_at > now() as later, due_at < now() + interval '3 minutes' as soon
    from account_mails where kind = 'reset' and sent_at is null`
  t.equal((await ask()).statusCode, 202)
  app.mail.wake()
  await eventually(() => mail.refusals() === 1)
  await eventually(async () => app.mail.stats().failed === 1)
  await allRows(app.database, "update account_mails set due_at = now() + interval '8 hours' where kind = 'reset'")
  for (let i = 0; i < 3; i++) t.equal((await ask()).statusCode, 202)
  t.match(await allRows(app.database, waiting), [{ attempts: 0, later: true, soon: true }])
  await allRows(app.database, "update account_links set expires_at = now() where purpose = 'reset'")
  await allRows(app.database, 'update account_mails set due_at = now()')
  app.mail.wake()
  await eventually(async () => (await allRows(app.database, waiting)).length === 0)
  app.mail.wake()
  await eventually(async () => app.mail.stats().sent >= 2)
  t.equal(mail.received.length, 1)
  const [, token] = /reset\?token=([\w-]+)/.exec(decodeMail(mail.received[0]?.text ?? '')) ?? []
  const done = await send(
    app,
    'localhost',
    post('/auth/password/reset', { token, password: 'an entirely different one' })
  )
  t.equal(done.statusCode, 204, 'the link is good for its whole time from when it is sent')
})

t.test('a revoked invitation is not mailed any more', async (t) => {
  const mail = await startMailServer(t, { refuse: 1 })
  const app = await startApp(t, { SMTP_URL: mail.url })
  const acme = await createTenant(app, 'acme')
  const invited = await acme.send(post('/invitations', { email: 'ana@example.com', role: 'member' }))
  await eventually(() => mail.refusals() === 1)
  await acme.send({ method: 'DELETE', url: `/api/v1/invitations/${invited.json().id}` })
  await allRows(app.database, 'update outbox set due_at = now()')
  app.mail.wake()
  await eventually(async () => (await allRows(app.database, 'select dropped_at from outbox'))[0]?.dropped_at !== null)
  t.equal(mail.received.length, 0)
})

t.test('a mail survives kill -9, and two processes send it once', async (t) => {
  const app = await startApp(t, { SMTP_URL: 'smtp://127.0.0.1:9' })
  const acme = await createTenant(app, 'acme')
  const invitations = Array.from({ length: 15 }, (_, i) =>
    acme.send(post('/invitations', { email: `person-${i}@example.com`, role: 'viewer' }))
  )
  for (const reply of await Promise.all(invitations)) t.equal(reply.statusCode, 201)
  await eventually(async () => app.mail.stats().failed >= 15, 10_000)
  await app.close()
  await allRows(app.database, 'update outbox set due_at = now()')

  const mail = await startMailServer(t)
  const env = testEnvironment(app.database, { SMTP_URL: mail.url })
  const [one] = await Promise.all([startServer(t, env), startServer(t, env)])
  one.child.kill('SIGKILL')
  // mails that the killed process had leased are free when the lease is over
  await allRows(
    app.database,
    "update outbox set due_at = now() where sent_at is null and due_at > now() + interval '5 s'"
  )
  await eventually(
    async () => (await allRows(app.database, 'select from outbox where sent_at is null')).length === 0,
    20_000
  )
  const addresses = mail.received.flatMap(({ to }) => to)
  t.equal(new Set(addresses).size, 15, 'none is lost')
  t.ok(addresses.length <= 16, 'at most the one that was under way when the process died comes twice')
})

t.test('what a mail server refuses for good is not tried again, and is seen', async (t) => {
  const refusals = [
    { title: 'the recipient', server: { unknown: 'ana@example.com' } },
    { title: 'the mail', server: { refuse: 1, code: 554 } }
  ]
  for (const { title, server } of refusals) {
    t.test(title, async (t) => {
      const mail = await startMailServer(t, server)
      const app = await startApp(t, { SMTP_URL: mail.url, LOG_LEVEL: 'warn' })
      const acme = await createTenant(app, 'acme')
      const delivery = async () => (await acme.send('/api/v1/invitations')).json().data[0].delivery
      const invited = await acme.send(post('/invitations', { email: 'ana@example.com', role: 'member' }))
      t.equal(invited.json().delivery, 'queued')
      await eventually(async () => (await delivery()) === 'failed')
      const [entry] = await allRows(app.database, 'select attempts, dropped_at, last_error from outbox')
      t.match(entry, { attempts: 1, dropped_at: Date, last_error: String })
      await eventually(() => app.mail.stats().sent === 1)
      t.strictSame(
        app.mail.stats(),
        { sent: 1, failed: 0, undeliverable: 1 },
        'the owner got the mail after signing up'
      )
      t.equal(app.logLines.filter((line) => line.includes('mail is undeliverable')).length, 1)
      t.equal(mail.refusals(), 1)
    })
  }
  t.test('a refusal of the installation itself is tried again', async (t) => {
    // a server that refuses every connection
    const server = new SMTPServer({
      authOptional: true,
      logger: false,
      disabledCommands: ['STARTTLS'],
      onMailFrom: (_address, _session, done) => done(Object.assign(new Error('not you'), { responseCode: 550 }))
    })
    server.listen(0, '127.0.0.1')
    await once(server.server, 'listening')
    t.teardown(() => new Promise<void>((done) => server.close(() => done())))
    const { port } = server.server.address() as AddressInfo
    const app = await startApp(t, { SMTP_URL: `smtp://127.0.0.1:${port}` })
    const acme = await createTenant(app, 'acme')
    await acme.send(post('/invitations', { email: 'ana@example.com', role: 'member' }))
    await eventually(() => app.mail.stats().failed === 2)
    t.equal((await acme.send('/api/v1/invitations')).json().data[0].delivery, 'queued')
  })
  t.test('what arrived is sent', async (t) => {
    const mail = await startMailServer(t)
    const app = await startApp(t, { SMTP_URL: mail.url })
    const acme = await createTenant(app, 'acme')
    await acme.send(post('/invitations', { email: 'ana@example.com', role: 'member' }))
    await eventually(async () => (await acme.send('/api/v1/invitations')).json().data[0].delivery === 'sent')
  })
})

t.test('mails are limited over all agencies', async (t) => {
  const invite = (email: string) => post('/invitations', { email, role: 'member' })

  t.test('to one mailbox, however it is spelled and whoever asks at once', async (t) => {
    const app = await startApp(t, { RATE_LIMIT_MAIL_TO: '3/24h' })
    const agencies = await Promise.all(['acme', 'beta', 'coma', 'dela', 'echo'].map((slug) => createTenant(app, slug)))
    const replies = await Promise.all(
      agencies.flatMap((agency) => [agency.send(invite('vera@example.com')), agency.send(invite('Vera+x@example.com'))])
    )
    t.equal(replies.filter(({ statusCode }) => statusCode === 201).length, 3)
    const refused = replies.find(({ statusCode }) => statusCode !== 201)
    t.match(refused?.json(), { status: 429, code: 'rate_limited', detail: /this address/ })
    const seconds = Number(refused?.headers['retry-after'])
    t.ok(seconds > 86_000 && seconds <= 86_400, `${seconds} s`)
    t.equal((await allRows(app.database, 'select from invitations')).length, 3, 'a refusal leaves no invitation')

    const [row] = await allRows(app.database, 'select tenant_id, id from invitations limit 1')
    const owner = agencies.find(({ id }) => id === row?.tenant_id)
    const again = await owner?.send(post(`/invitations/${row?.id}/resend`, undefined))
    t.equal(again?.statusCode, 429, 'sending again counts too')
    t.equal((await agencies[0]?.send(invite('other@example.com')))?.statusCode, 201)
    await allRows(app.database, "update outbox set created_at = created_at - interval '25 hours'")
    t.equal((await owner?.send(post(`/invitations/${row?.id}/resend`, undefined)))?.statusCode, 202, 'a day later')
  })
  t.test('by one person, and sooner while their own address is not verified', async (t) => {
    const app = await startApp(t, { RATE_LIMIT_MAIL: '4/24h', RATE_LIMIT_MAIL_UNVERIFIED: '2/24h' })
    const acme = await createTenant(app, 'acme')
    await acme.send(post('/tenants', { name: 'Second', slug: 'second' }))
    const second = (await acme.send(post('/auth/switch', { tenant: 'second' }))).json().access_token
    const inSecond = (email: string) =>
      send(app, 'second.localhost', { ...invite(email), headers: { authorization: `Bearer ${second}` } })
    t.equal((await acme.send(invite('a@example.com'))).statusCode, 201)
    t.equal((await inSecond('b@example.com')).statusCode, 201)
    t.match((await inSecond('c@example.com')).json(), { status: 429, detail: /not verified/ })
    t.match((await acme.send(invite('c@example.com'))).json(), { status: 429, detail: /not verified/ })
    await allRows(app.database, 'update users set email_verified_at = now()')
    t.equal((await acme.send(invite('c@example.com'))).statusCode, 201)
    t.equal((await inSecond('d@example.com')).statusCode, 201)
    t.match((await acme.send(invite('e@example.com'))).json(), { status: 429, detail: /as many mails as one person/ })
  })
})

t.test('a name carries nothing into a mail but itself', async (t) => {
  t.test('no link, no encoded word, no markup, nothing that does not show', async (t) => {
    const mail = await startMailServer(t)
    const app = await startApp(t, { SMTP_URL: mail.url, APP_URL: 'https://{slug}.aggios.test' })
    const hostile = {
      tenant: 'See https://evil.example/win \u202e=\u200b?utf-8?q?=48=69?=',
      name: '\u200b <b>www.evil.example</b>\u{e0041} mailto:eve@evil.example \u2066'
    }
    const body = { tenant: { name: hostile.tenant, slug: 'acme' }, email: 'eve@evil.example', password }
    const registered = await send(app, 'localhost', post('/auth/register', { ...body, name: hostile.name }))
    t.equal(registered.json().user.name, hostile.name.slice(2, -2), 'trimmed of what does not show')
    const headers = { authorization: `Bearer ${registered.json().access_token}` }
    await send(app, 'acme.localhost', post('/invitations', { email: 'ana@example.com', role: 'member' }, headers))
    await eventually(() => mail.received.length === 1)
    const raw = mail.received[0]?.text as string
    const text = decodeMail(raw)
    const subject = /^Subject: (.*(?:\r\n .*)*)/m.exec(raw)?.[1]?.replaceAll('\r\n', '') as string
    t.notMatch(subject, /=\?|\?=|[<>]|[^ -~]/, subject)
    t.match(subject, 'www. evil. example')
    const links = text.match(/(?:https?:\/\/|www\.|mailto:)[^\s"<]+/g) ?? []
    t.ok(links.length >= 2 && links.every((link) => link.startsWith('https://acme.aggios.test/')), links.join(' '))
    t.notMatch(text, /evil\.example|[\u200b\u202e\u2066]/)
  })
  t.test('every way to set a name trims it, and refuses one of which nothing shows', async (t) => {
    const app = await startApp(t)
    const acme = await createTenant(app, 'acme')
    const nothing = '\u202e\u200b \ufe0f\u{e0041}\u3164\u2800'
    const patch = (url: string, payload: object) => acme.send({ method: 'PATCH', url, payload })
    const register = (name: string, tenant: string, slug: string) =>
      send(
        app,
        'localhost',
        post('/auth/register', { tenant: { name: tenant, slug }, name, email: `${slug}@example.com`, password })
      )
    const replies = {
      me: await patch('/api/v1/users/me', { name: nothing }),
      tenant: await patch('/api/v1/tenant', { name: nothing }),
      tenants: await acme.send(post('/tenants', { name: nothing, slug: 'second' })),
      person: await register(nothing, 'Acme', 'third'),
      agency: await register('Ada', nothing, 'fourth'),
      accept: await send(app, 'localhost', post('/invitations/accept', { token: 'x', name: nothing, password }))
    }
    for (const [way, reply] of Object.entries(replies)) {
      t.match(reply.json(), { status: 400, code: 'validation_failed' }, way)
    }
    const padded = ' \u200bAda\u200d Lovelace \u202c'
    t.equal((await patch('/api/v1/users/me', { name: padded })).json().name, 'Ada\u200d Lovelace')
    t.equal((await patch('/api/v1/tenant', { name: padded })).json().name, 'Ada\u200d Lovelace')
    t.equal((await acme.send(post('/tenants', { name: padded, slug: 'fifth' }))).json().name, 'Ada\u200d Lovelace')
  })
  t.test('what people write stays readable', async (t) => {
    const same = ['Ada Lovelace', 'Caf\u00e9 & Cia', '10:30 Studio', 'O\u2019Neill (Sul)', '\u6771\u4eac\u652f\u5e97']
    for (const name of same) t.equal(nameInMail(name), name)
    t.equal(nameInMail('Booking.com'), 'Booking. com')
    t.equal(nameInMail('J.R.R. Tolkien'), 'J. R. R. Tolkien')
    t.equal(nameInSubject('x'.repeat(70)), `${'x'.repeat(59)}\u2026`)
    t.equal(trimName('Ada \u2764\ufe0f '), 'Ada \u2764\ufe0f', 'an emoji keeps what belongs to it')
  })
  t.test('a mailbox has one spelling', async (t) => {
    t.equal(mailboxOf('ada+spam+2@example.com'), 'ada@example.com')
    t.equal(mailboxOf('a.d.a+x@googlemail.com'), 'ada@gmail.com')
    t.equal(mailboxOf('a.d.a@example.com'), 'a.d.a@example.com')
  })
})
