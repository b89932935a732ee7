import { execFile } from 'node:child_process'
import { readdirSync, readFileSync, readlinkSync } from 'node:fs'
import { request as httpRequest } from 'node:http'
import { connect } from 'node:net'
import { promisify } from 'node:util'
import t from 'tap'
import { readConfig } from '../src/config/config.ts'
import { createHistogram, type Family, render } from '../src/metrics.ts'
import { buildInternal } from '../src/processes/internal-listener.ts'
import { type Exposition, parseExposition } from './exposition.ts'
import {
  createTestDatabase,
  eventually,
  jwtSecret,
  password,
  type Server,
  send,
  startApp,
  startServer,
  type Tokens,
  testEnvironment
} from './harness.ts'
import { findProgram } from './parts.ts'
import { freePort } from './ports.ts'

/*
 * The metrics for operators: they are right, they stay few, and they reveal nothing about a person or an agency.
 */

const promtool = findProgram('promtool')
const requests = 'http_request_duration_seconds_count'

t.test('a metric that can not be read costs nobody the others', async (t) => {
  const app = await startApp(t, { LOG_LEVEL: 'error' })
  app.metrics.gauge('aggios_broken', 'Is broken', () => {
    throw new Error('this one is broken')
  })
  app.metrics.gauge('aggios_whole', 'Is whole', () => 7)
  const collect = async () => new Map((await app.metrics.collect()).map(({ name, samples }) => [name, samples]))
  const before = await collect()
  t.strictSame(before.get('aggios_whole'), [{ value: 7 }])
  t.notOk(before.has('aggios_broken'))
  t.ok(before.has('nodejs_eventloop_active_seconds_total'))
  // of the page before: it is read ahead of the broken one
  t.strictSame((await collect()).get('aggios_metric_failures_total'), [{ value: 1 }])
  t.match(JSON.parse(app.logLines.at(-1) as string), {
    metric: 'aggios_broken',
    err: { message: 'this one is broken' }
  })
})

t.test('the text that Prometheus reads', async (t) => {
  const family = (name: string, text: string): Family => ({
    ...{ name, help: 'a\nb\\c', type: 'gauge' },
    samples: [{ labels: { text }, value: 1 }]
  })

  t.test('says every label as it is', async (t) => {
    for (const text of ['plain', '"quoted"', 'back\\slash', 'two\nlines', '\\n', '\\"', 'Zürich 東京', '', '}{,="']) {
      const { series } = parseExposition(render([{ worker: '1', families: [family('a', text)] }]))
      t.strictSame(series, [{ name: 'a', labels: { text, worker: '1' }, value: 1 }])
    }
  })
  t.test('names a family once, whichever process has it', async (t) => {
    const text = render([
      { worker: '1', families: [family('a', 'x'), family('b', 'x')] },
      { worker: '2', families: [family('b', 'x')] },
      { worker: '3', families: [family('a', 'x')] }
    ])
    t.equal(text.match(/^# TYPE /gm)?.length, 2)
    t.equal(parseExposition(text).series.length, 4)
  })
  t.test('has numbers in the way of Prometheus', async (t) => {
    const values = [Number.POSITIVE_INFINITY, Number.NEGATIVE_INFINITY, 0, 1e21, 1.5e-7, 0.1]
    const samples = values.map((value, i) => ({ labels: { i: String(i) }, value }))
    const { series } = parseExposition(
      render([{ worker: '1', families: [{ name: 'a', help: 'h', type: 'gauge', samples }] }])
    )
    t.strictSame(
      series.map(({ value }) => value),
      values
    )
  })
  t.test('is read strictly here: what is wrong is found', async (t) => {
    const head = '# HELP a h\n# TYPE a counter\n'
    const wrong = [
      'a 1\n',
      `${head}a_total{x="1"} 1`,
      '# HELP a_total h\n# TYPE a_total counter\na_total -1\n',
      '# HELP a h\n# TYPE a gauge\na{x="1",x="2"} 1\n',
      '# HELP a h\n# TYPE a gauge\na{x="1",} 1\n',
      '# HELP a h\n# TYPE a gauge\na{x="\\t"} 1\n',
      '# HELP a h\n# TYPE a gauge\na{x="1"} 1\na{x="1"} 2\n',
      '# HELP a h\n# TYPE a gauge\na 1,5\n',
      '# HELP a h\n# TYPE a gauge\nb 1\n',
      '# HELP a h\n# TYPE a gauge\n# TYPE a gauge\na 1\n',
      '# HELP a h\n# TYPE a histogram\na_bucket{le="1"} 2\na_bucket{le="+Inf"} 1\na_sum 1\na_count 1\n',
      '# HELP a h\n# TYPE a histogram\na_bucket{le="1"} 1\na_sum 1\na_count 1\n'
    ]
    for (const text of wrong) t.throws(() => parseExposition(text), JSON.stringify(text))
  })
})

t.test('a histogram', async (t) => {
  const bounds = [0.1, 1]
  t.test('counts each observation once, in the bucket whose bound it does not pass', async (t) => {
    const histogram = createHistogram(bounds)
    const row = histogram.series({ route: '/a' })
    for (const value of [0, 0.1, 0.100001, 1, 1.1, 100]) histogram.observe(row, value)
    const values = histogram.samples().map(({ suffix, labels, value }) => [suffix, labels?.le, value])
    t.strictSame(values.slice(0, 3), [
      ['_bucket', '0.1', 2],
      ['_bucket', '1', 4],
      ['_bucket', '+Inf', 6]
    ])
    t.equal(values[4]?.[2], 6)
    t.ok(Math.abs((values[3]?.[2] as number) - 102.300001) < 1e-9)
  })
  t.test('allocates nothing for an observation', async (t) => {
    const histogram = createHistogram(bounds)
    const row = histogram.series({})
    const observations = 500_000
    const growth = () => {
      const before = process.memoryUsage().heapUsed
      for (let i = 0; i < observations; i++) histogram.observe(row, i % 3)
      return process.memoryUsage().heapUsed - before
    }
    growth()
    // something else may allocate meanwhile, so the best of some tries; one number each would be 8 MB
    const least = Math.min(...Array.from({ length: 10 }, growth).map(Math.abs))
    t.ok(least < observations, `${least} bytes for ${observations} observations`)
  })
})

t.test('any plugin adds what it knows in a line', async (t) => {
  const app = await startApp(t)
  app.metrics.gauge('aggios_test_number', 'one', () => 41 + 1)
  app.metrics.counter('aggios_test_kinds_total', 'several', () => [{ labels: { kind: 'a' }, value: 7 }])
  const page = parseExposition(render([{ worker: '1', families: await app.metrics.collect() }]))
  t.equal(page.sum('aggios_test_number', { worker: '1' }), 42)
  t.equal(page.sum('aggios_test_kinds_total', { kind: 'a' }), 7)
  t.throws(() => app.metrics.gauge('aggios_test_number', 'again', () => 1), /aggios_test_number/)
  t.throws(() => app.metrics.gauge('aggios_test_total', 'not a counter', () => 1), /_total/)
  t.throws(() => app.metrics.counter('aggios_test', 'a counter', () => 1), /_total/)
  t.throws(() => app.metrics.gauge('Not a name', '', () => 1), /Not a name/)
})

type Answer = { status: number; body: string; headers: Record<string, unknown> }

/** Sends a request with any host name and method, which fetch can't. */
function ask(port: number, path: string, { method = 'GET', headers = {}, body = '' } = {}): Promise<Answer> {
  return new Promise((done, fail) => {
    const request = httpRequest({ host: '127.0.0.1', port, path, method, headers, agent: false }, async (reply) => {
      let text = ''
      for await (const chunk of reply) text += chunk
      done({ status: reply.statusCode ?? 0, body: text, headers: reply.headers })
    })
    request.on('error', fail).end(body)
  })
}

async function register(server: Server, slug: string) {
  const { body } = await ask(server.port, '/api/v1/auth/register', {
    method: 'POST',
    headers: { 'content-type': 'application/json' },
    body: JSON.stringify({
      tenant: { name: `The ${slug} agency`, slug },
      name: `Owner of ${slug}`,
      email: `owner@${slug}.example`,
      password
    })
  })
  return JSON.parse(body) as Tokens & { user: { id: string }; tenant: { id: string } }
}

t.test('a process with the internal listener', async (t) => {
  const urls = await createTestDatabase(t)
  const internalPort = await freePort()
  const env = testEnvironment(urls, { METRICS_PORT: String(internalPort), RATE_LIMIT_AUTH: '0' })
  const server = await startServer(t, env)
  const acme = await register(server, 'acme-of-the-canaries')
  const bearer = { authorization: `Bearer ${acme.access_token}` }
  const me = () => ask(server.port, '/api/v1/users/me', { headers: bearer })
  const scrape = async (): Promise<Exposition> => parseExposition((await ask(internalPort, '/metrics')).body)

  t.test('has a page of the right kind', async (t) => {
    const { status, headers } = await ask(internalPort, '/metrics')
    t.equal(status, 200)
    t.equal(headers['content-type'], 'text/plain; version=0.0.4; charset=utf-8')
    t.equal((await ask(internalPort, '/metrics', { method: 'HEAD' })).status, 200)
    const page = await scrape()
    t.ok(page.series.every(({ labels }) => labels.worker === '1'))
    t.equal(page.sum('aggios_worker_up'), 1)
  })

  t.test('counts each request once, by what it was and how it was answered', async (t) => {
    const before = await scrape()
    for (let i = 0; i < 3; i++) t.equal((await me()).status, 200)
    t.equal((await ask(server.port, '/api/users/me', { headers: bearer })).status, 200)
    t.equal((await ask(server.port, '/api/v1/users/me')).status, 401)
    t.equal((await ask(server.port, '/api/v1/users/me', { method: 'DELETE', headers: bearer })).status, 400)
    t.equal((await ask(server.port, '/api/v1/members/01890000-0000-7000-8000-000000000000')).status, 401)
    for (const path of ['/', '/nothing', '/api/v1/nothing', '/%']) await ask(server.port, path)
    t.equal((await ask(server.port, '/api/v1/users/me', { method: 'PUT' })).status, 405)
    const after = await scrape()
    const grown = (labels: Record<string, string>) =>
      after.sum(requests, labels) - (before.has(requests, labels) ? before.sum(requests, labels) : 0)
    const route = '/api/v1/users/me'
    t.equal(grown({ method: 'GET', route, status: '200' }), 4, 'the alias is the same route')
    t.equal(grown({ method: 'GET', route, status: '401' }), 1)
    t.equal(grown({ method: 'DELETE', route, status: '400' }), 1)
    t.equal(grown({ method: 'GET', route: '/api/v1/members/:user_id', status: '401' }), 1)
    t.equal(grown({ route: 'unmatched', status: '404' }), 3)
    t.equal(grown({ route: 'unmatched', status: '400' }), 1, 'a path that cannot be decoded')
    t.equal(grown({ route: 'unmatched', status: '405' }), 1)
    t.equal(grown({}), 12, 'and nothing else')
    const sum = after.sum('http_request_duration_seconds_sum', { method: 'GET', route, status: '200' })
    t.ok(sum > 0 && sum < 60, `in seconds: ${sum}`)
  })

  t.test('counts what never became a request by itself', async (t) => {
    const before = await scrape()
    const exchange = async (text: string) => {
      const socket = connect(server.port, '127.0.0.1')
      socket.end(text)
      let reply = ''
      for await (const chunk of socket) reply += chunk
      return Number(reply.split(' ')[1])
    }
    const head = (path: string, more = '') =>
      `GET ${path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n${more}\r\n`
    t.equal(await exchange('nothing that is HTTP\r\n\r\n'), 400)
    t.equal(await exchange(head('/', `X: ${'x'.repeat(20_000)}\r\n`)), 431)
    t.equal(await exchange(head(`/api/v1/members/${'x'.repeat(300)}`)), 400, 'the router refuses it')
    const after = await scrape()
    t.equal(after.sum('http_unreadable_total', { status: '400' }), 2)
    t.equal(after.sum('http_unreadable_total', { status: '431' }), 1)
    t.equal(after.sum(requests), before.sum(requests))
  })

  t.test('knows its caches, connections and queues', async (t) => {
    const before = await scrape()
    for (let i = 0; i < 5; i++) await me()
    await Promise.all(Array.from({ length: 3 }, (_, i) => register(server, `another-${i}`)))
    const page = await scrape()
    const grown = (name: string, labels = {}) => page.sum(name, labels) - before.sum(name, labels)
    t.equal(grown('aggios_token_cache_lookups_total', { result: 'hit' }), 5)
    t.equal(grown('aggios_token_cache_lookups_total', { result: 'miss' }), 0)
    t.equal(page.sum('aggios_token_cache_entries'), 1)
    t.equal(page.sum('aggios_pipeline_connected'), 2)
    t.equal(page.sum('aggios_pipeline_connects_total'), 2)
    t.ok(page.sum('aggios_pool_connections') >= 1)
    t.equal(page.sum('aggios_pool_waiting'), 0)
    t.equal(page.sum('aggios_pipeline_waiting'), 0)
    t.equal(page.sum('aggios_password_hashes_running'), 0)
    t.equal(page.sum('aggios_password_hashes_refused_total'), 0)
    t.equal(page.sum('aggios_password_hashing_info'), 1)
    t.ok(page.sum('aggios_revocation_lag_seconds') < 5)
    t.equal(page.sum('aggios_revocations'), 0)
    t.ok(grown('process_cpu_user_seconds_total') > 0)
    t.ok(page.sum('process_resident_memory_bytes') > 20e6)
    t.ok(grown('nodejs_eventloop_active_seconds_total') > 0)
    t.ok(page.sum('nodejs_eventloop_lag_seconds', { percentile: '100' }) < 60)
    t.ok(Math.abs(Date.now() / 1000 - page.sum('process_start_time_seconds')) < 600)
    t.equal(page.sum('http_requests_in_flight'), 0)
  })

  t.test('has the metrics of Node under the names that dashboards use', async (t) => {
    const { types } = await scrape()
    for (const [name, type] of [
      ['process_cpu_user_seconds_total', 'counter'],
      ['process_cpu_system_seconds_total', 'counter'],
      ['process_cpu_seconds_total', 'counter'],
      ['process_start_time_seconds', 'gauge'],
      ['process_resident_memory_bytes', 'gauge'],
      ['nodejs_heap_size_used_bytes', 'gauge'],
      ['nodejs_heap_size_total_bytes', 'gauge'],
      ['nodejs_heap_space_size_used_bytes', 'gauge'],
      ['nodejs_external_memory_bytes', 'gauge'],
      ['nodejs_eventloop_active_seconds_total', 'counter'],
      ['nodejs_eventloop_idle_seconds_total', 'counter'],
      ['nodejs_eventloop_lag_seconds', 'gauge'],
      ['nodejs_eventloop_lag_p99_seconds', 'gauge'],
      ['nodejs_gc_duration_seconds', 'histogram'],
      ['nodejs_version_info', 'gauge']
    ] as const) {
      t.equal(types.get(name), type, name)
    }
  })

  t.test('knows a revocation, and an agency that is asked for', async (t) => {
    const known = (await scrape()).sum('aggios_tenant_cache_entries', { kind: 'known' })
    const other = await register(server, 'other')
    const signOut = { method: 'POST', headers: { authorization: `Bearer ${other.access_token}` } }
    t.equal((await ask(server.port, '/api/v1/auth/logout', signOut)).status, 204)
    await ask(server.port, '/api/v1/tenant', { headers: { host: 'other.localhost' } })
    await ask(server.port, '/api/v1/tenant', { headers: { host: 'nobody-has-this.localhost' } })
    const page = await scrape()
    t.equal(page.sum('aggios_revocations'), 1)
    t.equal(page.sum('aggios_tenant_cache_entries', { kind: 'known' }), known + 1)
    t.ok(page.has('aggios_tenant_cache_entries', { kind: 'unknown' }))
  })

  t.test('sees what is under way, and who went away', async (t) => {
    const half = httpRequest({
      ...{ host: '127.0.0.1', port: server.port, method: 'PATCH', path: '/api/v1/users/me', agent: false },
      headers: { ...bearer, 'content-type': 'application/json', 'content-length': 100 }
    })
    half.on('error', () => {}).write('{')
    await eventually(async () => (await scrape()).sum('http_requests_in_flight') === 1)
    half.destroy()
    await eventually(async () => (await scrape()).sum('http_requests_in_flight') === 0)
    t.equal((await scrape()).sum('http_requests_abandoned_total'), 1)
  })

  t.test('has no more series after a thousand requests that a client made up', async (t) => {
    const methods = ['GET', 'POST', 'PUT', 'PATCH', 'DELETE', 'OPTIONS', 'PROPFIND', 'PURGE', 'MKCOL', 'QUERY']
    const madeUp = async (count: number, salt: string) => {
      for (let i = 0; i < count; i += 50) {
        await Promise.all(
          Array.from({ length: 50 }, (_, j) => {
            const id = `${salt}${i + j}`
            const paths = [`/${id}`, `/api/v1/${id}`, `/api/v1/members/${id}`, `/api/v1/users/me?x=${id}`, `/%${id}`]
            const headers = {
              host: `agency-${id}.localhost`,
              authorization: `Bearer ${id}`,
              origin: `http://${id}.example`
            }
            const method = methods[j % methods.length] as string
            return ask(server.port, paths[(i + j + Math.floor(j / 10)) % paths.length] as string, { method, headers })
          })
        )
      }
    }
    // each kind of answer once
    await madeUp(250, 'first')
    const before = await scrape()
    await madeUp(1000, 'then')
    const after = await scrape()
    t.equal(after.sum(requests) - before.sum(requests), 1000)
    t.equal(after.series.length, before.series.length)
    t.ok(after.series.length < 3000, `${after.series.length} series`)
    t.ok(
      after.series.filter(({ labels }) => labels.route === 'unmatched').every(({ labels }) => labels.method === 'any')
    )
  })

  t.test('tells nothing about anybody', async (t) => {
    const pages = [await ask(internalPort, '/metrics'), await ask(internalPort, '/health')].map(({ body }) => body)
    const secrets = {
      ...{ jwtSecret, password, pepper: env.PASSWORD_PEPPER, database: new URL(urls.app).password, url: urls.app },
      ...{ access: acme.access_token, refresh: acme.refresh_token, tenant: acme.tenant.id, user: acme.user.id },
      ...{ slug: 'canaries', email: '@', madeUp: 'then1' }
    }
    for (const page of pages)
      for (const [what, text] of Object.entries(secrets)) t.notOk(page.includes(String(text)), what)
  })

  t.test('says how it is in detail', async (t) => {
    const { status, body } = await ask(internalPort, '/health')
    t.equal(status, 200)
    const { version } = JSON.parse(readFileSync(new URL('../package.json', import.meta.url), 'utf8'))
    t.match(JSON.parse(body), {
      status: 'ok',
      version,
      revision: 'unknown',
      node: process.version,
      uptime_seconds: Number,
      workers: [
        {
          worker: '1',
          status: 'ok',
          pid: server.child.pid,
          draining: false,
          checks: { database: { status: 'ok', latency_ms: Number } },
          connections: { pool: { total: Number, waiting: 0 }, pipelines: [{ connected: true }, { connected: true }] },
          revocations: { lag_ms: Number }
        }
      ]
    })
    const outside = JSON.parse((await ask(server.port, '/api/v1/health')).body)
    const checks = { database: { status: 'ok' }, storage: { status: 'ok' } }
    t.strictSame(outside, { status: 'ok', checks }, 'and nobody else is told')
  })

  t.test('has nothing else there', async (t) => {
    for (const path of ['/', '/metrics/', '/api/v1/health', '/api/v1/users/me', '/debug']) {
      const { status, body, headers } = await ask(internalPort, path)
      t.match(JSON.parse(body), { status: 404, code: 'route_not_found', request_id: String }, path)
      t.equal(status, 404)
      t.match(headers['content-type'], 'application/problem+json')
    }
    t.match(JSON.parse((await ask(internalPort, '/metrics', { method: 'POST' })).body), { code: 'method_not_allowed' })
  })

  t.test('has none of it on the public port', async (t) => {
    for (const host of ['localhost', 'api.localhost', '127.0.0.1', `127.0.0.1:${internalPort}`]) {
      for (const path of ['/metrics', '/health', '/api/v1/metrics', '/api/metrics', '/api/v1/internal', '/debug']) {
        const { status, body } = await ask(server.port, path, { headers: { ...bearer, host } })
        t.equal(status, 404, `${path} at ${host}`)
        t.notMatch(body, /aggios_|nodejs_|latency/)
      }
    }
  })

  t.test('is understood by Prometheus itself', { skip: promtool.skip }, async (t) => {
    const { body } = await ask(internalPort, '/metrics')
    const check = promisify(execFile)(promtool.path, ['check', 'metrics'])
    check.child.stdin?.end(body)
    t.equal((await check).stderr, '')
  })

  t.test('ends with it', async (t) => {
    server.child.kill('SIGTERM')
    t.strictSame(await server.exited, { code: 0, signal: null })
    await t.rejects(ask(internalPort, '/health'), { code: 'ECONNREFUSED' })
  })
})

/** The ports on which a process listens. */
function listeningPorts(pid: number): number[] {
  const inodes = new Set<string>()
  for (const name of readdirSync(`/proc/${pid}/fd`)) {
    const [, inode] = /^socket:\[(\d+)\]$/.exec(readlinkSync(`/proc/${pid}/fd/${name}`)) ?? []
    if (inode !== undefined) inodes.add(inode)
  }
  return ['tcp', 'tcp6'].flatMap((table) =>
    readFileSync(`/proc/${pid}/net/${table}`, 'utf8')
      .split('\n')
      .slice(1)
      .map((line) => line.trim().split(/\s+/))
      .filter(([, , , state, , , , , , inode]) => state === '0A' && inodes.has(inode ?? ''))
      .map(([, local = '']) => Number.parseInt(local.split(':')[1] ?? '', 16))
  )
}

t.test('nobody listens where nobody said so', { skip: process.platform !== 'linux' && 'needs /proc' }, async (t) => {
  const urls = await createTestDatabase(t)
  const server = await startServer(t, testEnvironment(urls))
  t.strictSame(listeningPorts(server.child.pid as number), [server.port])
  t.equal((await ask(server.port, '/metrics')).status, 404)
})

t.test('a port of the internal listener that is taken is said', async (t) => {
  const urls = await createTestDatabase(t)
  const first = await startServer(t, testEnvironment(urls))
  const env = testEnvironment(urls, { METRICS_PORT: String(first.port) })
  const second = await startServer(t, env, { ready: false })
  t.strictSame(await second.exited, { code: 78, signal: null })
  t.match(second.output(), String(first.port))
})

t.test('limits say whom they know and how often they refused', async (t) => {
  const app = await startApp(t, { RATE_LIMIT: '3/1m' })
  const statuses: number[] = []
  for (let i = 0; i < 5; i++) statuses.push((await send(app, 'localhost', '/api/v1/users/me')).statusCode)
  t.strictSame(statuses, [401, 401, 401, 429, 429])
  const families = await app.metrics.collect()
  const seriesValue = (name: string, limit: string) =>
    families.find((family) => family.name === name)?.samples.find(({ labels }) => labels?.limit === limit)?.value
  t.equal(seriesValue('aggios_limit_keys', 'anonymous'), 1)
  t.equal(seriesValue('aggios_limit_refused_total', 'anonymous'), 2)
  for (const limit of ['preflight', 'user', 'tenant', 'route', 'address', 'account']) {
    t.equal(seriesValue('aggios_limit_refused_total', limit), 0, limit)
  }
})

t.test('the internal listener answers to no name of the Internet', async (t) => {
  const internal = buildInternal(readConfig({ JWT_SECRET: jwtSecret }), () => undefined)
  t.teardown(() => internal.close())
  const ask = async (host: string) => (await internal.inject({ url: '/health', headers: { host } })).statusCode
  for (const host of ['127.0.0.1:9464', '[::1]:9464', '10.1.2.3', 'localhost:9464', 'backend:9464']) {
    t.equal(await ask(host), 503, `${host}: nothing serves yet`)
  }
  for (const host of ['rebound.example', 'rebound.example:9464', 'localhost.evil.example', '127.0.0.1.evil.example']) {
    t.equal(await ask(host), 421, host)
  }
})

t.test('who lets others in without a word about NODE_ENV is told what that means', async (t) => {
  const database = await createTestDatabase(t)
  const environment = testEnvironment(database, { HOST: '0.0.0.0', LOG_LEVEL: 'warn', DATABASE_POOL: '3' })
  const [unset, meant] = await Promise.all([
    startServer(t, environment),
    startServer(t, { ...environment, NODE_ENV: 'development' })
  ])
  t.match(unset.output(), 'NODE_ENV is not set')
  t.notMatch(meant.output(), 'NODE_ENV is not set')
})
