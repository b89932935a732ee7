import { execFileSync } from 'node:child_process'
import { once } from 'node:events'
import { writeFileSync } from 'node:fs'
import { Agent, request as httpRequest, type IncomingMessage } from 'node:http'
import { connect } from 'node:net'
import { join } from 'node:path'
import { setTimeout as sleep } from 'node:timers/promises'
import { pathToFileURL } from 'node:url'
import t, { type Test } from 'tap'
import type { Environment } from '../src/config/environment.ts'
import type { DatabaseUrls } from './databases.ts'
import { type Exposition, parseExposition } from './exposition.ts'
import {
  createTestDatabase,
  eventually,
  password,
  type Server,
  startServer,
  type Tokens,
  testEnvironment
} from './harness.ts'
import { stopwatch } from './machine.ts'
import { findProgram } from './parts.ts'
import { accepts, freePort } from './ports.ts'

// bounded in time: how soon a worker is replaced
// rehearsal: several workers on one port, and their deaths

/*
 * Several workers on one port. All of them serve, the death of one affects only its own requests, and all end in good order.
 */

const prlimit = findProgram('prlimit')

/** The time that a start may take on a busy machine. */
const startMs = 60_000

/** A second until a revocation is in force, and another one for a busy machine. */
const soon = 2000

type Worker = { worker: string; status: string; pid: number }
type Cluster = Server & {
  internalPort: number
  workers(): Promise<Worker[]>
  scrape(): Promise<Exposition>
}

/** Starts the product with workers. Resolves when all of them serve. */
async function startCluster(t: Test, urls: DatabaseUrls, env: Environment = {}): Promise<Cluster> {
  const internalPort = await freePort()
  const settings = { WEB_CONCURRENCY: '2', METRICS_PORT: String(internalPort), DATABASE_POOL: '8', LOG_LEVEL: 'warn' }
  const server = await startServer(t, testEnvironment(urls, { ...settings, ...env }), { ready: false })
  const internal = async (path: string) => (await fetch(`http://127.0.0.1:${internalPort}${path}`)).text()
  const cluster = Object.assign(server, {
    internalPort,
    workers: async () => JSON.parse(await internal('/health')).workers as Worker[],
    scrape: async () => parseExposition(await internal('/metrics'))
  })
  await eventually(async () => {
    if (server.child.exitCode !== null) throw new Error(`the server ended:\n${server.output()}`)
    // at first nothing listens
    return allServe(cluster).catch(() => false)
  }, startMs)
  // no worker outlives the test, also if the primary is gone
  const pids = (await cluster.workers()).map(({ pid }) => pid)
  t.teardown(() => {
    for (const pid of pids.filter(isAlive)) process.kill(pid, 'SIGKILL')
  })
  return cluster
}

const allServe = async (cluster: Cluster) => (await cluster.workers()).every(({ status }) => status === 'ok')
const pidsOf = async (cluster: Cluster) => (await cluster.workers()).map(({ pid }) => pid)

function isAlive(pid: number): boolean {
  try {
    process.kill(pid, 0)
    return true
  } catch {
    return false
  }
}

type Call = { method?: string; token?: string; payload?: object; agent?: Agent | false }
type Answer = { status: number; body: Record<string, unknown>; kept: boolean }

const timeoutMs = 10_000

/** Sends a request, on a new connection unless `agent` keeps one. Rejects if there is no answer in time. */
function call(server: Server, path: string, { method = 'GET', token, payload, agent = false }: Call = {}) {
  return new Promise<Answer>((done, fail) => {
    const request = httpRequest({
      ...{ host: '127.0.0.1', port: server.port, path: `/api/v1${path}`, method, agent },
      headers: {
        ...(payload && { 'content-type': 'application/json' }),
        ...(token !== undefined && { authorization: `Bearer ${token}` })
      }
    })
    request.setTimeout(timeoutMs, () => request.destroy(new Error('nobody answers')))
    request.on('error', fail).on('response', async (reply) => {
      let text = ''
      try {
        for await (const chunk of reply) text += chunk
        const kept = reply.headers.connection !== 'close'
        done({ status: reply.statusCode ?? 0, body: text === '' ? {} : JSON.parse(text), kept })
      } catch (err) {
        fail(err)
      }
    })
    request.end(payload && JSON.stringify(payload))
  })
}

async function register(server: Server, slug: string): Promise<Tokens & { user: { id: string } }> {
  const payload = {
    tenant: { name: `The ${slug} agency`, slug },
    name: `Owner of ${slug}`,
    email: `owner@${slug}.example`,
    password
  }
  const { status, body } = await call(server, '/auth/register', { method: 'POST', payload })
  if (status !== 201) throw new Error(JSON.stringify(body))
  return body as never
}

/** Clients that send requests one after the other, each on a kept connection. They leave CPU time for a process that starts. */
function load(t: Test, server: Server, path: string, token: string | undefined, clients: number) {
  const agent = new Agent({ keepAlive: true, maxSockets: clients })
  t.teardown(() => agent.destroy())
  const counts = { answered: 0, wrong: [] as string[] }
  let running = true
  const loops = Array.from({ length: clients }, async () => {
    while (running) {
      try {
        const { status } = await call(server, path, { agent, ...(token !== undefined && { token }) })
        if (status === 200) counts.answered++
        else counts.wrong.push(String(status))
        await sleep(10)
      } catch (err) {
        counts.wrong.push((err as NodeJS.ErrnoException).code ?? (err as Error).message)
        await sleep(10)
      }
    }
  })
  return {
    counts,
    async stop() {
      running = false
      await Promise.all(loops)
      return counts
    }
  }
}

let held = 0

/** Begins requests that the server starts to read. `release` sends the rest of each. */
async function holdRequests(server: Server, count: number) {
  const { access_token: token } = await register(server, `held-${++held}`)
  const body = '{"name":"Served in time"}'
  const headers = {
    ...{ authorization: `Bearer ${token}`, expect: '100-continue' },
    ...{ 'content-type': 'application/json', 'content-length': body.length }
  }
  const path = '/api/v1/users/me'
  const requests = Array.from({ length: count }, () =>
    httpRequest({ host: '127.0.0.1', port: server.port, path, method: 'PATCH', agent: false, headers })
  )
  const answers = requests.map(async (request) => {
    const [reply] = (await once(request, 'response')) as [IncomingMessage]
    reply.resume()
    return { status: reply.statusCode, connection: reply.headers.connection }
  })
  const settled = Promise.allSettled(answers)
  for (const request of requests) request.flushHeaders()
  await Promise.all(requests.map((request) => once(request, 'continue')))
  return {
    /** Sends the rest. Resolves to the answers that are not 200 with a closed connection. */
    async release() {
      for (const request of requests) request.end(body)
      const served = (one: PromiseSettledResult<unknown>) =>
        JSON.stringify(one) === '{"status":"fulfilled","value":{"status":200,"connection":"close"}}'
      return (await settled).filter((one) => !served(one))
    }
  }
}

/** Writes code that each process loads before the product. */
function preload(t: Test, code: string): string {
  const file = join(t.testdir(), 'planted.mjs')
  writeFileSync(file, code)
  return `--import=${pathToFileURL(file)}`
}

/** Code that throws or rejects without a handler when SIGUSR2 arrives. */
const planted = (fault: string) => `process.on('SIGUSR2', () => { setImmediate(() => { ${fault} }) })`
const thrown = "throw new Error('planted by the test')"
const rejected = "Promise.reject(new Error('planted by the test'))"

t.test('two workers', async (t) => {
  const urls = await createTestDatabase(t)
  const cluster = await startCluster(t, urls, { NODE_OPTIONS: preload(t, planted(rejected)) })
  const count = (worker: string) => async () => {
    const page = await cluster.scrape()
    const labels = { worker, route: '/api/v1/health/live' }
    return page.has('http_request_duration_seconds_count', labels)
      ? page.sum('http_request_duration_seconds_count', labels)
      : 0
  }
  const counts = async () => [await count('1')(), await count('2')()] as const
  let restarts = 0

  t.test('are two processes, and neither is the first', async (t) => {
    const workers = await cluster.workers()
    t.strictSame(
      workers.map(({ worker }) => worker),
      ['1', '2']
    )
    t.equal(new Set([...workers.map(({ pid }) => pid), cluster.child.pid]).size, 3)
    t.equal(cluster.output().match(/REDIS_URL/g)?.length, 1, 'limits are not shared, which is said once')
  })

  t.test('both serve, and nothing that they do is counted twice or lost', async (t) => {
    let sent = 0
    await eventually(async () => {
      await Promise.all(Array.from({ length: 32 }, () => call(cluster, '/health/live')))
      sent += 32
      const [one, two] = await counts()
      return one > 0 && two > 0
    }, startMs)
    await eventually(async () => {
      const [one, two] = await counts()
      return one + two === sent
    })
    const page = await cluster.scrape()
    t.equal(page.sum('aggios_worker_up'), 2)
    const of = (name: string) => page.series.filter((each) => each.name === name).map(({ labels }) => labels.worker)
    t.strictSame(of('process_resident_memory_bytes').sort(), ['1', '2', 'primary'])
    t.strictSame(of('aggios_pool_waiting').sort(), ['1', '2'])
    t.equal(page.sum('aggios_worker_restarts_total'), 0)
    const requests = page.series.filter(({ name }) => name.startsWith('http_'))
    t.ok(requests.every(({ labels }) => labels.worker !== 'primary'))
  })

  t.test('who signs out at one is signed out at both', async (t) => {
    const { access_token: token } = await register(cluster, 'leaving')
    // connections stay with the worker that took them
    const agents: Agent[] = []
    t.teardown(() => {
      for (const agent of agents) agent.destroy()
    })
    const statuses = () =>
      Promise.all(agents.map(async (agent) => (await call(cluster, '/users/me', { token, agent })).status))
    // the system gives connections to either worker
    await eventually(async () => {
      for (let i = 0; i < 8; i++) agents.push(new Agent({ keepAlive: true, maxSockets: 1 }))
      t.strictSame(new Set(await statuses()), new Set([200]))
      const connections = (await cluster.scrape()).series.filter(({ name }) => name === 'http_connections')
      return connections.length === 2 && connections.every(({ value }) => value > 0)
    })
    t.equal((await call(cluster, '/auth/logout', { method: 'POST', token, agent: agents[0] as Agent })).status, 204)
    const ms = await eventually(async () => (await statuses()).every((status) => status === 401), soon)
    t.ok(ms <= soon, `${ms} ms`)
  })

  t.test('one that is killed under load is replaced, and fails nobody but those it was serving', async (t) => {
    const { access_token: token } = await register(cluster, 'loading')
    const clients = 12
    const running = load(t, cluster, '/users/me', token, clients)
    await eventually(() => running.counts.answered > 100)
    const [victim, other] = await pidsOf(cluster)
    process.kill(victim as number, 'SIGKILL')
    const answeredBefore = running.counts.answered
    await eventually(async () => {
      const workers = await cluster.workers()
      return workers.every(({ status, pid }) => status === 'ok' && pid !== victim)
    }, startMs)
    restarts++
    const { answered, wrong } = await running.stop()
    t.ok(answered > answeredBefore, `${answered - answeredBefore} were answered meanwhile`)
    t.ok(wrong.length <= clients, `${wrong.length} failed: ${wrong}`)
    t.ok(
      wrong.every((why) => why === 'ECONNRESET' || why === 'EPIPE'),
      `cut off and told so: ${wrong}`
    )
    t.ok((await pidsOf(cluster)).includes(other as number), 'the other one is the same process')
    const page = await cluster.scrape()
    t.equal(page.sum('aggios_worker_restarts_total', { worker: '1' }), restarts)
    t.match(cluster.output(), /"a worker ended and is replaced"/)
  })

  t.test('one that no longer answers is reported, and holds nobody up', async (t) => {
    const [, frozen] = await pidsOf(cluster)
    process.kill(frozen as number, 'SIGSTOP')
    const elapsed = stopwatch()
    const page = await cluster.scrape()
    t.ok(elapsed() < 10_000, 'in bounded time')
    t.equal(page.sum('aggios_worker_up', { worker: '1' }), 1)
    t.equal(page.sum('aggios_worker_up', { worker: '2' }), 0)
    t.notOk(page.has('aggios_pool_waiting', { worker: '2' }), 'and says nothing')
    t.match(await cluster.workers(), [{ status: 'ok' }, { worker: '2', status: 'silent' }])
    for (let i = 0; i < 20; i++) t.equal((await call(cluster, '/health/live')).status, 200)
    process.kill(frozen as number, 'SIGCONT')
    await eventually(() => allServe(cluster), startMs)
    t.equal((await pidsOf(cluster))[1], frozen)
  })

  t.test('one in which nobody caught a rejection ends and is replaced', async (t) => {
    const [faulty] = await pidsOf(cluster)
    process.kill(faulty as number, 'SIGUSR2')
    await eventually(async () => {
      const workers = await cluster.workers()
      return workers.every(({ status, pid }) => status === 'ok' && pid !== faulty)
    }, startMs)
    restarts++
    const lines = cluster.output().split('\n')
    const fatal = lines.filter((line) => line.includes('"level":60')).map((line) => JSON.parse(line))
    t.match(fatal, [{ pid: faulty, err: { message: 'planted by the test' } }])
    t.match(cluster.output(), new RegExp(`"pid":${faulty},"code":1`))
  })

  t.test('one that is asked to end lets its requests end, and is replaced', async (t) => {
    const { release } = await holdRequests(cluster, 6)
    const leaving = await pidsOf(cluster)
    for (const pid of leaving) process.kill(pid, 'SIGTERM')
    await eventually(async () => (await cluster.workers()).every(({ status }) => status !== 'ok'), startMs)
    t.strictSame(await release(), [])
    await eventually(async () => {
      const workers = await cluster.workers()
      return workers.every(({ status, pid }) => status === 'ok' && !leaving.includes(pid))
    }, startMs)
    t.equal((await call(cluster, '/health/live')).status, 200)
  })

  t.test('end together, and each request that they had taken is answered', async (t) => {
    const pids = await pidsOf(cluster)
    const { release } = await holdRequests(cluster, 8)
    cluster.child.kill('SIGTERM')
    await eventually(async () => !(await accepts(cluster.port)))
    t.strictSame(await release(), [])
    t.strictSame(await cluster.exited, { code: 0, signal: null })
    t.strictSame(pids.filter(isAlive), [])
    t.notMatch(cluster.output(), 'cut off')
  })
})

t.test('behind a proxy a deploy loses no request of a load that never stops', async (t) => {
  const urls = await createTestDatabase(t)
  const cluster = await startCluster(t, urls, { TRUST_PROXY: '127.0.0.1/32', SHUTDOWN_TIMEOUT: '10' })
  const { access_token: token } = await register(cluster, 'deployed')
  const agent = new Agent({ keepAlive: true, maxSockets: 8 })
  t.teardown(() => agent.destroy())
  // as a load balancer: checks the health on connections of its own, and sends no more requests after a negative answer
  let inRotation = true
  let refusedAs: unknown
  const watch = (async () => {
    while (inRotation) {
      const ready = await call(cluster, '/health/ready')
      if (ready.status !== 200) {
        refusedAs = ready.body.code
        inRotation = false
      }
      await sleep(250)
    }
  })()
  const statuses: number[] = []
  let closed = 0
  const clients = Array.from({ length: 8 }, async () => {
    while (inRotation) {
      const { status, kept } = await call(cluster, '/users/me', { token, agent })
      statuses.push(status)
      if (!kept) closed++
    }
  })
  await eventually(() => statuses.length > 200)
  const before = statuses.length
  const sinceSignal = stopwatch()
  cluster.child.kill('SIGTERM')
  // any request that fails rejects here
  await Promise.all([...clients, watch])
  t.equal(refusedAs, 'shutting_down')
  t.strictSame(new Set(statuses), new Set([200]), `${statuses.length} requests`)
  t.ok(statuses.length > before, 'it served on while it gave notice')
  t.ok(closed > 0, 'and let connections go with their answers')
  t.strictSame(await cluster.exited, { code: 0, signal: null })
  t.ok(sinceSignal() < 10_000)
})

t.test('a second signal ends all of them at once', async (t) => {
  const urls = await createTestDatabase(t)
  const cluster = await startCluster(t, urls, { SHUTDOWN_TIMEOUT: '30' })
  const pids = await pidsOf(cluster)
  const { release } = await holdRequests(cluster, 2)
  cluster.child.kill('SIGTERM')
  await eventually(async () => !(await accepts(cluster.port)))
  t.equal(cluster.child.exitCode, null, 'it waits')
  // what comes sooner is taken for the same signal
  await sleep(700)
  cluster.child.kill('SIGTERM')
  t.match(await cluster.exited, { code: 1 })
  await eventually(() => pids.filter(isAlive).length === 0)
  t.equal((await release()).length, 2, 'nobody is answered')
})

t.test('without their primary they give up the port, finish, and go', async (t) => {
  const urls = await createTestDatabase(t)
  const cluster = await startCluster(t, urls, { TRUST_PROXY: '127.0.0.1/32' })
  const pids = await pidsOf(cluster)
  const { release } = await holdRequests(cluster, 4)
  cluster.child.kill('SIGKILL')
  await cluster.exited
  await eventually(async () => !(await accepts(cluster.port)), soon)
  t.strictSame(await release(), [])
  await eventually(() => pids.filter(isAlive).length === 0)
})

/** Starts a server that can't run, and waits for its end. */
async function startHopeless(t: Test, env: Environment): Promise<{ code: number | null; output: string }> {
  const server = await startServer(t, { WEB_CONCURRENCY: '3', ...env }, { ready: false })
  const { code } = await server.exited
  t.notOk(await accepts(server.port), 'the port is free')
  return { code, output: server.output() }
}

t.test('what keeps them from starting is said once', async (t) => {
  const urls = await createTestDatabase(t)
  t.test('a configuration that is wrong', async (t) => {
    const { code, output } = await startHopeless(t, { NODE_ENV: 'production', DATABASE_POOL: 'many' })
    t.equal(code, 78)
    for (const name of ['DATABASE_URL', 'JWT_SECRET', 'DATABASE_POOL']) {
      t.equal(output.match(new RegExp(`^ *${name}: must`, 'gm'))?.length, 1, name)
    }
  })
  t.test('a port that is taken', async (t) => {
    const port = String((await startServer(t, testEnvironment(urls))).port)
    const server = await startServer(t, testEnvironment(urls, { PORT: port, WEB_CONCURRENCY: '3' }), { ready: false })
    t.strictSame(await server.exited, { code: 78, signal: null })
    t.equal(server.output().match(/ is taken/g)?.length, 1, server.output())
  })
})

t.test('workers that all die young end the whole, with their exit code', async (t) => {
  const urls = await createTestDatabase(t)
  const dies = `import cluster from 'node:cluster'
    const timer = setInterval(() => {
      if (cluster.worker?.state !== 'listening') return
      clearInterval(timer)
      setTimeout(() => process.exit(42), 100)
    }, 20)
    timer.unref()`
  const env = testEnvironment(urls, { WEB_CONCURRENCY: '2', NODE_OPTIONS: preload(t, dies), LOG_LEVEL: 'warn' })
  const { code, output } = await startHopeless(t, env)
  t.equal(code, 42)
  const replaced = output.match(/a worker ended and is replaced/g)?.length ?? 0
  t.equal(replaced, 4, 'five tries')
})

t.test('an exception that nobody caught ends a single process too, after its requests', async (t) => {
  const urls = await createTestDatabase(t)
  const server = await startServer(
    t,
    testEnvironment(urls, { NODE_OPTIONS: preload(t, planted(thrown)), LOG_LEVEL: 'warn' })
  )
  const { release } = await holdRequests(server, 3)
  server.child.kill('SIGUSR2')
  await eventually(async () => !(await accepts(server.port)))
  t.strictSame(await release(), [])
  t.strictSame(await server.exited, { code: 1, signal: null })
  const fatal = server
    .output()
    .split('\n')
    .find((line) => line.includes('"level":60')) as string
  t.match(JSON.parse(fatal), { err: { message: 'planted by the test', stack: String } })
})

t.test('a process that may open no more files stays alive, and serves again', { skip: prlimit.skip }, async (t) => {
  const urls = await createTestDatabase(t)
  const server = await startServer(t, testEnvironment(urls))
  const { access_token: token } = await register(server, 'crowded')
  execFileSync(prlimit.path, ['--pid', String(server.child.pid), '--nofile=128'])
  const sockets = Array.from({ length: 400 }, () => connect(server.port, '127.0.0.1').on('error', () => {}))
  // a connection without a free descriptor is closed at once
  await eventually(() => sockets.filter(({ closed }) => closed).length > 200, timeoutMs)
  t.equal(server.child.exitCode, null)
  for (const socket of sockets) socket.destroy()
  await eventually(async () => {
    const answer = await call(server, '/users/me', { token }).catch(() => undefined)
    return answer?.status === 200
  }, timeoutMs)
  t.notMatch(server.output(), '"level":60')
})
