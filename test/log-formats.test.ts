import type { FastifyInstance } from 'fastify'
import t, { type Test } from 'tap'
import { post, send, startApp } from './harness.ts'
import { startOtlpReceiver } from './otlp-receiver.ts'

/*
 * What a line of the log looks like in each LOG_FORMAT: the same facts under the names that its readers expect.
 */

/** Makes one path fail with 500. */
function plantFault(app: FastifyInstance): void {
  app.addHook('onRequest', async ({ url }) => {
    if (url.endsWith('/docs/broken'))
      throw Object.assign(new Error('broken', { cause: new TypeError('why') }), { errno: 7 })
  })
}

/** Makes a request that is logged, and one that fails. Resolves to the lines about them. */
async function logOf(t: Test, format: string) {
  const collector = await startOtlpReceiver(t)
  const traced = { OTEL_EXPORTER_OTLP_ENDPOINT: collector.url, OTEL_TRACES_SAMPLER_ARG: '1' }
  const app = await startApp(t, { LOG_LEVEL: 'info', LOG_FORMAT: format, ...traced }, undefined, plantFault)
  const email = 'nobody@acme.example'
  const login = post('/auth/login', { email, password: 'a wrong password' }, { 'x-request-id': 'asked-1' })
  await send(app, 'localhost', login)
  const broken = { url: '/api/v1/docs/broken', headers: { 'x-request-id': 'asked-2' } }
  await send(app, 'localhost', broken)
  await app.close()
  const lines = app.logLines.filter((line) => line.includes('asked-'))
  return { app, lines, span: collector.spans.find(({ name }) => name === 'POST /api/v1/auth/login') }
}

t.test('ecs', async (t) => {
  const { lines, span } = await logOf(t, 'ecs')
  const [request, failure] = lines.map((line) => JSON.parse(line))
  t.match(request, {
    '@timestamp': /^\d{4}-\d\d-\d\dT[\d:.]+Z$/,
    ...{ 'log.level': 'info', message: 'request', 'ecs.version': '8.11.0', 'service.name': 'aggios-api' },
    ...{ 'http.request.method': 'POST', 'url.path': '/api/v1/auth/login', 'http.response.status_code': 401 },
    ...{ 'http.request.id': 'asked-1', 'client.ip': '127.0.0.1', 'event.reason': 'invalid_credentials' },
    ...{ 'trace.id': span?.traceId, 'span.id': span?.spanId, 'process.pid': process.pid }
  })
  t.ok(Number.isInteger(request['event.duration']), 'nanoseconds')
  t.match(failure, {
    ...{ 'log.level': 'error', 'error.type': 'Error', 'error.message': 'broken', 'aggios.error': { errno: 7 } },
    'error.stack_trace': /^Error: broken\n.*\ncaused by: TypeError: why\n/s
  })
})

t.test('otel', async (t) => {
  const { lines, span } = await logOf(t, 'otel')
  const [request, failure] = lines.map((line) => JSON.parse(line))
  const { Timestamp, ...others } = request
  t.ok(Math.abs(Number(BigInt(Timestamp) / 1_000_000n) - Date.now()) < 60_000, 'nanoseconds, as a text')
  t.match(others, {
    ...{ SeverityText: 'INFO', SeverityNumber: 9, Body: 'request', TraceId: span?.traceId, SpanId: span?.spanId },
    Resource: { 'service.name': 'aggios-api', 'process.pid': process.pid },
    Attributes: {
      ...{ 'http.request.method': 'POST', 'url.path': '/api/v1/auth/login', 'http.response.status_code': 401 },
      ...{ 'aggios.request_id': 'asked-1', 'client.address': '127.0.0.1', 'aggios.problem': 'invalid_credentials' }
    }
  })
  t.match(failure, {
    ...{ SeverityText: 'ERROR', SeverityNumber: 17 },
    Attributes: {
      ...{ 'exception.type': 'Error', 'exception.message': 'broken', 'aggios.error': { errno: 7 } },
      ...{ 'exception.stacktrace': /caused by: TypeError: why\n/, 'aggios.request_id': 'asked-2' }
    }
  })
})

t.test('json', async (t) => {
  const { lines, span } = await logOf(t, 'json')
  t.match(JSON.parse(lines[0] as string), {
    ...{ level: 30, msg: 'request', request_id: 'asked-1', trace_id: span?.traceId, method: 'POST', status: 401 },
    ...{ ip: '127.0.0.1', code: 'invalid_credentials', url: '/api/v1/auth/login' }
  })
  t.match(JSON.parse(lines[1] as string), { level: 50, err: { message: 'broken', cause: { message: 'why' } } })
})

t.test('pretty', async (t) => {
  const { app, lines } = await logOf(t, 'pretty')
  t.match(
    lines[0],
    /^\[\d\d:\d\d:\d\d\.\d{3}\] INFO: request request_id=asked-1 .*status=401 code=invalid_credentials /
  )
  t.match(lines[1], /ERROR: .*request_id=asked-2.*\n {4}Error: broken\n {8}at .*\n {4}caused by: TypeError: why\n/s)
  app.log.warn({ name: 'a \u001b[2J b' }, 'cleared \u001b[2J')
  t.notMatch(app.logLines.join(''), '\u001b', 'what a terminal would act on is not printed')
})
