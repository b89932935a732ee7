import { DatabaseError } from 'pg-protocol'
import { SMTPServer } from 'smtp-server'
import t, { type Test } from 'tap'
import { buildApp } from '../src/app.ts'
import { readConfig } from '../src/config/config.ts'
import { render } from '../src/metrics.ts'
import type { Call } from './authz-calls.ts'
import { policies } from './authz-policy.ts'
import { type Canaries, createCanaries } from './canaries.ts'
import { fileForm } from './forms.ts'
import { finishInjectedStreams, jwtSecret, testEnvironment } from './harness.ts'
import { attemptOf } from './isolation-cases.ts'
import { createWorld, type Operation, type World } from './isolation-world.ts'
import { decodeMail } from './mail-server.ts'
import { startOtlpReceiver } from './otlp-receiver.ts'
import { clientId, clientSecret, signInAt, startScriptedProvider } from './providers.ts'

/*
 * No secret that passes through the server is in its log, its traces or its metrics, and no name and no address of a person.
 * Every operation is called in four ways, each in another LOG_FORMAT, at the level `trace` and with all requests traced:
 * rightly, with wrong values, with a wrong token, and while the database fails with an error that quotes what it was given.
 */

const formats = ['json', 'ecs', 'otel', 'pretty'] as const
type Format = (typeof formats)[number]
const smtpPassword = 'canary-of-the-mail-server'
const collectorKey = 'canary-of-the-collector'

/** A mail server that keeps what it gets, and refuses every second mail with an answer that names its recipient. */
async function startMailServer(t: Test) {
  const texts: string[] = []
  let count = 0
  const server = new SMTPServer({
    allowInsecureAuth: true,
    disabledCommands: ['STARTTLS'],
    logger: false,
    onAuth: ({ username }, _session, done) => done(null, { user: username }),
    onRcptTo({ address }, _session, done) {
      count++
      done(count % 2 === 0 ? Object.assign(new Error(`5.1.1 <${address}>: no such user`), { responseCode: 550 }) : null)
    },
    onData(stream, _session, done) {
      let text = ''
      stream.setEncoding('utf8').on('data', (chunk: string) => {
        text += chunk
      })
      stream.on('end', () => {
        texts.push(decodeMail(text))
        done()
      })
    }
  })
  server.on('error', () => {})
  await new Promise<void>((listening) => server.listen(0, '127.0.0.1', listening))
  t.teardown(() => new Promise<void>((done) => server.close(() => done())))
  const { port } = server.server.address() as { port: number }
  return { url: `smtp://aggios:${smtpPassword}@127.0.0.1:${port}`, texts }
}

/** Applications on one database, each with another format of the log. */
async function startFormats(t: Test, world: World, env: Record<string, string>) {
  const logs = {} as Record<Format, string[]>
  const apps = {} as Record<Format, World['app']>
  for (const format of formats) {
    const lines: string[] = []
    logs[format] = lines
    const config = readConfig(testEnvironment(world.database, { ...env, LOG_FORMAT: format }))
    const app = buildApp(config, { logStream: { write: (line) => void lines.push(line) } })
    finishInjectedStreams(app)
    app.addHook('onReady', async () => plantFailures(app))
    t.teardown(() => app.close())
    await app.ready()
    apps[format] = app
  }
  return { apps, logs }
}

const json = { 'content-type': 'application/json' }
let failing = false

/** While `failing`, each statement fails as PostgreSQL does where it can't read a value: with the values in the message. */
function plantFailures({ gate }: World['app']): void {
  const { query, transaction } = gate
  const fail = (values: unknown): never => {
    const text = JSON.stringify(values)
    const message = `invalid input syntax for type uuid: "${text}"`
    throw Object.assign(new DatabaseError(message, message.length, 'error'), {
      ...{ code: '22P02', severity: 'ERROR', detail: text, where: text, hint: text, internalQuery: text }
    })
  }
  gate.query = async (settings, statement, values) => (failing ? fail(values) : query(settings, statement, values))
  gate.transaction = async (settings, work) =>
    transaction(settings, async (trx) => {
      const result = await work(trx)
      return failing ? fail(result) : result
    })
}

/** The same call with every text replaced, and with members that nobody knows. */
function spoiled(call: Call): Call {
  let count = 0
  const spoil = (value: unknown): unknown => {
    if (Array.isArray(value)) return value.map(spoil)
    if (typeof value !== 'object' || value === null) return `canary-of-a-value-${++count}`
    return Object.fromEntries(Object.entries(value).map(([name, each]) => [name, spoil(each)]))
  }
  if (!call.body) return { ...call, query: { ...call.query, token: 'canary-of-a-query' } }
  return { ...call, body: { ...(spoil(call.body) as object), password_of_nobody: 'canary-of-a-member' } }
}

const withWrongToken = (call: Call): Call => ({
  ...call,
  headers: {
    ...call.headers,
    authorization: `Bearer canary.of.a-token-${'x'.repeat(40)}`,
    cookie: 'sid=canary-of-a-cookie'
  }
})

async function callOperation(app: World['app'], operation: Operation, call: Call, canaries: Canaries) {
  canaries.addCall(operation.id, call)
  const { method, url, host, headers, payload } = attemptOf(operation, call)
  const reply = await app.inject({ method, url, headers: { host, ...headers }, ...(payload && { payload }) })
  canaries.addReply(operation.id, reply)
  return reply
}

t.test('no log, trace or metric has a secret', async (t) => {
  const collector = await startOtlpReceiver(t)
  const [mail, google] = [await startMailServer(t), await startScriptedProvider(t)]
  const env = {
    ...{ LOG_LEVEL: 'trace', SMTP_URL: mail.url, OTEL_TRACES_SAMPLER_ARG: '1' },
    ...{ OTEL_EXPORTER_OTLP_ENDPOINT: collector.url, OTEL_EXPORTER_OTLP_HEADERS: `api-key=${collectorKey}` },
    ...{ GITHUB_CLIENT_ID: 'aggios', GITHUB_CLIENT_SECRET: 'canary-of-the-client' },
    ...{ GOOGLE_CLIENT_ID: clientId, GOOGLE_CLIENT_SECRET: clientSecret, GOOGLE_ISSUER: google.issuer }
  }
  const world = await createWorld(t, { env: { SMTP_URL: mail.url } })
  const { apps, logs } = await startFormats(t, world, { ...env, DNS_SERVERS: world.dns.address })
  const canaries = createCanaries()
  for (const secret of [
    smtpPassword,
    collectorKey,
    env.GITHUB_CLIENT_SECRET,
    clientSecret,
    clientSecret,
    jwtSecret,
    'a pepper of the tests'
  ]) {
    canaries.add('a setting', secret)
  }
  canaries.add('the password of the database', new URL(world.database.app).password)

  // what is no operation: a link with a stroke too many, and the bytes of a file
  const [token, bytes] = [world.a.people.member.refresh_token, 'canary-of-the-bytes-of-a-file']
  canaries.add('a token in a path', token)
  canaries.add('the bytes of a file', bytes)
  canaries.add('the answer of a provider', 'canary-of-a-provider')
  const host = world.a.host
  for (const app of Object.values(apps)) {
    for (const url of [`/api/v1/files/links/${token}/content/`, `/password/reset/${token}`, `//${token}`]) {
      t.equal((await app.inject({ url, headers: { host } })).statusCode, 404)
    }
    for (failing of [false, true]) {
      const { headers, ...upload } = fileForm(bytes, 'canary.txt')
      const authorization = `Bearer ${world.a.people.owner.token}`
      await app.inject({ ...upload, headers: { ...headers, host, authorization } })
    }
    failing = false
    // a provider that repeats what it was told, and one whose token nobody can read
    for (const [answer, token] of [
      [`{"error":"invalid_grant","error_description":"${clientSecret} canary-of-a-provider"}`, undefined],
      [undefined, () => 'canary-of-a-provider.and.its-token']
    ] as const) {
      google.script.answer = (path, response) =>
        path === '/token' && answer !== undefined && response.writeHead(400, json).end(answer) !== undefined
      Object.assign(google.script, { token })
      const at = { key: 'google', at: google }
      const { error, back } = await signInAt(app as never, at, world.a.slug, { sub: 'ada' })
      t.equal(error, 'provider_error')
      canaries.addFrom('a sign-in at a provider', { link: back })
    }
  }

  let failures = 0
  const statuses = new Map<number, number>()
  for (const [index, operation] of world.operations.entries()) {
    const policy = policies[operation.id]
    if (!policy || operation.id.startsWith('getOpenapi')) continue
    const make = () => policy.make(world, world.a, 'owner')
    // a plain read takes no secret but the token
    const plain = operation.method === 'GET' && !operation.path.includes('oauth')
    const ways = [make, make, async () => spoiled(await make()), async () => withWrongToken(await make())]
    for (const [way, made] of ways.slice(0, plain ? 1 : 4).entries()) {
      const call = await made()
      failing = way === 0
      const app = apps[formats[(index + way) % formats.length] as Format]
      const { statusCode } = await callOperation(app, operation, call, canaries)
      failing = false
      statuses.set(statusCode, (statuses.get(statusCode) ?? 0) + 1)
      if (statusCode === 500) failures++
    }
  }
  t.comment(`${canaries.count()} secrets, answers: ${JSON.stringify([...statuses])}`)
  t.ok(failures > 50, 'the control: the database failed')
  await new Promise((later) => setTimeout(later, 3000))
  const metrics = render([{ worker: '1', families: await apps.json.metrics.collect() }])
  for (const app of Object.values(apps)) await app.close()
  for (const text of mail.texts) {
    for (const [, token] of text.matchAll(/[?&]token=([\w-]+)/g)) canaries.add('a token in a mail', token)
  }
  t.ok(mail.texts.length > 0 && canaries.count() > 500, `the control: ${canaries.count()} secrets`)
  t.match(logs.json.join(), /"url":"\/password\/reset\/…"/, 'the control: the path is there without the token')
  for (const format of formats) t.strictSame(canaries.search(logs[format].join('\n')), [], format)
  t.strictSame(canaries.search(collector.bodies.join('\n')), [], 'traces')
  t.strictSame(canaries.search(metrics), [], 'metrics')
})
