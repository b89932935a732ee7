import { type ChildProcess, execFile, spawn } from 'node:child_process'
import { once } from 'node:events'
import { mkdtempSync, readFileSync, rmSync } from 'node:fs'
import { Socket } from 'node:net'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { setTimeout as sleep } from 'node:timers/promises'
import { promisify } from 'node:util'
import type { FastifyInstance, InjectOptions, LightMyRequestResponse } from 'fastify'
import type { Test } from 'tap'
import { buildApp } from '../src/app.ts'
import { argon2 } from '../src/auth/argon2.ts'
import { readConfig } from '../src/config/config.ts'
import type { Environment } from '../src/config/environment.ts'
import { EventStream } from '../src/events/event-stream.ts'
import { watchContract } from './contract-check.ts'
import { createDatabase, type DatabaseUrls, dropDatabase, templateDatabase, withClient } from './databases.ts'
import { stopwatch } from './machine.ts'
import { freePort } from './ports.ts'
import { recorder, recordTraffic } from './traffic.ts'

export const root = join(import.meta.dirname, '..')
/** The working directory of started programs. It is not the root, where a developer's own `.env` lies. */
export const elsewhere = tmpdir()
/** The entry point of the product. */
export const serverFile = join(root, 'src', 'server.ts')
/** The path of an operator's command in src/cli/. */
export const commandFile = (name: string) => join(root, 'src', 'cli', `${name}.ts`)
export const clientFolder = join(root, 'client')
/** The text of a file of the repository. */
export const readText = (path: string) => readFileSync(join(root, path), 'utf8')
/** Runs a program without a shell, and resolves to what it printed. */
export const run = promisify(execFile)
export const password = 'correct horse battery'
export const jwtSecret = 'a secret of the tests that is long enough for production too'

/** Skips a test where the run has PgBouncer: it shows what the product does on direct connections. */
export const withoutPooler = {
  skip: process.env.TEST_PGBOUNCER === '1' && 'PgBouncer in transaction mode keeps nothing on a connection'
}

/** Runs clean-up work at its end: a test, or a tool such as `npm run stack`. */
export type Owner = { teardown(work: () => unknown): unknown }

// a handle that a test left open would keep its file running until the time-out: print what is open, and exit
if (process.env.TAP === '1') {
  const { default: tap } = await import('tap')
  const late = () => {
    process.stderr.write(`left open: ${process.getActiveResourcesInfo().join(', ')}\n`)
    process.exit()
  }
  tap.teardown(() => {
    setTimeout(late, 5000).unref()
    // Node's ordinary exit closes every handle first, and waits for ever for some that were cut off
    process.once('beforeExit', () => process.exit())
    process.once('exit', (code) => (process as unknown as { reallyExit(code: number): never }).reallyExit(code))
  })
}

let count = 0

/** A migrated database of its own, dropped when the test ends. */
export async function createTestDatabase(t: Test): Promise<DatabaseUrls> {
  const name = `t_${process.pid}_${++count}`
  const urls = await createDatabase(name, templateDatabase)
  t.teardown(() => dropDatabase(name))
  return urls
}

/** A folder of its own, removed when the test ends. */
export function temporaryFolder(t: Owner): string {
  const dir = mkdtempSync(join(tmpdir(), 'aggios-test-'))
  // a server that was just killed may still be writing its last page
  t.teardown(() => rmSync(dir, { recursive: true, force: true, maxRetries: 20, retryDelay: 200 }))
  return dir
}

/**
 * The settings of the tests. Rate limits are off, and a test that needs one sets it. Nothing else weakens the product.
 */
export function testEnvironment(database: DatabaseUrls, env: Environment = {}): Environment {
  return {
    JWT_SECRET: jwtSecret,
    PASSWORD_PEPPER: 'a pepper of the tests',
    RATE_LIMIT: '0',
    RATE_LIMIT_KEY: '0',
    RATE_LIMIT_TENANT: '0',
    RATE_LIMIT_AUTH: '0',
    TENANTS_PER_DAY: '0',
    RATE_LIMIT_MAIL: '0',
    RATE_LIMIT_MAIL_UNVERIFIED: '0',
    RATE_LIMIT_MAIL_TO: '0',
    LOG_LEVEL: 'silent',
    // outside of a run of tests, as in `npm run faults`, the caller or the system removes it
    DATA_DIR: join(process.env.TEST_DIR ?? join(tmpdir(), 'aggios-data'), new URL(database.app).pathname.slice(1)),
    DATABASE_URL: database.serving,
    // without pipelined connections, reads by key take connections of the pool
    ...(database.serving !== database.app && { DATABASE_POOLER: 'transaction', DATABASE_POOL: '40' }),
    ...env
  }
}

/** Ends streams of events that `inject` has asked for, because it waits for the end of a reply. */
export function finishInjectedStreams(app: FastifyInstance): void {
  app.addHook('onSend', async ({ raw }, _reply, payload) => {
    if (payload instanceof EventStream && !(raw.socket instanceof Socket)) setTimeout(() => payload.finish(), 100)
  })
}

export type TestApp = FastifyInstance & { database: DatabaseUrls; logLines: string[] }

/** The application on a database of its own. `before` adds hooks while it is not ready yet. */
export async function startApp(
  t: Test,
  env: Environment = {},
  database?: DatabaseUrls,
  before?: (app: FastifyInstance) => void
): Promise<TestApp> {
  const urls = database ?? (await createTestDatabase(t))
  const logLines: string[] = []
  const logStream = { write: (line: string) => void logLines.push(line) }
  // a subprocess for each application would cost more CPU time than all that it hashes
  const app = buildApp(readConfig(testEnvironment(urls, env)), { logStream, hasher: argon2 })
  const faults = watchContract(app)
  finishInjectedStreams(app)
  before?.(app)
  t.teardown(async () => {
    await app.close()
    if (faults.length > 0) throw new Error(`not in the OpenAPI document:\n${faults.join('\n')}`)
  })
  await app.ready()
  recordTraffic(app as unknown as FastifyInstance)
  return Object.assign(app as unknown as FastifyInstance, { database: urls, logLines })
}

export type Tokens = { access_token: string; refresh_token: string; token_type: string; expires_in: number }
export type Reply = LightMyRequestResponse

/** Sends a request to a host: that of a tenant, or the general host `localhost`. */
export function send(app: FastifyInstance, host: string, options: InjectOptions | string): Promise<Reply> {
  const request = typeof options === 'string' ? { url: options } : options
  return app.inject({ ...request, headers: { host, ...request.headers } })
}

export const post = (url: string, payload: unknown, headers = {}) =>
  ({ method: 'POST', url: `/api/v1${url}`, payload: payload as object, headers }) as const

export type Tenant = {
  id: string
  slug: string
  host: string
  owner: { id: string; email: string; tokens: Tokens }
  /** Sends a request as the owner, on the tenant's host. A path alone is a GET. */
  send(options: InjectOptions | string): Promise<Reply>
  /** Sends a request without a token, on the tenant's host. */
  anonymous(options: InjectOptions | string): Promise<Reply>
  /** Sends a request with another token, on the tenant's host. */
  with(token: string, options: InjectOptions | string): Promise<Reply>
  /** Opens a new session of the owner. */
  signIn(): Promise<Tokens>
}

/** Registers an agency. Its owner is signed in. */
export async function createTenant(
  app: FastifyInstance,
  slug: string,
  email = `owner@${slug}.example`
): Promise<Tenant> {
  const body = { tenant: { name: `The ${slug} agency`, slug }, name: `Owner of ${slug}`, email, password }
  const reply = await send(app, 'localhost', post('/auth/register', body))
  if (reply.statusCode !== 201) throw new Error(`register: ${reply.statusCode} ${reply.body}`)
  const { user, tenant, ...tokens } = reply.json()
  const host = `${slug}.localhost`
  const withToken = (token: string, options: InjectOptions | string) => {
    const request = typeof options === 'string' ? { url: options } : options
    return send(app, host, { ...request, headers: { authorization: `Bearer ${token}`, ...request.headers } })
  }
  return {
    id: tenant.id,
    slug,
    host,
    owner: { id: user.id, email, tokens },
    send: (options) => withToken(tokens.access_token, options),
    anonymous: (options) => send(app, host, options),
    with: withToken,
    async signIn() {
      return (await send(app, host, post('/auth/login', { email, password }))).json()
    }
  }
}

/** Makes a user a member of a tenant by SQL, without an invitation. */
export async function addMember(app: TestApp, tenant: Tenant, userId: string, role: string): Promise<void> {
  await asOwner(app.database, tenant.id, userId, [
    ['insert into memberships (user_id, role) values ($1, $2)', [userId, role]]
  ])
}

/**
 * Runs statements in one transaction as the owner of the tables, in the scope of one tenant, as an operator's command
 * does.
 */
export async function asOwner(
  database: DatabaseUrls,
  tenantId: string,
  userId: string,
  statements: [text: string, values: unknown[]][]
): Promise<void> {
  await withClient(database.owner, async (client) => {
    await client.query('begin')
    await client.query("select set_config('app.tenant_id', $1, true), set_config('app.user_id', $2, true)", [
      tenantId,
      userId
    ])
    for (const [text, values] of statements) await client.query(text, values)
    await client.query('commit')
  })
}

/** Suspends or resumes a tenant, and publishes the change to every process. */
export function setStatus(app: TestApp, tenant: Tenant, status: 'active' | 'suspended'): Promise<void> {
  return asOwner(app.database, tenant.id, tenant.owner.id, [
    ['update tenants set status = $1 where id = $2', [status, tenant.id]],
    [
      "insert into changes (kind, subject, state, expires_at) values ('tenant', $1, $2, now() + interval '1 day')",
      [tenant.id, status]
    ]
  ])
}

/** Runs a query as the superuser, who sees the rows of all tenants. */
export async function allRows(database: Pick<DatabaseUrls, 'postgres'>, text: string, values: unknown[] = []) {
  return withClient(database.postgres, async (client) => (await client.query(text, values)).rows)
}

export type LoggedMail = { to: string; subject: string; text: string }

/** The mails to an address. A development server writes its mails to the log. */
export function mailsTo(app: TestApp, email: string): LoggedMail[] {
  return app.logLines.map((line) => JSON.parse(line).mail).filter((mail) => mail?.to === email)
}

/** The tokens in the mails to an address whose link leads to this path. */
export function mailedTokens(app: TestApp, email: string, path = '/invitations/accept'): string[] {
  return mailsTo(app, email).flatMap(({ text }) => text.split(`${path}?token=`)[1]?.match(/^[\w-]+/)?.[0] ?? [])
}

export type Server = {
  port: number
  url: string
  child: ChildProcess
  /** Everything that the process has written, to both streams. */
  output(): string
  fetch(path: string, init?: RequestInit & { host?: string }): Promise<Response>
  exited: Promise<{ code: number | null; signal: NodeJS.Signals | null }>
}

/**
 * Starts the product as a process of its own. Resolves when it is ready, or at once with `ready: false`. `prefix` is a
 * command that runs the server in its place, such as `prlimit`, and `file` the server of other sources.
 */
export async function startServer(
  t: Owner,
  env: Environment,
  { ready = true, prefix = [], file = serverFile }: { ready?: boolean; prefix?: string[]; file?: string } = {}
): Promise<Server> {
  const port = Number(env.PORT) || (await freePort())
  const [command = '', ...args] = [...prefix, process.execPath, ...process.execArgv, ...recorder.args, file]
  const child = spawn(command, args, {
    cwd: elsewhere,
    env: {
      PATH: process.env.PATH,
      HOME: process.env.HOME,
      PORT: String(port),
      ...recorder.env,
      ...env
    } as NodeJS.ProcessEnv,
    stdio: ['ignore', 'pipe', 'pipe']
  })
  let text = ''
  for (const stream of [child.stdout, child.stderr]) {
    stream.setEncoding('utf8').on('data', (chunk: string) => {
      text += chunk
    })
  }
  const exited = once(child, 'exit').then(([code, signal]) => ({ code, signal }))
  t.teardown(async () => {
    if (child.exitCode === null && child.signalCode === null) child.kill('SIGKILL')
    await exited
  })
  const url = `http://127.0.0.1:${port}`
  const server: Server = {
    port,
    url,
    child,
    output: () => text,
    exited,
    fetch: (path, { host, ...init } = {}) => fetch(`${url}${path}`, init)
  }
  if (ready) await waitUntilReady(server)
  return server
}

/** Whether a server says that it is ready for requests. A server that can't be reached is not. */
export async function isReady(server: Server): Promise<boolean> {
  const reply = await server.fetch('/api/v1/health/ready').catch(() => undefined)
  return reply?.status === 200
}

/** Resolves when the server is ready. Rejects when it has ended, and after a minute. */
export async function waitUntilReady(server: Server): Promise<void> {
  const elapsed = stopwatch()
  while (elapsed() < 60_000) {
    if (server.child.exitCode !== null) throw new Error(`the server ended:\n${server.output()}`)
    if (await isReady(server)) return
    await sleep(50)
  }
  throw new Error(`the server did not become ready:\n${server.output()}`)
}

/** Polls until `check` is true. Resolves to the milliseconds that it took, and rejects after `withinMs`. */
export async function eventually(check: () => Promise<boolean> | boolean, withinMs = 20_000): Promise<number> {
  const elapsed = stopwatch()
  while (!(await check())) {
    if (elapsed() > withinMs) throw new Error(`not within ${withinMs} ms`)
    await sleep(20)
  }
  return elapsed()
}
