import { writeFileSync } from 'node:fs'
import { join } from 'node:path'
import { pathToFileURL } from 'node:url'
import t from 'tap'
import { readConfig } from '../src/config/config.ts'
import type { Environment } from '../src/config/environment.ts'
import { unencryptedServices } from '../src/config/production.ts'
import { sentryDsn } from '../src/config/value-readers.ts'
import { fileForm } from './forms.ts'
import {
  createTenant,
  createTestDatabase,
  eventually,
  jwtSecret,
  password,
  post,
  root,
  run,
  send,
  startApp,
  startServer,
  testEnvironment
} from './harness.ts'
import { startOtlpReceiver } from './otlp-receiver.ts'
import { needsRedis, startRedis } from './redis.ts'
import { startScriptedS3 } from './scripted-s3.ts'

/*
 * Traces, as a collector receives them: real exports over HTTP. What is in them, what must never be, and that nothing waits for them.
 */

t.test('a trace', async (t) => {
  const collector = await startOtlpReceiver(t)
  const app = await startApp(t, {
    OTEL_EXPORTER_OTLP_ENDPOINT: collector.url,
    OTEL_EXPORTER_OTLP_HEADERS: 'api-key=a%20key,x-team=backend',
    OTEL_TRACES_SAMPLER_ARG: '1'
  })
  const acme = await createTenant(app, 'acme')
  const remote = { traceId: '0af7651916cd43dd8448eb211c80319c', spanId: 'b7ad6b7169203331' }
  const traceparent = `00-${remote.traceId}-${remote.spanId}-01`
  const me = await acme.send({
    url: '/api/v1/users/me',
    headers: { traceparent, 'x-request-id': 'asked-1' }
  })
  t.equal(me.statusCode, 200)
  const login = await acme.anonymous(post('/auth/login', { email: acme.owner.email, password }))
  t.equal(login.statusCode, 200)
  await acme.anonymous(post('/auth/login', { email: acme.owner.email, password: 'canary-of-a-password' }))
  await acme.anonymous('/api/v1/users/me')
  await acme.anonymous('/canary-of-a-path?canary=in-the-query')
  await acme.send({ ...post('/invitations', { email: 'canary@invited.example', role: 'member' }) })
  await acme.send({ url: '/api/v1/users/me', headers: { traceparent: `00-${remote.traceId}-${remote.spanId}-00` } })
  const named = (name: string) => collector.spans.filter((span) => span.name === name)
  await eventually(() => named('POST /api/v1/invitations').length === 1 && named('send mail').length > 0, 15_000)

  t.test('has the request, joined to the trace of the client', async (t) => {
    const [span] = named('GET /api/v1/users/me').filter(({ traceId }) => traceId === remote.traceId)
    t.match(span, { parentSpanId: remote.spanId, kind: 2, failed: false })
    t.strictSame(span?.attributes, {
      'http.request.method': 'GET',
      'http.route': '/api/v1/users/me',
      'http.response.status_code': 200,
      'aggios.request_id': 'asked-1',
      'aggios.tenant_id': acme.id,
      'enduser.id': acme.owner.id
    })
    t.equal(
      collector.spans.filter(({ traceId, name }) => traceId === remote.traceId && name.startsWith('GET')).length,
      1,
      'a client that wants no record gets none'
    )
  })
  t.test('has the statements, hashes and mails, each below what caused it', async (t) => {
    const [request] = named('GET /api/v1/users/me').filter(({ traceId }) => traceId === remote.traceId)
    const below = collector.spans.filter(({ parentSpanId }) => parentSpanId === request?.spanId)
    t.ok(below.some(({ attributes }) => attributes['db.system.name'] === 'postgresql'))
    const signIn = named('POST /api/v1/auth/login')[0]
    const names = collector.spans.filter(({ traceId }) => traceId === signIn?.traceId).map(({ name }) => name)
    for (const name of ['find_account', 'verify password', 'open_session'])
      t.ok(names.includes(name), `${name} of ${names}`)
    t.equal(named('hash password').length, 1)
    const invitation = named('POST /api/v1/invitations')[0]
    const [transaction] = named('transaction').filter(({ parentSpanId }) => parentSpanId === invitation?.spanId)
    const within = collector.spans.filter(({ parentSpanId }) => parentSpanId === transaction?.spanId)
    t.match(
      within.find(({ name }) => name === 'insert invitations'),
      { attributes: { 'db.operation.name': 'insert', 'db.collection.name': 'invitations' }, failed: false }
    )
    t.ok(within.some(({ name }) => name === 'insert audit_events') && within.some(({ name }) => name === 'commit'))
    t.ok(
      named('send mail').every(({ parentSpanId }) => !parentSpanId),
      'the request is over when its mail is sent'
    )
  })
  t.test('has refusals too', async (t) => {
    t.match(named('GET unmatched'), [{ attributes: { 'http.response.status_code': 404 } }])
    const refused = named('GET /api/v1/users/me').filter(
      ({ attributes }) => attributes['aggios.problem'] === 'unauthenticated'
    )
    t.equal(refused.length, 1)
  })
  t.test('says which process it was, with the headers of the service', async (t) => {
    t.match(collector.resources[0], {
      'service.name': 'aggios-api',
      'service.version': String,
      'deployment.environment.name': 'development'
    })
    t.match(collector.headers[0], { 'api-key': 'a key', 'x-team': 'backend', 'content-type': /json/ })
  })
  t.test('has no secret, address, path or value', async (t) => {
    const sent = collector.bodies.join('\n')
    const { access_token, refresh_token } = acme.owner.tokens
    for (const secret of [
      password,
      access_token,
      refresh_token,
      'canary',
      acme.owner.email,
      'invited.example',
      'acme'
    ]) {
      t.notOk(sent.includes(secret), secret)
    }
  })
})

t.test('the store and Redis', needsRedis, async (t) => {
  const [collector, store, redis] = [await startOtlpReceiver(t), await startScriptedS3(t), await startRedis(t)]
  const app = await startApp(t, {
    ...store.environment,
    REDIS_URL: redis.url,
    RATE_LIMIT: '1000/1m',
    LOG_LEVEL: 'info',
    OTEL_EXPORTER_OTLP_ENDPOINT: collector.url,
    OTEL_TRACES_SAMPLER_ARG: '1'
  })
  const acme = await createTenant(app, 'acme')
  let received: unknown
  store.fail('PUT object', ({ request, obey }) => {
    received = request.headers.traceparent
    return obey()
  })
  const reply = await acme.send(fileForm('canary', 'canary.txt'))
  t.equal(reply.statusCode, 201)
  const request = () => collector.spans.find(({ name }) => name === 'POST /api/v1/files')
  await eventually(() => request() !== undefined, 15_000)
  const put = collector.spans.find(({ name, traceId }) => name === 'PUT' && traceId === request()?.traceId)
  t.match(put?.attributes, {
    'http.request.method': 'PUT',
    'http.response.status_code': 200,
    'server.address': '127.0.0.1'
  })
  t.equal(received, `00-${put?.traceId}-${put?.spanId}-01`, 'the store is told the trace')
  t.ok(collector.spans.some(({ attributes }) => attributes['db.system.name'] === 'redis'))
  t.notOk(collector.bodies.join().includes('canary'))
  const logged = app.logLines.map((line) => JSON.parse(line)).find(({ url }) => url === '/api/v1/files')
  t.equal(logged.trace_id, request()?.traceId, 'the log has the trace')
})

t.test('where the endpoint is away or silent, only spans are lost', async (t) => {
  const collector = await startOtlpReceiver(t)
  collector.behave('is silent')
  const app = await startApp(t, { OTEL_EXPORTER_OTLP_ENDPOINT: collector.url, OTEL_TRACES_SAMPLER_ARG: '1' })
  const acme = await createTenant(app, 'acme')
  for (let i = 0; i < 1200; i += 20) {
    const replies = await Promise.all(Array.from({ length: 20 }, () => acme.send('/api/v1/users/me')))
    t.ok(replies.every(({ statusCode }) => statusCode === 200))
  }
  const startedAt = performance.now()
  await app.close()
  t.ok(performance.now() - startedAt < 10_000, 'a shutdown waits a second at most for spans')
  t.equal(collector.spans.length, 0)
})

t.test('a process that ends sends what waits', async (t) => {
  const collector = await startOtlpReceiver(t)
  const traced = { OTEL_EXPORTER_OTLP_ENDPOINT: collector.url, OTEL_TRACES_SAMPLER_ARG: '1' }
  const server = await startServer(t, testEnvironment(await createTestDatabase(t), traced))
  const reply = await server.fetch('/api/v1/auth/login', {
    method: 'POST',
    headers: { 'content-type': 'application/json' },
    body: JSON.stringify({ email: 'nobody@acme.example', password })
  })
  t.equal(reply.status, 401)
  server.child.kill('SIGTERM')
  t.match(await server.exited, { code: 0 })
  const request = collector.spans.find(({ name }) => name === 'POST /api/v1/auth/login')
  t.ok(
    collector.spans.some(({ name, parentSpanId }) => name === 'find_account' && parentSpanId === request?.spanId),
    'also after the body came over a connection'
  )
})

t.test('Sentry gets traces at the address of its project', async (t) => {
  const collector = await startOtlpReceiver(t)
  const { host } = new URL(collector.url)
  const app = await startApp(t, { SENTRY_DSN: `http://the-key@${host}/42`, OTEL_TRACES_SAMPLER_ARG: '1' })
  t.equal((await send(app, 'localhost', '/api/v1/users/me')).statusCode, 401)
  await app.close()
  t.match(collector.spans, [{ name: 'GET /api/v1/users/me' }])
  t.strictSame(collector.paths, ['/api/42/integration/otlp/v1/traces'])
  t.equal(collector.headers[0]?.['x-sentry-auth'], 'sentry sentry_key=the-key')
})

t.test('Sentry gets each fault of the product as an event, and nothing else', async (t) => {
  const collector = await startOtlpReceiver(t)
  const { host } = new URL(collector.url)
  const settings = { SENTRY_DSN: `http://the-key@${host}/42`, OTEL_TRACES_SAMPLER_ARG: '1' }
  const app = await startApp(t, settings, undefined, (app) => {
    app.addHook('preHandler', async ({ headers }) => {
      if (headers['x-canary'] === undefined) return
      throw new Error(`broken for canary@acme.example`, { cause: new TypeError('why') })
    })
  })
  const acme = await createTenant(app, 'acme')
  const me = { url: '/api/v1/users/me?canary=in-the-query' }
  await acme.anonymous(me)
  t.equal(collector.events.length, 0, 'a refusal is none')
  const broken = { ...me, url: '/api/v1/users/me', headers: { 'x-canary': 'canary', 'x-request-id': 'asked-1' } }
  t.equal((await acme.send(broken)).statusCode, 500)
  await eventually(() => collector.events.length === 1)
  const [event] = collector.events
  t.match(event, {
    ...{ path: '/api/42/envelope/', auth: /^Sentry sentry_version=7, .*sentry_key=the-key$/, item: 'event' },
    ...{ level: 'error', platform: 'node', environment: 'development', release: /^aggios-api@/ },
    ...{ transaction: 'GET /api/v1/users/me', user: { id: acme.owner.id } },
    tags: { request_id: 'asked-1', tenant_id: acme.id },
    contexts: { trace: { trace_id: /^[0-9a-f]{32}$/ } }
  })
  const [cause, own] = event?.exception.values ?? []
  t.match(cause, { type: 'TypeError', value: 'why' }, 'the oldest cause first')
  t.match(own, { type: 'Error', value: 'broken for …@acme.example' })
  const frames = own?.stacktrace.frames as { in_app: boolean; filename: string; lineno: number }[]
  t.match(
    frames.at(-1),
    { filename: 'test/traces.test.ts', in_app: true, lineno: Number },
    'where it was thrown, at last'
  )
  t.ok(frames.some(({ in_app }) => !in_app))
  t.notOk(collector.bodies.join().includes('canary'), 'no header, no query, no address')

  await Promise.all(Array.from({ length: 60 }, () => acme.send(broken)))
  await app.close()
  t.ok(collector.events.length <= 30, 'a fault that meets every request is sent some times a minute')
})

t.test('Sentry hears of an exception that ends a process, and a silent Sentry holds nobody up', async (t) => {
  const collector = await startOtlpReceiver(t)
  const { host } = new URL(collector.url)
  const preloaded = join(t.testdir(), 'planted.mjs')
  writeFileSync(preloaded, "process.on('SIGHUP', () => { throw new Error('planted by the test') })")
  const env = { SENTRY_DSN: `http://the-key@${host}/42`, NODE_OPTIONS: `--import=${pathToFileURL(preloaded)}` }
  const server = await startServer(t, testEnvironment(await createTestDatabase(t), env))
  server.child.kill('SIGHUP')
  t.match(await server.exited, { code: 1 })
  t.match(collector.events, [{ level: 'fatal', exception: { values: [{ value: 'planted by the test' }] } }])

  collector.behave('is silent')
  const app = await startApp(t, { SENTRY_DSN: env.SENTRY_DSN, OTEL_TRACES_SAMPLER_ARG: '0' })
  app.errorReports?.report(new Error('one'), 'error')
  const startedAt = performance.now()
  await app.close()
  t.ok(performance.now() - startedAt < 10_000)
})

t.test('an address of Sentry is one of a project, and encrypted in production', async (t) => {
  const sentry = { endpoint: 'https://o1.ingest.sentry.io/api/42/integration/otlp', headers: Object }
  t.match(sentryDsn('https://key@o1.ingest.sentry.io/42'), sentry)
  t.match(sentryDsn('https://key@sentry.example/below/42'), { endpoint: /^https:\/\/sentry.example\/below\/api\/42\// })
  for (const wrong of ['https://sentry.example/42', 'https://key@sentry.example/', 'redis://key@x/1', 'nothing']) {
    t.throws(() => sentryDsn(wrong), /DSN of a project/, wrong)
  }
  const complaints = (env: Environment) =>
    unencryptedServices(readConfig({ JWT_SECRET: jwtSecret, ...env })).filter((text) => /^(?:OTEL|SENTRY)_/.test(text))
  t.match(complaints({ SENTRY_DSN: 'http://key@sentry.example/1' }), [/^SENTRY_DSN: /])
  t.strictSame(complaints({ OTEL_EXPORTER_OTLP_ENDPOINT: 'http://collector:4318' }), [])
})

t.test('a share of the requests is traced, and a client cannot raise it', async (t) => {
  const collector = await startOtlpReceiver(t)
  const app = await startApp(t, { OTEL_EXPORTER_OTLP_ENDPOINT: collector.url, OTEL_TRACES_SAMPLER_ARG: '0' })
  const acme = await createTenant(app, 'acme')
  await acme.send({ url: '/api/v1/users/me', headers: { traceparent: `00-${'1'.repeat(32)}-${'2'.repeat(16)}-01` } })
  await app.close()
  t.equal(collector.spans.length, 0)
})

t.test('the packages are loaded only where there is an endpoint', async (t) => {
  const urls = await createTestDatabase(t)
  const loaded = async (env: object) => {
    const program = `
      import { registerHooks } from 'node:module'
      let loaded = 0
      registerHooks({ resolve: (name, context, next) => { if (name.startsWith('@opentelemetry')) loaded++; return next(name, context) } })
      const { buildApp } = await import('${root}/src/app.ts')
      const { readConfig } = await import('${root}/src/config/config.ts')
      const app = buildApp(readConfig(process.env))
      await app.ready()
      await app.close()
      process.stdout.write(String(loaded))
      process.exit()`
    const { stdout } = await run(process.execPath, [...process.execArgv, '--input-type=module', '--eval', program], {
      env: { ...process.env, ...testEnvironment(urls), ...env } as NodeJS.ProcessEnv
    })
    return Number(stdout)
  }
  t.equal(await loaded({}), 0)
  t.ok((await loaded({ OTEL_EXPORTER_OTLP_ENDPOINT: 'http://127.0.0.1:9' })) > 3)
})
