import { execFileSync } from 'node:child_process'
import { once } from 'node:events'
import http from 'node:http'
import { type AddressInfo, connect } from 'node:net'
import { setTimeout as sleep } from 'node:timers/promises'
import t from 'tap'
import { createDockerView } from '../src/processes/docker-view.ts'
import { startEngine } from './docker-engine.ts'
import {
  allRows,
  createTestDatabase,
  eventually,
  password,
  type Server,
  startServer,
  testEnvironment
} from './harness.ts'
import { freePort } from './ports.ts'
import { ask, complaints, program, type Question, readStatic, registration, startTraefik } from './traefik.ts'

// bounded in time: how soon a proxy notices
// rehearsal: several processes behind a real Traefik

/*
 * Traefik in front of the real product. Clients are told apart by their loopback address: 127.0.0.1 is the proxy's.
 */

t.test('Traefik in front of two processes', { skip: program.skip }, async (t) => {
  const database = await createTestDatabase(t)
  const env = testEnvironment(database, { TRUST_PROXY: '127.0.0.1', RATE_LIMIT_AUTH: '5/1m' })
  const [first, second] = await Promise.all([startServer(t, env), startServer(t, env)])
  const urls = [first, second].map(({ port }) => `http://127.0.0.1:${port}`)
  const traefik = await startTraefik(t, { BACKEND_URLS: urls.join(',') })
  const entry = traefik.port('local')

  const reply = await ask(entry, '/api/v1/auth/register', {
    host: 'api.localhost',
    method: 'POST',
    body: registration('acme'),
    from: '127.0.0.9'
  })
  t.equal(reply.status, 201, 'api. is the general host: people sign up there')
  const authorization = `Bearer ${reply.json().access_token}`

  t.test('a subdomain is an agency', async (t) => {
    for (const host of ['acme.localhost', `ACME.localhost:${entry}`]) {
      const tenant = await ask(entry, '/api/v1/tenant', { host, headers: { authorization } })
      t.equal(tenant.status, 200)
      t.match(tenant.json(), { slug: 'acme' })
    }
  })

  t.test('the base domain is the general host', async (t) => {
    const me = await ask(entry, '/api/users/me', { host: 'localhost:8080', headers: { authorization } })
    t.match(me.json(), { email: 'owner@acme.example' })
  })

  t.test('what no agency has and what is nobody\u2019s domain is for the backend to refuse', async (t) => {
    for (const [host, status, code] of [
      ['nobody.localhost', 404, 'tenant_not_found'],
      ['evil.example', 421, 'unknown_host'],
      ['acme.localhost.evil.example', 421, 'unknown_host'],
      ['a.b.localhost', 421, 'unknown_host']
    ] as const) {
      const refused = await ask(entry, '/api/v1/tenant', { host, headers: { authorization } })
      t.match(refused.headers, { 'content-type': /^application\/problem\+json/ }, host)
      t.match(refused.json(), { status, code }, host)
    }
  })

  t.test('what a client says about itself changes nothing', async (t) => {
    const lies = {
      'x-forwarded-for': '203.0.113.7',
      'x-real-ip': '203.0.113.7',
      forwarded: 'for=203.0.113.7;host=rival.localhost;proto=https',
      'x-forwarded-host': 'rival.localhost',
      'x-forwarded-proto': 'https',
      x_forwarded_for: '203.0.113.7',
      x_forwarded_host: 'rival.localhost',
      x_forwarded_proto: 'https'
    }
    const tenant = await ask(entry, '/api/v1/tenant', {
      host: 'acme.localhost',
      from: '127.0.0.9',
      headers: { authorization, ...lies }
    })
    t.match(tenant.json(), { slug: 'acme' })
    const signedIn = await ask(entry, '/api/auth/login', {
      host: 'acme.localhost',
      method: 'POST',
      body: { email: 'owner@acme.example', password },
      from: '127.0.0.10',
      headers: lies
    })
    t.equal(signedIn.status, 200)
    const sessions = await allRows(database, 'select host(ip) as ip from sessions order by created_at')
    t.strictSame(sessions, [{ ip: '127.0.0.9' }, { ip: '127.0.0.10' }])
    const events = await allRows(database, 'select distinct host(ip) as ip from audit_events order by ip')
    t.strictSame(events, [{ ip: '127.0.0.10' }, { ip: '127.0.0.9' }])
  })

  t.test('attempts are counted by the address that a client really has', async (t) => {
    const attempt = (number: number, from: string) =>
      ask(entry, '/api/auth/login', {
        host: 'localhost',
        method: 'POST',
        body: { email: `nobody${number}@acme.example`, password },
        from,
        headers: { 'x-forwarded-for': `203.0.113.${number}` }
      })
    const statuses: number[] = []
    // each of the two processes counts by itself
    for (let number = 0; number < 12; number++) statuses.push((await attempt(number, '127.0.0.11')).status)
    const admitted = statuses.indexOf(429)
    t.ok(admitted >= 5 && admitted <= 10, `${admitted} attempts`)
    t.strictSame(statuses.slice(0, admitted), Array(admitted).fill(401))
    t.strictSame(statuses.slice(-2), [429, 429])
    t.equal((await attempt(99, '127.0.0.12')).status, 401, 'another address is still welcome')
  })

  t.test('the dashboard is there in development, under its own name', async (t) => {
    const page = await ask(entry, '/dashboard/', { host: 'traefik.localhost' })
    t.equal(page.status, 200)
    t.match(page.text, 'Traefik')
    t.equal((await ask(entry, '/dashboard/', { host: 'localhost' })).status, 404)
  })

  t.test('Traefik has nothing to complain about', async (t) => {
    t.strictSame(complaints(traefik), [])
  })

  t.test('its own health check passes', async (t) => {
    execFileSync(program.path, ['healthcheck', `--configFile=${traefik.configFile}`], { stdio: 'ignore', env: {} })
    t.equal((await ask(traefik.port('ping'), '/ping')).status, 200)
  })

  t.test('a process that hangs is left out until it answers again', async (t) => {
    const state = async (server: Server) => {
      const service = await ask(entry, '/api/http/services/backend@file', { host: 'traefik.localhost' })
      return (service.json().serverStatus as Record<string, string>)[`http://127.0.0.1:${server.port}`]
    }
    t.equal(await state(first), 'UP')
    first.child.kill('SIGSTOP')
    await eventually(async () => (await state(first)) === 'DOWN', 20_000)
    const statuses = new Set<number>()
    for (let i = 0; i < 20; i++) statuses.add((await ask(entry, '/api/health', { host: 'localhost' })).status)
    t.strictSame([...statuses], [200])
    first.child.kill('SIGCONT')
    await eventually(async () => (await state(first)) === 'UP', 20_000)
  })

  t.test('no request is lost when a process is told to stop', async (t) => {
    const load = startLoad(entry)
    await sleep(500)
    second.child.kill('SIGTERM')
    t.strictSame(await second.exited, { code: 0, signal: null })
    // longer than the health check takes to notice
    await sleep(2500)
    const { answers, failures } = await load.stop()
    t.strictSame(failures, [])
    t.ok(answers > 100, `${answers} requests`)
  })
})

/** A light, constant load: a read and a write every 20 ms, on kept connections. */
function startLoad(port: number) {
  const agent = new http.Agent({ keepAlive: true })
  const pending = new Set<Promise<void>>()
  const failures: string[] = []
  let answers = 0
  const send = (expected: number, path: string, question: Question) => {
    const sent = ask(port, path, { host: 'localhost', agent, ...question })
      .then(
        ({ status }) => {
          answers++
          if (status !== expected) failures.push(`${path}: ${status}`)
        },
        (err) => void failures.push(`${path}: ${err.message}`)
      )
      .finally(() => pending.delete(sent))
    pending.add(sent)
  }
  const timer = setInterval(() => {
    send(200, '/api/health', {})
    send(401, '/api/v1/tenants', { method: 'POST', body: { name: 'Nobody', slug: 'nobody' } })
  }, 20)
  return {
    async stop() {
      clearInterval(timer)
      await Promise.all(pending)
      agent.destroy()
      return { answers, failures }
    }
  }
}

t.test('what reaches a server behind Traefik', { skip: program.skip }, async (t) => {
  const received: http.IncomingMessage[] = []
  const server = http.createServer((request, reply) => {
    if (!request.url?.startsWith('/api/v1/health/') && request.url !== '/api/health') received.push(request)
    // dies after it has received the whole request
    if (request.url === '/dies') return void request.resume().on('end', () => request.socket.destroy())
    reply.end('{}')
  })
  server.listen(0, '127.0.0.1')
  await once(server, 'listening')
  t.teardown(() => {
    server.close()
    server.closeAllConnections()
  })
  const { port } = server.address() as { port: number }
  const traefik = await startTraefik(t, { BACKEND_URLS: `http://127.0.0.1:${port}` }, (config) => {
    // the numbers only, which are minutes
    const timeouts = config.entryPoints.local?.transport?.respondingTimeouts ?? {}
    t.match(timeouts, { readTimeout: '15m', idleTimeout: '90s' })
    timeouts.readTimeout = timeouts.idleTimeout = '1s'
  })
  const entry = traefik.port('local')

  t.test('only what Traefik itself knows about the client', async (t) => {
    await ask(entry, '/told', {
      host: 'acme.localhost',
      from: '127.0.0.9',
      headers: {
        'x-forwarded-for': ['203.0.113.7', '203.0.113.8'],
        'x-forwarded-host': 'rival.localhost',
        'x-forwarded-port': '443',
        'x-forwarded-proto': 'https',
        'x-real-ip': '203.0.113.7',
        x_forwarded_for: '203.0.113.7',
        'x.forwarded.proto': 'https',
        // names these headers as hop-by-hop, so that a proxy drops them
        connection: 'close, x-forwarded-for, x-real-ip'
      }
    })
    const { headers } = received.at(-1) as http.IncomingMessage
    t.match(headers, {
      host: 'acme.localhost',
      'x-forwarded-for': '127.0.0.9',
      'x-forwarded-host': 'acme.localhost',
      'x-forwarded-port': /^(80|\d+)$/,
      'x-forwarded-proto': 'http',
      'x-real-ip': '127.0.0.9'
    })
    t.notMatch(JSON.stringify(headers), '203.0.113.')
    t.notHas(headers, 'x_forwarded_for')
    t.notHas(headers, 'x.forwarded.proto')
  })

  t.test('a write that a server has taken is not sent to another', async (t) => {
    const before = received.length
    const reply = await ask(entry, '/dies', { host: 'localhost', method: 'POST', body: {} })
    t.equal(reply.status, 502)
    t.equal(received.length - before, 1)
  })

  t.test('headers and bodies that do not come to an end are cut off, and so is an idle connection', async (t) => {
    const slow = [
      ['headers', 'GET /slow HTTP/1.1\r\nhost: localhost\r\n'],
      ['a body', 'POST /slow HTTP/1.1\r\nhost: localhost\r\ncontent-length: 100\r\n\r\n{'],
      ['idle', 'GET /api/health HTTP/1.1\r\nhost: localhost\r\n\r\n']
    ] as const
    await Promise.all(
      slow.map(async ([name, text]) => {
        const startedAt = Date.now()
        const socket = connect(entry, '127.0.0.1').on('error', () => {})
        socket.resume().write(text)
        await Promise.race([once(socket, 'close'), sleep(8000)])
        t.ok(socket.closed, name)
        t.ok(Date.now() - startedAt >= 900, `${name}, not at once`)
        socket.destroy()
      })
    )
  })
})

t.test('with Docker the containers of compose.yaml are found and routed alike', { skip: program.skip }, async (t) => {
  const database = await createTestDatabase(t)
  const env = testEnvironment(database, { TRUST_PROXY: '127.0.0.1' })
  const port = await freePort()
  const addresses = ['127.0.0.2', '127.0.0.3']
  for (const HOST of addresses) await startServer(t, { ...env, HOST, PORT: String(port) }, { ready: false })
  for (const address of addresses) {
    const get = () => fetch(`http://${address}:${port}/api/health`)
    await eventually(
      () =>
        get().then(
          (reply) => reply.ok,
          () => false
        ),
      30_000
    )
  }
  const engine = await startEngine(t, [
    ...addresses.map((address) => ({ service: 'backend', address, port })),
    { service: 'minio-gateway', address: '127.0.0.4', port },
    { service: 'postgres', address: '127.0.0.5', port }
  ])
  const view = createDockerView(engine.socket).listen(0, '127.0.0.1')
  await once(view, 'listening')
  t.teardown(() => {
    view.close()
    view.closeAllConnections()
  })
  const { port: viewPort } = view.address() as AddressInfo
  const traefik = await startTraefik(t, { BASE_DOMAIN: 'localhost' }, (config) => {
    const docker = readStatic().providers.docker
    t.match(docker, { endpoint: 'tcp://docker-view:2375' })
    config.providers.docker = { ...docker, endpoint: `tcp://127.0.0.1:${viewPort}` }
  })
  const entry = traefik.port('local')
  const overview = async (path: string): Promise<Record<string, unknown>[]> =>
    JSON.parse((await ask(entry, `/api/http/${path}`, { host: 'traefik.localhost' })).text)

  const routers = (await overview('routers')).filter(({ provider }) => provider !== 'internal')
  t.strictSame(
    routers.map(({ name, status, rule, entryPoints, service }) => ({ name, status, rule, entryPoints, service })),
    [
      ['backend-aggios@docker', 'Host(`backend-aggios`)', 'backend'],
      ['dashboard@file', 'Host(`traefik.localhost`)', 'api@internal'],
      ['local-streams@file', 'Path(`/api/v1/events`)', 'served'],
      ['local@file', 'PathPrefix(`/`)', 'served'],
      ['minio-console@docker', 'Host(`minio-console.localhost`)', 'minio-console'],
      ['minio@docker', 'Host(`minio.localhost`)', 'minio']
    ].map(([name, rule, service]) => ({ name, status: 'enabled', rule, entryPoints: ['local'], service }))
  )
  const backend = (await overview('services')).find(({ name }) => name === 'backend@docker')
  t.strictSame(
    backend?.serverStatus,
    Object.fromEntries(addresses.map((address) => [`http://${address}:${port}`, 'UP'])),
    'both are found on the network that they share with Traefik'
  )

  const reply = await ask(entry, '/api/v1/auth/register', {
    host: 'localhost',
    method: 'POST',
    body: registration('acme'),
    from: '127.0.0.9'
  })
  t.equal(reply.status, 201)
  const headers = { authorization: `Bearer ${reply.json().access_token}` }
  t.match((await ask(entry, '/api/v1/tenant', { host: 'acme.localhost', headers })).json(), { slug: 'acme' })
  t.match((await ask(entry, '/api/v1/tenant', { host: 'evil.example', headers })).json(), { code: 'unknown_host' })

  // the same two ways to say it: the labels of compose.yaml, and the dynamic file without Docker
  const { healthCheck, passHostHeader } = (backend?.loadBalancer ?? {}) as Record<string, unknown>
  t.match(healthCheck, { path: '/api/v1/health/ready' })
  const withoutDocker = await startTraefik(t, { BACKEND_URLS: `http://127.0.0.2:${port}` })
  const service = await ask(withoutDocker.port('local'), '/api/http/services/backend@file', {
    host: 'traefik.localhost'
  })
  t.match(service.json().loadBalancer, { healthCheck, passHostHeader })

  t.test('what Traefik sees of Docker contains no secret, and it can change nothing', async (t) => {
    const look = (path: string, method = 'GET') => fetch(`http://127.0.0.1:${viewPort}${path}`, { method })
    const list = (await (await look('/v1.50/containers/json?all=1')).json()) as { Id: string; Names: string[] }[]
    t.strictSame(list.map(({ Names: [name] }) => name).sort(), [
      '/aggios-backend-1',
      '/aggios-backend-2',
      '/aggios-minio-gateway-3'
    ])
    const [backend, postgres] = engine.containers.filter(({ Name }) => /backend-1|postgres/.test(Name))
    const inspection = await (await look(`/v1.50/containers/${backend?.Id}/json`)).text()
    t.match(inspection, '"traefik.enable":"true"')
    for (const text of [JSON.stringify(list), inspection]) t.notMatch(text, engine.secret)
    t.equal((await look(`/v1.50/containers/${postgres?.Id}/json`)).status, 404)

    const before = engine.asked.length
    for (const [method, path] of [
      ['POST', `/v1.50/containers/${backend?.Id}/exec`],
      ['POST', '/v1.50/containers/create'],
      ['DELETE', `/v1.50/containers/${backend?.Id}`],
      ['HEAD', '/v1.50/containers/json'],
      ['GET', `/v1.50/containers/${backend?.Id}/logs?stdout=1`],
      ['GET', `/v1.50/containers/${backend?.Id}/archive?path=/certificates`],
      ['GET', `/v1.50/containers/${backend?.Id}/json/../export`],
      ['GET', `/v1.50/containers/x%2f..%2f..%2finfo/json`],
      ['GET', '/v1.50/secrets'],
      ['GET', '/v1.50/images/json'],
      ['GET', '/info']
    ] as const) {
      t.equal((await look(path, method)).status, 403, `${method} ${path}`)
    }
    t.equal(engine.asked.length, before, 'Docker was asked nothing')
  })

  t.test('a container that starts is found, by an event without the command', async (t) => {
    const events = await fetch(`http://127.0.0.1:${viewPort}/v1.50/events`)
    const lines = events.body?.pipeThrough(new TextDecoderStream()).getReader()
    engine.emit({ Type: 'container', Action: `exec_start: psql ${engine.secret}`, Actor: { ID: 'a' } })
    engine.start({ service: 'backend', address: '127.0.0.6', port })
    const { value = '' } = (await lines?.read()) ?? {}
    t.match(JSON.parse(value), { Type: 'container', Action: 'start' })
    t.notMatch(value, engine.secret)
    await lines?.cancel()
    await eventually(async () => {
      const service = (await overview('services')).find(({ name }) => name === 'backend@docker')
      return Object.keys(service?.serverStatus as object).some((url) => url.includes('127.0.0.6'))
    })
  })
})
