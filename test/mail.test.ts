import { once } from 'node:events'
import type { AddressInfo } from 'node:net'
import { SMTPServer } from 'smtp-server'
import t, { type Test } from 'tap'
import { allRows, createTenant, eventually, post, startApp, startServer, testEnvironment } from './harness.ts'

type Received = { to: string[]; text: string }

/** A mail server that keeps what it gets. `refuse` says how many it turns away first. */
async function startMailServer(t: Test, { refuse = 0 } = {}) {
  const received: Received[] = []
  let refused = 0
  const server = new SMTPServer({
    authOptional: true,
    disabledCommands: ['STARTTLS'],
    logger: false,
    onData(stream, session, done) {
      let text = ''
      stream.setEncoding('utf8').on('data', (chunk: string) => {
        text += chunk
      })
      stream.on('end', () => {
        if (refused < refuse) {
          refused++
          return done(Object.assign(new Error('try again later'), { responseCode: 451 }))
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

/** Quoted-printable to text, as far as these mails need it. */
function decode(text: string): string {
  const bytes = text
    .replaceAll(/=\r?\n/g, '')
    .replaceAll(/=([0-9A-F]{2})/g, (_, hex) => String.fromCharCode(Number.parseInt(hex, 16)))
  return Buffer.from(bytes, 'latin1').toString()
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
  const body = decode(text)
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
  app.mail.nudge()
  await eventually(() => mail.received.length === 1)
  await eventually(async () => (await due())[0]?.sent_at !== null)
  app.mail.nudge()
  app.mail.nudge()
  await eventually(async () => (await due())[0]?.attempts === 2)
  t.equal(mail.received.length, 1)
})

t.test('a revoked invitation is not mailed any more', async (t) => {
  const mail = await startMailServer(t, { refuse: 1 })
  const app = await startApp(t, { SMTP_URL: mail.url })
  const acme = await createTenant(app, 'acme')
  const invited = await acme.send(post('/invitations', { email: 'ana@example.com', role: 'member' }))
  await eventually(() => mail.refusals() === 1)
  await acme.send({ method: 'DELETE', url: `/api/v1/invitations/${invited.json().id}` })
  await allRows(app.database, 'update outbox set due_at = now()')
  app.mail.nudge()
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
  // what the killed process had leased comes free when its lease is over
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
