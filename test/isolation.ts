import { createHash, randomBytes } from 'node:crypto'
import { setImmediate as breathe } from 'node:timers/promises'
import type { FastifyInstance, InjectOptions } from 'fastify'
import pg from 'pg'
import type { Test } from 'tap'
import { v7 as uuidv7 } from 'uuid'
import { buildApp } from '../src/app.ts'
import { createKeyRing } from '../src/auth/keys.ts'
import { type Access, allows, type Role, roles } from '../src/auth/roles.ts'
import { readConfig } from '../src/config/config.ts'
import { fileKey, imageKey, uploadKey } from '../src/files/store/keys.ts'
import { catalogue, Problem, problemDocument } from '../src/http/problems.ts'
import { type Call, fresh, type ObjectKind, type Policy, policies } from './authz-policy.ts'
import { tenantTables } from './catalogue.ts'
import { watchContract } from './contract-check.ts'
import { createTestDatabase, eventually, jwtSecret, password, type Reply, testEnvironment } from './harness.ts'
import { unknownId } from './requests.ts'
import { decode, encode, fingerprint, type Json, makeToken, seconds } from './tokens.ts'

/*
 * Every operation of the OpenAPI document by every actor who must not get through, and by those who must. The two come from
 * different places: the operations from the running application, who may call them from test/authz-policy.ts.
 */

export type Person = { id: string; email: string; role: Role; sid: string; token: string; refresh_token: string }
export type Side = { id: string; slug: string; host: string; canary: string; people: Record<Role, Person> }

/** A hole that a test makes: in the database, in the application before it is ready, or in what it has decorated. */
export type Hole = {
  plant?: string
  before?: (app: FastifyInstance) => void
  after?: (world: World) => void
}

export type Operation = { id: string; method: Method; path: string; access: Access; query: Json[]; body: boolean }
type Method = 'DELETE' | 'GET' | 'HEAD' | 'PATCH' | 'POST' | 'PUT'
const methods: Method[] = ['DELETE', 'GET', 'PATCH', 'POST', 'PUT']

export type World = {
  app: FastifyInstance
  /** As the superuser, who sees all rows. */
  sql: pg.Client
  operations: Operation[]
  /** What the table of routes and the document do not agree on. */
  disagreements: string[]
  /** Replies that are not in the document. */
  faults: string[]
  logLines: string[]
  a: Side
  b: Side
  /** Suspended. */
  c: Side
  /** Objects of B that were there once. */
  gone: Record<ObjectKind, string>
  wrongTokens: WrongToken[]
  plantSide(name: string): Promise<Side>
  plantPerson(side: Side, role: Role): Promise<Person>
  plantMember(side: Side, userId: string, role: Role): Promise<void>
  plantSession(side: Side, userId: string): Promise<string>
  plantInvitation(side: Side, role?: Role, email?: string): Promise<string>
  /** A file with bytes that name the agency; the owner's where nobody is named. */
  plantFile(side: Side, userId?: string, status?: 'ready' | 'deleted'): Promise<string>
  /** An upload that was begun. `direct`: its bytes have arrived. */
  plantUpload(side: Side, kind: 'direct' | 'resumable', userId?: string): Promise<string>
  plantImage(side: Side): Promise<string>
  close(): Promise<void>
}

type WrongToken = { id: string; title: string; authorization: string | undefined; status: number; code: string }

/** An application on a database of its own, and three agencies in it whose every text carries their name. */
export async function createWorld(t: Test, { plant, before, after }: Hole = {}): Promise<World> {
  const database = await createTestDatabase(t)
  const logLines: string[] = []
  // one connection for everything: what a request leaves behind on it meets the next one
  const config = readConfig(testEnvironment(database, { LOG_LEVEL: 'info', DATABASE_POOL: '1' }))
  const app = buildApp(config, { logStream: { write: (line) => void logLines.push(line) } })
  const routes: string[] = []
  const hidden: string[] = []
  app.addHook('onRoute', ({ method, url, schema }) => {
    for (const each of [method].flat()) {
      ;(schema?.hide || !schema ? hidden : routes).push(`${each} ${url.replaceAll(/:(\w+)/g, '{$1}')}`)
    }
  })
  const faults = watchContract(app)
  before?.(app)
  const sql = new pg.Client({ connectionString: database.postgres })
  let closed = false
  const close = async () => {
    if (closed) return
    closed = true
    await app.close()
    await sql.end()
  }
  t.teardown(close)
  await app.ready()
  await sql.connect()
  // an event under such a request id can't be written; and nobody seals B's log meanwhile
  await sql.query(`
    create function refuse_event() returns trigger language plpgsql as 'begin raise exception ''not this one''; end';
    create trigger unrecordable before insert on audit_events for each row
      when (new.request_id like 'unrecordable-%') execute function refuse_event();
    update audit_horizon set sealed_to = 'infinity'`)
  if (plant) await sql.query(plant)

  const documented = operationsOf(app)
  const named = documented.map(({ method, path }) => `${method} ${path}`)
  const world: World = {
    app,
    sql,
    operations: documented,
    disagreements: [
      ...routes
        // every GET has one
        .filter((route) => !(route.startsWith('HEAD ') && routes.includes(route.replace('HEAD', 'GET'))))
        .filter((route) => !named.includes(route))
        .map((route) => `${route} is not in the document`),
      ...named.filter((name) => !routes.includes(name)).map((name) => `${name} has no route`),
      ...hidden
        .filter(
          (route) => !/^((GET|HEAD) \/api\/v1\/docs\b|OPTIONS \*|OPTIONS \/api\/v1\/files\/resumable$)/.test(route)
        )
        .map((route) => `${route} is hidden`)
    ],
    faults,
    logLines,
    ...({} as Pick<World, 'a' | 'b' | 'c' | 'gone' | 'wrongTokens'>),
    ...(await planters(app, sql)),
    close
  }
  const [a, b, c] = [await world.plantSide('A'), await world.plantSide('B'), await world.plantSide('C')]
  Object.assign(world, { a, b, c })
  for (const side of [a, b]) {
    await world.plantMember(await world.plantSide('D'), side.people.owner.id, 'viewer')
    for (let i = 0; i < 2; i++) await world.plantSession(side, side.people.owner.id)
  }
  await sql.query("update tenants set status = 'suspended' where id = $1", [c.id])
  await publish(world, c, 'tenant', c.id, 'suspended')
  world.gone = {
    invitation: await world.plantInvitation(b),
    member: (await world.plantPerson(b, 'member')).id,
    session: await world.plantSession(b, b.people.owner.id),
    file: await world.plantFile(b),
    upload: await world.plantUpload(b, 'resumable')
  }
  await sql.query('delete from invitations where id = $1', [world.gone.invitation])
  await sql.query('delete from memberships where user_id = $1', [world.gone.member])
  await sql.query('delete from sessions where id = $1', [world.gone.session])
  await sql.query('delete from files where id in ($1, $2)', [world.gone.file, world.gone.upload])
  world.wrongTokens = await makeWrongTokens(world)
  await app.revocations.readNow()
  after?.(world)
  return world
}

function operationsOf(app: FastifyInstance): Operation[] {
  const { paths } = app.swagger() as unknown as { paths: Record<string, Record<string, Json>> }
  return Object.entries(paths).flatMap(([path, each]) =>
    Object.entries(each).map(([method, operation]) => ({
      id: String(operation.operationId),
      method: method.toUpperCase() as Method,
      path,
      access: operation['x-authz'] as Access,
      query: ((operation.parameters ?? []) as Json[]).filter((parameter) => parameter.in === 'query'),
      body: bodyOf(operation)?.content['application/json'] !== undefined
    }))
  )
}

const bodyOf = (operation: Json) => operation.requestBody as { content: Record<string, unknown> } | undefined

// == what is in the world ============================================================================================

async function planters(app: FastifyInstance, sql: pg.Client) {
  // hashed once: it is the same password for all
  const { password_hash, pepper_id } = await app.passwords.hash(password)

  async function plantMember(side: { id: string }, userId: string, role: Role): Promise<void> {
    await sql.query('insert into memberships (tenant_id, user_id, role) values ($1, $2, $3)', [side.id, userId, role])
  }

  async function plantSession(side: { id: string; canary?: string }, userId: string): Promise<string> {
    const id = uuidv7()
    await sql.query(
      `insert into sessions (tenant_id, id, user_id, expires_at, user_agent, ip)
       values ($1, $2, $3, now() + interval '1 day', $4, '203.0.113.7')`,
      [side.id, id, userId, `${side.canary} phone`]
    )
    return id
  }

  async function plantPerson(side: { id: string; canary: string }, role: Role): Promise<Person> {
    const id = uuidv7()
    const email = `${fresh(role)}@${side.canary}.example`
    await sql.query(
      'insert into users (id, email, name, password_hash, pepper_id, avatar_url) values ($1, $2, $3, $4, $5, $6)',
      [id, email, `${side.canary} ${role}`, password_hash, pepper_id, `https://${side.canary}.example/face.png`]
    )
    await plantMember(side, id, role)
    const sid = await plantSession(side, id)
    const { access_token, refresh_token } = app.tokens.issue({ user_id: id, email, tenant_id: side.id, role, sid }, 0)
    return { id, email, role, sid, token: access_token, refresh_token }
  }

  async function plantInvitation(
    side: Side,
    role: Role = 'viewer',
    email = `${fresh('guest')}@${side.canary}.example`
  ) {
    const id = uuidv7()
    await sql.query('insert into invitations (tenant_id, id, email, role, invited_by) values ($1, $2, $3, $4, $5)', [
      ...[side.id, id, email, role, side.people.owner.id]
    ])
    return id
  }

  /** Their bytes are an inch of text, each. */
  async function plantRow(side: Side, userId: string, status: string, content: Buffer): Promise<string> {
    const id = uuidv7()
    const sha256 = createHash('sha256').update(content).digest()
    await sql.query(
      `insert into files (tenant_id, id, status, name, folded_name, purpose, content_type, size, sha256, created_by, expires_at)
       values ($1, $2, $3, $4, $4, 'canary', 'text/plain', $5, $6, $7, $8)`,
      [
        ...[
          side.id,
          id,
          status,
          `${side.canary} notes.txt`,
          content.length,
          status === 'pending' ? null : sha256,
          userId
        ],
        status === 'ready' ? null : new Date(Date.now() + 86_400_000)
      ]
    )
    await sql.query(
      `insert into storage_usage as u (tenant_id, bytes) values ($1, $2)
       on conflict (tenant_id) do update set bytes = u.bytes + excluded.bytes`,
      [side.id, content.length]
    )
    return id
  }

  const contentOf = (side: Side) => Buffer.from(`${side.canary} writes this`)

  async function plantFile(side: Side, userId = side.people.owner.id, status: 'ready' | 'deleted' = 'ready') {
    const content = contentOf(side)
    const id = await plantRow(side, userId, status, content)
    await app.objects.put(fileKey(side.id, id), content)
    return id
  }

  async function plantUpload(side: Side, kind: 'direct' | 'resumable', userId = side.people.owner.id) {
    const content = contentOf(side)
    const id = await plantRow(side, userId, 'pending', content)
    const sha256 = kind === 'direct' ? createHash('sha256').update(content).digest() : null
    await sql.query('insert into uploads (tenant_id, id, sha256) values ($1, $2, $3)', [side.id, id, sha256])
    if (kind === 'direct') await app.objects.put(uploadKey(side.id, id), content)
    return id
  }

  async function plantImage(side: Side): Promise<string> {
    const id = uuidv7()
    await app.objects.put(imageKey(side.id, id), Buffer.from(side.canary))
    return id
  }

  async function plantSide(name: string): Promise<Side> {
    const id = uuidv7()
    const slug = `canary-${name.toLowerCase()}-${randomBytes(6).toString('hex')}`
    const settings = { allowed_origins: [`https://${slug}.example`] }
    await sql.query('insert into tenants (id, slug, name, settings, logo_url) values ($1, $2, $3, $4, $5)', [
      ...[id, slug, `The ${slug} agency`, settings, `https://${slug}.example/logo.png`]
    ])
    const people = {} as Record<Role, Person>
    for (const role of roles) people[role] = await plantPerson({ id, canary: slug }, role)
    const side: Side = { id, slug, host: `${slug}.localhost`, canary: slug, people }
    for (let i = 0; i < 2; i++) {
      await plantInvitation(side)
      // to be listed; a world is made often, and nobody reads their bytes
      await plantRow(side, people.owner.id, 'ready', contentOf(side))
    }
    await sql.query(
      `insert into audit_events (tenant_id, action, actor_id, target_id, user_agent, request_id, detail)
       select $1, 'canary.planted', $2, $3, $4::text, $4, jsonb_build_object('after', $4::text) from generate_series(1, 3)`,
      [id, people.owner.id, people.member.id, slug]
    )
    await sql.query(
      `insert into outbox (tenant_id, kind, subject_id, generation, sent_at, last_error)
       values ($1, 'invitation', $2, 1, now(), $3)`,
      [id, uuidv7(), slug]
    )
    return side
  }

  return {
    ...{ plantMember, plantSession, plantPerson, plantInvitation, plantSide },
    ...{ plantFile, plantUpload, plantImage }
  }
}

/** As an operator's command or another process would. */
async function publish(world: World, side: Side, kind: string, subject: string, state: string | null): Promise<void> {
  await world.sql.query(
    `insert into revocations (tenant_id, kind, subject, state, expires_at) values ($1, $2, $3, $4, now() + interval '1 day')`,
    [side.id, kind, subject, state]
  )
}

/** Tokens that are none, on the host of A; each would be that of an owner of A. */
async function makeWrongTokens(world: World): Promise<WrongToken[]> {
  const { a, b, app, sql } = world
  const plant = () => world.plantPerson(a, 'owner')
  const victim = await plant()
  const { header, claims } = decode(victim.token)
  const invalid: [id: string, title: string, token: string][] = []
  const add = (id: string, title: string, token: string) => invalid.push([id, title, token])
  const withHeader = (change: Json, secret = jwtSecret, digest = 'sha256') =>
    makeToken({ ...header, ...change }, claims, secret, digest)
  const withClaims = (change: Json) => makeToken(header, { ...claims, ...change }, jwtSecret)

  add('N4', 'not yet valid', withClaims({ nbf: seconds() + 3600 }))
  add('N4', 'issued in the future', withClaims({ iat: seconds() + 3600 }))
  add('N10', 'alg none without a signature', `${encode({ ...header, alg: 'none' })}.${encode(claims)}.`)
  add('N10', 'alg none over a signature', withHeader({ alg: 'none' }))
  add('N11', 'alg HS512', withHeader({ alg: 'HS512' }, jwtSecret, 'sha512'))
  add('N12', 'alg RS256', withHeader({ alg: 'RS256' }))
  add('N13', 'the empty key', withHeader({}, ''))
  add('N14', 'another key', withHeader({}, 'another secret that is long enough for production too'))
  add('N15', 'an unknown key id', withHeader({ kid: 'unknown-key' }))
  const retired = createKeyRing(['a retired secret that is long enough for production'], 'access token').first
  add('N16', 'a retired key', withHeader({ kid: retired.id }, retired.secret))
  const [head, body, signature = ''] = victim.token.split('.') as [string, string, string]
  add('N17', 'one bit of the signature', `${head}.${body}.${signature[0] === 'A' ? 'B' : 'A'}${signature.slice(1)}`)
  add(
    'N17',
    'other claims under the signature',
    `${head}.${encode({ ...claims, tenant_id: a.id, role: 'admin' })}.${signature}`
  )
  add('N18', 'a critical extension', withHeader({ crit: ['exp'] }))
  add('N19', 'another issuer', withClaims({ iss: 'https://api.example.com' }))
  add('N20', 'another audience', withClaims({ aud: 'example.com' }))
  add('N21', 'a refresh token', victim.refresh_token)
  const invitation = { tenant_id: a.id, id: unknownId, generation: 1 }
  add('N21', 'a mailed token', app.oneTimeTokens.issue('invitation', invitation))
  add('N21', 'a cursor', app.cursors.issue(`members ${a.id}`, [victim.id]))
  for (const name of ['tenant_id', 'user_id', 'sid', 'role', 'exp']) {
    add('N22', `without ${name}`, withClaims({ [name]: undefined }))
  }
  add('N23', 'of two agencies', withClaims({ tenant_id: [a.id, b.id] }))
  add('N23', 'of a role that there is not', withClaims({ role: 'root' }))

  const revoked = await plant()
  await sql.query('update sessions set revoked_at = now() where id = $1', [revoked.sid])
  await publish(world, a, 'session', revoked.sid, null)
  const disabled = await plant()
  await sql.query('update users set disabled_at = now() where id = $1', [disabled.id])
  await publish(world, a, 'session', disabled.sid, null)
  const removed = await plant()
  await sql.query('delete from memberships where user_id = $1', [removed.id])
  await publish(world, a, 'member', removed.id, null)
  const lowered = await plant()
  await sql.query("update memberships set role = 'viewer' where user_id = $1", [lowered.id])
  await publish(world, a, 'member', lowered.id, 'viewer')

  const refused = (id: string, title: string, authorization: string | undefined, code: string) => ({
    ...{ id, title, authorization, code },
    status: 401
  })
  return [
    refused('N1', 'no token', undefined, 'unauthenticated'),
    ...['', 'Bearer', 'Bearer ', 'Basic b3duZXI6cGFzc3dvcmQ=', `Token ${victim.token}`, `Bearer ${victim.token} x`].map(
      (text) => refused('N2', `Authorization: ${text.slice(0, 16)}`, text, 'unauthenticated')
    ),
    refused('N2', 'no token at all', 'Bearer x', 'invalid_token'),
    refused('N3', 'expired', `Bearer ${withClaims({ exp: seconds() - 1, iat: seconds() - 90 })}`, 'token_expired'),
    ...invalid.map(([id, title, token]) => refused(id, title, `Bearer ${token}`, 'invalid_token')),
    refused('N5', 'a revoked session', `Bearer ${revoked.token}`, 'session_revoked'),
    refused('N6', 'a disabled person', `Bearer ${disabled.token}`, 'session_revoked'),
    refused('N8', 'somebody who was removed', `Bearer ${removed.token}`, 'session_revoked'),
    refused('N9', 'a role that was lowered', `Bearer ${lowered.token}`, 'token_expired')
  ]
}

// == the matrix ======================================================================================================

export type Outcome = { operations: number; actors: number; cases: number; failures: string[] }
export type Options = {
  /** Of these operations only. */
  only?: readonly string[]
  /** Whether the first failure is enough. */
  hasty?: boolean
  /** Is told when an operation is done. */
  report?: (operation: string, cases: number, failures: string[]) => void
}

export const concernsFiles = ({ path }: Operation): boolean => /\/(files|images|avatar|logo)\b/.test(path)

/** All of it for the operations that are wanted, each a line of the test. */
export async function proveMatrix(t: Test, wanted: (operation: Operation) => boolean): Promise<Outcome> {
  const startedAt = performance.now()
  const world = await createWorld(t)
  const outcome = await runMatrix(world, {
    only: world.operations.filter(wanted).map(({ id }) => id),
    report: (operation, cases, failures) => t.strictSame(failures, [], `${operation}: ${cases} cases`)
  })
  t.strictSame(outcome.failures, [])
  const { operations, actors, cases, failures } = outcome
  const took = ((performance.now() - startedAt) / 1000).toFixed(1)
  t.comment(`${operations} operations x ${actors} actors: ${cases} cases, ${failures.length} failures, in ${took} s`)
  return outcome
}

type Attempt = { method: Method; url: string; host: string; headers: Record<string, string>; payload?: object | Buffer }
type Expected = { status: number; code: string; deniedIn?: Side; like?: object }

/** What is said besides to everybody, whatever there is. */
const sameDetails: Record<string, string> = {
  route_not_found: 'the API is described at /api/v1/docs, and for programs at /api/v1/openapi.json',
  slug_taken: 'another agency has this slug'
}

class Enough extends Error {}

/** Headers by which other stacks let a client say who it is. */
const claimsOfHeaders = (side: Side): Record<string, string>[] => [
  { 'x-tenant-id': side.id },
  { 'x-tenant': side.slug },
  { 'x-forwarded-host': side.host },
  { forwarded: `host=${side.host}` },
  { x_forwarded_host: side.host },
  { 'x-original-host': side.host },
  { 'x-host': side.host },
  { 'x-original-url': `http://${side.host}/` },
  { 'x-user-id': side.people.owner.id },
  { 'x-http-method-override': 'DELETE' },
  { cookie: `tenant_id=${side.id}; access_token=${side.people.owner.token}` }
]

export async function runMatrix(world: World, { only, hasty = false, report }: Options = {}): Promise<Outcome> {
  const matrix = new Matrix(world, hasty)
  const operations = world.operations.filter(({ id }) => !only || only.includes(id))
  try {
    matrix.compareTables()
    for (const operation of operations) {
      const [cases, failures] = [matrix.cases, matrix.failures.length]
      const policy = policies[operation.id]
      if (!policy) matrix.fail(operation.id, 'has no positive control in test/authz-policy.ts')
      else await matrix.tryOperation(operation, policy)
      report?.(operation.id, matrix.cases - cases, matrix.failures.slice(failures))
    }
    for (const path of new Set(operations.map(({ path }) => path))) await matrix.tryMethods(path)
    await matrix.lookForRememberedTenants()
    await matrix.compareDenials()
    matrix.searchLog()
    for (const fault of world.faults) matrix.fail('document', fault)
  } catch (err) {
    if (!(err instanceof Enough)) throw err
  }
  return { operations: operations.length, actors: matrix.actors.size, cases: matrix.cases, failures: matrix.failures }
}

class Matrix {
  readonly failures: string[] = []
  readonly actors = new Set<string>()
  cases = 0
  readonly #world: World
  readonly #hasty: boolean
  readonly #denials = new Map<string, string>()
  readonly #titles = new Map<string, string>()
  #tables: string[] | undefined
  #baseline: string[] | undefined

  constructor(world: World, hasty: boolean) {
    this.#world = world
    this.#hasty = hasty
  }

  fail(title: string, what: string): void {
    this.failures.push(`${title}: ${what}`)
    if (this.#hasty) throw new Enough()
  }

  compareTables(): void {
    for (const each of this.#world.disagreements) this.fail('routes', each)
    const known = new Set(this.#world.operations.map(({ id }) => id))
    for (const id of Object.keys(policies))
      if (!known.has(id)) this.fail(id, 'is in the policy and not in the document')
  }

  async tryOperation(operation: Operation, policy: Policy): Promise<void> {
    if (!operation.access) this.fail(operation.id, 'does not say who may call it (x-authz)')
    if (operation.access !== policy.access) {
      this.fail(operation.id, `is for ${operation.access} by the document and for ${policy.access} by the policy`)
    }
    await this.#control(operation, policy)
    // what was allowed may have left something to remove, which is none of what the others try
    await this.#world.app.objectSweep.run()
    if (policy.access === 'public') await this.#tryPublic(operation, policy)
    else await this.#tryGuarded(operation, policy, policy.access)
    await this.#tryBody(operation, policy)
    await this.#tryExcesses(operation, policy)
    if (policy.objects) await this.#tryObjects(operation, policy, policy.objects)
    if (policy.paged) await this.#tryCursor(operation, policy)
    if (policy.tagged) await this.#tryTags(operation, policy)
    if (policy.creates) await this.#tryRepetition(operation, policy)
    if (policy.audited) await this.#tryUnrecordable(operation, policy)
  }

  // -- who must get through ------------------------------------------------------------------------------------------

  async #control(operation: Operation, policy: Policy): Promise<void> {
    const { a, b } = this.#world
    // what a careless cache would remember
    if (operation.method === 'GET')
      await this.#allow(operation, policy, 'P0 in B', await policy.make(this.#world, b, 'owner'), [a])
    const admitted =
      policy.access === 'public' ? (['owner'] as const) : roles.filter((role) => mayCall(policy.access, role))
    for (const role of admitted) {
      await this.#allow(operation, policy, `R+ ${role}`, await policy.make(this.#world, a, role))
    }
    for (const { title, call } of policy.also ?? []) {
      await this.#allow(operation, policy, `X6 ${title}`, await call(this.#world))
    }
    const make = () => policy.make(this.#world, a, 'owner')
    await this.#allow(operation, policy, 'P0 on the general host', { ...(await make()), side: undefined })
    const claims = claimsOfHeaders(b)
    // one by one where that costs nothing
    const together = operation.method === 'GET' ? claims : [Object.assign({}, ...claims)]
    for (const headers of together) {
      const title = `X11 ${Object.keys(headers).length === 1 ? Object.keys(headers)[0] : 'all headers'}`
      const call = await make()
      await this.#allow(operation, policy, title, { ...call, headers: { ...call.headers, ...headers } })
    }
  }

  async #tryPublic(operation: Operation, policy: Policy): Promise<void> {
    const { a, c, wrongTokens } = this.#world
    const call = await policy.make(this.#world, a, 'owner')
    const attempt = attemptOf(operation, { ...call, side: a })
    if (policy.host !== 'any') {
      await this.#refuse(operation, 'H1 an unknown agency', { ...attempt, host: 'nobody.localhost' }, tenantNotFound)
      await this.#refuse(operation, 'H2 a foreign host', { ...attempt, host: 'example.com' }, unknownHost)
      await this.#refuse(operation, 'N7 a suspended agency', { ...attempt, host: c.host }, tenantNotFound)
    } else {
      for (const host of ['nobody.localhost', 'example.com', c.host]) {
        await this.#expect(operation, `H1 ${host === c.host ? 'suspended' : host}`, { ...attempt, host }, policy.status)
      }
    }
    for (const { id, title, authorization, status, code } of wrongTokens) {
      const name = `${id} ${title}`
      const headers = { ...(authorization !== undefined && { authorization }) }
      if (policy.bearer === 'ignored' || (policy.bearer === 'costly' && ['N3', 'N5', 'N14'].includes(id))) {
        await this.#allow(operation, policy, name, { ...(await policy.make(this.#world, a, 'owner')), headers })
      } else if (policy.bearer === 'looked at' && authorization !== undefined) {
        await this.#refuse(operation, name, { ...attempt, headers }, { status, code })
      } else if (policy.bearer === 'signature' && /unauthenticated|invalid_token/.test(code)) {
        const { payload: _, ...bare } = attempt
        await this.#refuse(operation, name, { ...bare, headers }, { status, code })
      }
    }
  }

  // -- who must not --------------------------------------------------------------------------------------------------

  async #tryGuarded(operation: Operation, policy: Policy, access: Role | 'user' | 'internal'): Promise<void> {
    const { a, b, c, wrongTokens } = this.#world
    const call = await policy.make(this.#world, a, 'owner')
    const own = attemptOf(operation, { ...call, side: a, caller: undefined })
    const as = (person: Person, attempt = own) => ({ ...attempt, headers: { ...attempt.headers, ...bearerOf(person) } })
    const mismatch = (side: Side) => ({ status: 403, code: 'tenant_mismatch', deniedIn: side })

    for (const { id, title, authorization, status, code } of wrongTokens) {
      const headers = { ...own.headers, ...(authorization !== undefined && { authorization }) }
      await this.#refuse(operation, `${id} ${title}`, { ...own, headers }, { status, code })
    }
    const suspended = { status: 403, code: 'tenant_suspended' }
    await this.#refuse(operation, 'N7 on its host', as(c.people.owner, { ...own, host: c.host }), suspended)
    await this.#refuse(
      operation,
      'N7 on the general host',
      as(c.people.owner, { ...own, host: 'localhost' }),
      suspended
    )
    await this.#refuse(operation, 'N7 no token', { ...own, host: c.host }, tenantNotFound)
    await this.#refuse(operation, 'N7 somebody of A', as(a.people.owner, { ...own, host: c.host }), tenantNotFound)
    await this.#refuse(
      operation,
      'H1 an unknown agency',
      as(a.people.owner, { ...own, host: 'nobody.localhost' }),
      tenantNotFound
    )
    await this.#refuse(operation, 'H2 a foreign host', as(a.people.owner, { ...own, host: 'example.com' }), unknownHost)

    for (const role of roles) {
      await this.#refuse(operation, `X1 ${role} of B on the host of A`, as(b.people[role]), mismatch(b))
      await this.#refuse(
        operation,
        `X3 ${role} of A on the host of B`,
        as(a.people[role], { ...own, host: b.host }),
        mismatch(a)
      )
    }
    for (const headers of claimsOfHeaders(a)) {
      const attempt = { ...own, host: b.host, headers: { ...own.headers, ...headers } }
      await this.#refuse(operation, `X3 ${Object.keys(headers)[0]}`, as(a.people.owner, attempt), mismatch(a))
    }
    for (const role of roles.filter((each) => !mayCall(access, each))) {
      const expected = { status: 403, code: 'forbidden', deniedIn: a }
      await this.#refuse(operation, `R ${role}`, as(a.people[role]), expected)
      await this.#refuse(
        operation,
        `R ${role} on the general host`,
        as(a.people[role], { ...own, host: 'localhost' }),
        expected
      )
    }
    await this.#tryPaths(operation, own, as)
  }

  /** Other ways to write a path lead nowhere, or to the same guard. */
  async #tryPaths(
    operation: Operation,
    own: Attempt,
    as: (person: Person, attempt: Attempt) => Attempt
  ): Promise<void> {
    const { a, b } = this.#world
    const [path, query] = own.url.split('?') as [string, string | undefined]
    const last = path.lastIndexOf('/') + 1
    const variants = {
      'an encoded letter': `${path.slice(0, 8)}${encodeAll(path.slice(8, 9))}${path.slice(9)}`,
      'an encoded word': path.slice(0, last) + encodeAll(path.slice(last)),
      'two slashes': path.replace('/v1/', '/v1//'),
      'two slashes before all': `/${path}`,
      'a dot': path.replace('/v1/', '/v1/./'),
      'a parent': path.replace('/v1/', '/v1/x/../'),
      'an encoded slash': path.replace('/v1/', '/v1%2f'),
      'a parameter of the path': `${path};x=1`,
      'a zero byte': `${path}%00`,
      'upper case': path.toUpperCase(),
      'a slash at the end': `${path}/`,
      'a suffix': `${path}.json`
    }
    for (const [title, variant] of Object.entries(variants)) {
      const attempt = { ...own, url: query === undefined ? variant : `${variant}?${query}` }
      const unknown = ['route_not_found', 'validation_failed', 'method_not_allowed']
      await this.#refuseAs(operation, `V2 ${title}, no token`, attempt, ['unauthenticated', ...unknown])
      const there = as(a.people.owner, { ...attempt, host: b.host })
      const reply = await this.#refuseAs(operation, `V2 ${title} on the host of B`, there, [
        'tenant_mismatch',
        ...unknown
      ])
      if (reply.statusCode === 403) this.#denials.set(reply.headers['x-request-id'] as string, a.id)
    }
  }

  /** A body that says whose it is. */
  async #tryBody(operation: Operation, policy: Policy): Promise<void> {
    if (!operation.body) return
    const { a, b } = this.#world
    const call = await policy.make(this.#world, a, 'owner')
    await this.#rebase()
    for (const [name, value] of Object.entries({
      tenant_id: b.id,
      tenantId: b.id,
      id: b.id,
      owner_id: b.people.owner.id,
      created_by: b.people.owner.id,
      actor_id: b.people.owner.id,
      __role: 'owner',
      status: 'suspended',
      version: 1
    })) {
      const body = { ...call.body, [name]: value }
      const attempt = attemptOf(operation, { ...call, body })
      await this.#refuse(operation, `X12 ${name}`, attempt, { status: 400, code: 'validation_failed' })
    }
  }

  async #tryExcesses(operation: Operation, policy: Policy): Promise<void> {
    for (const { title, status, code, denied, call, likeNothing } of policy.excesses ?? []) {
      const none = likeNothing && (await this.#ask(attemptOf(operation, await likeNothing(this.#world))))
      await this.#rebase()
      const attempt = attemptOf(operation, await call(this.#world))
      await this.#rebase()
      const expected = {
        status,
        code,
        ...(denied && { deniedIn: this.#world[denied] }),
        ...(none && { like: fingerprint(none) })
      }
      await this.#refuse(operation, `X6 ${title}`, attempt, expected)
    }
  }

  /** B's objects under A's token: as if there were none. */
  async #tryObjects(operation: Operation, policy: Policy, objects: Record<string, ObjectKind>): Promise<void> {
    const { a, b, gone } = this.#world
    const call = await policy.make(this.#world, a, 'owner')
    await this.#rebase()
    const names = Object.keys(objects)
    const [invitation] = (await this.#world.sql.query('select id from invitations where tenant_id = $1', [b.id])).rows
    const standing: Record<ObjectKind, string> = {
      invitation: invitation.id,
      member: b.people.member.id,
      session: b.people.owner.sid,
      file: await this.#world.plantFile(b),
      upload: await this.#world.plantUpload(b, 'direct')
    }
    await this.#rebase()
    // of several parameters each one, and all of them
    for (const replaced of names.length === 1 ? [names] : [...names.map((name) => [name]), names]) {
      const withIds = (idOf: (kind: ObjectKind) => string, host: string) => {
        const ids = replaced.map((name) => [name, idOf(objects[name] as ObjectKind)])
        const attempt = attemptOf(operation, {
          ...call,
          caller: a.people.owner,
          params: { ...call.params, ...Object.fromEntries(ids) }
        })
        return { ...attempt, host }
      }
      for (const host of [a.host, 'localhost']) {
        const none = await this.#ask(withIds(() => unknownId, host))
        const expected = { status: 404, code: 'not_found', like: fingerprint(none) }
        const where = host === 'localhost' ? ' on the general host' : ''
        await this.#refuse(
          operation,
          `X4 ${replaced} of B${where}`,
          withIds((kind) => standing[kind], host),
          expected
        )
        await this.#refuse(
          operation,
          `X4 ${replaced} of B that is gone${where}`,
          withIds((kind) => gone[kind], host),
          expected
        )
      }
      const theirs = withIds((kind) => standing[kind], a.host)
      const attempt = { ...theirs, headers: { ...theirs.headers, ...bearerOf(b.people.owner) } }
      await this.#refuse(operation, `X2 ${replaced} of B by its owner on the host of A`, attempt, {
        ...{ status: 403, code: 'tenant_mismatch' },
        deniedIn: b
      })
    }
  }

  async #tryCursor(operation: Operation, policy: Policy): Promise<void> {
    const { a, b } = this.#world
    const theirs = attemptOf(operation, { ...(await policy.make(this.#world, b, 'owner')), query: { limit: '1' } })
    const cursor: unknown = (await this.#ask(theirs)).json().next_cursor
    if (typeof cursor !== 'string') throw new Error(`${operation.id}: B has no second page`)
    const own = await policy.make(this.#world, a, 'owner')
    const made = await this.#ask(attemptOf(operation, { ...own, query: { cursor: 'bm9uZQ' } }))
    await this.#refuse(operation, 'X8 the cursor of B', attemptOf(operation, { ...own, query: { cursor } }), {
      ...{ status: 400, code: 'invalid_cursor' },
      like: fingerprint(made)
    })
    for (const { name, schema } of operation.query as { name: string; schema: { format?: string } }[]) {
      if (schema.format !== 'uuid') continue
      const ask = (id: string) => this.#ask(attemptOf(operation, { ...own, query: { [name]: id } }))
      const [found, none] = [await ask(b.people.owner.id), await ask(unknownId)]
      this.#count(`X5 ${name}`)
      if (JSON.stringify(fingerprint(found)) !== JSON.stringify(fingerprint(none))) {
        this.fail(operation.id, `X5 ${name} of B is not like an unknown one`)
      }
    }
  }

  async #tryTags(operation: Operation, policy: Policy): Promise<void> {
    const { a, b } = this.#world
    const page = { ...attemptOf(operation, { caller: b.people.owner, side: b }), method: 'GET' as const }
    const tag = (await this.#ask(page)).headers.etag
    if (typeof tag !== 'string') throw new Error(`${operation.id}: B has no tag`)
    const call = await policy.make(this.#world, a, 'owner')
    if (operation.method === 'GET') {
      await this.#allow(operation, policy, 'X7 the tag of B', { ...call, headers: { 'if-none-match': tag } })
      return
    }
    const made = await this.#ask(attemptOf(operation, { ...call, headers: { 'if-match': '"none"' } }))
    await this.#rebase()
    await this.#refuse(operation, 'X7 the tag of B', attemptOf(operation, { ...call, headers: { 'if-match': tag } }), {
      ...{ status: 412, code: 'precondition_failed' },
      like: fingerprint(made)
    })
  }

  /** A key under which B has made something is a new one to A. */
  async #tryRepetition(operation: Operation, policy: Policy): Promise<void> {
    const { a, b, sql } = this.#world
    const headers = { 'idempotency-key': fresh('key') }
    const call = await policy.make(this.#world, b, 'owner')
    const first = await this.#ask(attemptOf(operation, { ...call, headers }))
    if (first.statusCode !== policy.status) this.fail(operation.id, `X7 in B: ${first.statusCode}`)
    await eventually(async () => {
      const { rows } = await sql.query('select from outbox where tenant_id = $1 and sent_at is null', [b.id])
      return rows.length === 0
    })
    await this.#rebase()
    const { body: _, ...own } = await policy.make(this.#world, a, 'owner')
    const body = { ...call.body, ...(call.body && 'slug' in call.body && { slug: fresh('more') }) }
    const reply = await this.#allow(operation, policy, 'X7 the key of B', { ...own, body, headers })
    if (reply.body === first.body) this.fail(operation.id, 'X7 the key of B gives A the reply of B')
  }

  /** Where no event can be written nothing happens. */
  async #tryUnrecordable(operation: Operation, policy: Policy): Promise<void> {
    const { a } = this.#world
    const call = await policy.make(this.#world, a, 'owner')
    await this.#rebase()
    const before = await this.#checksumOfAll()
    const reply = await this.#ask(attemptOf(operation, call), `unrecordable-${this.cases}`)
    this.#count('K1 an event that can not be written')
    if (reply.statusCode !== 500)
      this.fail(operation.id, `K1 answers ${reply.statusCode} when its event can not be written`)
    if ((await this.#checksumOfAll()) !== before)
      this.fail(operation.id, 'K1 changes rows although its event can not be written')
  }

  async tryMethods(path: string): Promise<void> {
    const { a, operations } = this.#world
    const url = path.replaceAll(/\{\w+\}/g, unknownId)
    // a word where another path has a parameter is a path of its own
    const matches = (template: string) => new RegExp(`^${template.replaceAll(/\{\w+\}/g, '[^/]+')}$`).test(url)
    const known = new Set<string>(
      operations.filter((each) => (path === url ? each.path === path : matches(each.path))).map(({ method }) => method)
    )
    const allow = [...known, 'OPTIONS', ...(known.has('GET') ? ['HEAD'] : [])].sort().join(', ')
    for (const method of methods.filter((each) => !known.has(each))) {
      for (const headers of [{}, bearerOf(a.people.owner)]) {
        const title = `${method} ${path}`
        const refusal = { status: 405, code: 'method_not_allowed' }
        const reply = await this.#refuse({ id: title }, 'V1', { method, url, host: a.host, headers }, refusal)
        const answer = String(reply.headers.allow)
        if (answer !== allow) this.fail(title, `Allow: ${answer}, not ${allow}`)
      }
    }
  }

  // -- what is looked at afterwards -----------------------------------------------------------------------------------

  /** Exactly one event for each attempt of a signed-in person that was forbidden, in their agency, and none for anything else. */
  async compareDenials(): Promise<void> {
    const read = async () => {
      const text = "select request_id, tenant_id from audit_events where action = 'authz.denied'"
      return (await this.#world.sql.query<{ request_id: string; tenant_id: string }>(text)).rows
    }
    await eventually(async () => (await read()).length >= this.#denials.size, 5000).catch(() => {})
    const seen = new Map<string, number>()
    for (const { request_id, tenant_id } of await read()) {
      seen.set(request_id, (seen.get(request_id) ?? 0) + 1)
      const expected = this.#denials.get(request_id)
      if (expected !== tenant_id) {
        const where = expected === undefined ? 'though it was not forbidden' : 'in the wrong agency'
        this.fail(this.#titles.get(request_id) ?? request_id, `is recorded as denied ${where}`)
      }
    }
    for (const id of this.#denials.keys()) {
      if (seen.get(id) !== 1) this.fail(this.#titles.get(id) ?? id, `is recorded as denied ${seen.get(id) ?? 0} times`)
    }
  }

  /** No pooled connection carries a tenant from one request into the next. */
  async lookForRememberedTenants(): Promise<void> {
    const { app } = this.#world
    const settings = await Promise.all(
      Array.from({ length: 20 }, async () => {
        const query = app.db.selectNoFrom(({ fn, val }) => [
          fn<string>('current_setting', [val('app.tenant_id'), val(true)]).as('tenant'),
          fn<string>('current_setting', [val('app.user_id'), val(true)]).as('user')
        ])
        return query.executeTakeFirstOrThrow()
      })
    )
    this.#count('a connection that was used')
    if (settings.some(({ tenant, user }) => tenant || user))
      this.fail('database', 'a connection remembers whose it was')
  }

  /** What was refused leaves nothing of the others in the log either. */
  searchLog(): void {
    const { b, c, logLines } = this.#world
    for (const line of logLines) {
      const { request_id, host: _, ...rest } = JSON.parse(line)
      if (!this.#titles.has(request_id)) continue
      const text = JSON.stringify(rest).toLowerCase()
      if (text.includes(b.canary) || text.includes(c.canary))
        this.fail(request_id, `the log says ${text.slice(0, 300)}`)
    }
  }

  // -- one case -------------------------------------------------------------------------------------------------------

  #count(actor: string): void {
    this.cases++
    this.actors.add(actor)
  }

  async #ask(
    { host, ...attempt }: Attempt,
    id = `case-${this.cases}-${randomBytes(3).toString('hex')}`
  ): Promise<Reply> {
    // a chain of these does no I/O of its own: timers would starve
    await breathe()
    const headers = { host, 'x-request-id': id, 'user-agent': 'the matrix', ...attempt.headers }
    return this.#world.app.inject({ ...attempt, headers } as InjectOptions)
  }

  async #allow(
    operation: Operation,
    policy: Policy,
    actor: string,
    call: Call,
    foreign = [this.#world.b, this.#world.c]
  ): Promise<Reply> {
    const { b } = this.#world
    const before = await this.#checksum(b)
    const attempt = attemptOf(operation, call)
    const reply = await this.#expect(operation, actor, attempt, policy.status)
    this.#searchReply(`${operation.id}, ${actor}`, reply, foreign)
    const isInB = call.side === b
    if (!isInB && (await this.#checksum(b)) !== before) this.fail(`${operation.id}, ${actor}`, 'rows of B have changed')
    this.#baseline = undefined
    return reply
  }

  async #expect(operation: { id: string }, actor: string, attempt: Attempt, status: number): Promise<Reply> {
    this.#count(actor)
    const reply = await this.#ask(attempt)
    if (reply.statusCode !== status) {
      const cause = reply.statusCode >= 500 ? this.#causeOf(reply) : ''
      this.fail(`${operation.id}, ${actor}`, `${reply.statusCode}, not ${status}: ${reply.body.slice(0, 200)}${cause}`)
    }
    return reply
  }

  /** What the log says of a request that failed. */
  #causeOf(reply: Reply): string {
    const lines = this.#world.logLines.map((line) => JSON.parse(line))
    const line = lines.find(({ request_id, err }) => err && request_id === reply.headers['x-request-id'])
    return ` (${line?.err.message})`
  }

  async #refuse(operation: { id: string }, actor: string, attempt: Attempt, expected: Expected): Promise<Reply> {
    const reply = await this.#refuseAs(operation, actor, attempt, [expected.code])
    const title = `${operation.id}, ${actor}`
    if (reply.statusCode !== expected.status) this.fail(title, `${reply.statusCode}, not ${expected.status}`)
    if (expected.deniedIn) this.#denials.set(reply.headers['x-request-id'] as string, expected.deniedIn.id)
    if (expected.like && JSON.stringify(fingerprint(reply)) !== JSON.stringify(expected.like)) {
      this.fail(title, `${JSON.stringify(fingerprint(reply))} is not ${JSON.stringify(expected.like)}`)
    }
    return reply
  }

  async #refuseAs(operation: { id: string }, actor: string, attempt: Attempt, codes: string[]): Promise<Reply> {
    const { a, b, c } = this.#world
    const title = `${operation.id}, ${actor}`
    const before = await this.#base()
    this.#count(actor.startsWith('V2') ? actor.replace(/,? (no token|on the host of B)$/, '') : actor)
    const reply = await this.#ask(attempt)
    this.#titles.set(reply.headers['x-request-id'] as string, title)
    if (attempt.method === 'HEAD') this.#checkStatus(title, reply, codes)
    else this.#checkProblem(title, reply, codes)
    this.#searchReply(title, reply, [a, b, c])
    const after = [await this.#checksum(a), await this.#checksum(b)]
    if (after[0] !== before[0]) this.fail(title, 'rows of A have changed')
    if (after[1] !== before[1]) this.fail(title, 'rows of B have changed')
    this.#baseline = after
    return reply
  }

  /** A reply to HEAD says no more. */
  #checkStatus(title: string, reply: Reply, codes: string[]): void {
    if (reply.body !== '' || !codes.some((code) => catalogue.get(code)?.status === reply.statusCode)) {
      this.fail(title, `${reply.statusCode} ${reply.body.slice(0, 200)}, and not ${codes}`)
    }
  }

  /** Says what the catalogue says of this cause, and nothing besides. */
  #checkProblem(title: string, reply: Reply, codes: string[]): void {
    if (!String(reply.headers['content-type']).startsWith('application/problem+json')) {
      this.fail(title, `${reply.statusCode} ${reply.body.slice(0, 200)}, and not ${codes}`)
      return
    }
    const { detail, errors, ...body } = reply.json()
    const kind = codes.includes(body.code) ? catalogue.get(body.code) : undefined
    if (!kind) {
      this.fail(title, `${reply.statusCode} ${body.code}, not ${codes}`)
      return
    }
    const canonical = problemDocument(new Problem(kind, {}), reply.headers['x-request-id'] as string)
    const plain = kind.code === 'validation_failed' || (detail === sameDetails[kind.code] && errors === undefined)
    if (reply.statusCode !== kind.status || !plain || JSON.stringify(body) !== JSON.stringify(canonical)) {
      this.fail(title, `is not the canonical ${kind.code}: ${reply.body}`)
    }
  }

  #searchReply(title: string, reply: Reply, foreign: Side[]): void {
    const text = `${reply.statusMessage} ${JSON.stringify(reply.headers)} ${reply.body}`.toLowerCase()
    for (const { canary, id, people } of foreign) {
      const ids = Object.values(people).flatMap((person) => [person.id, person.sid])
      const found = [canary, id, ...ids].find((each) => text.includes(each))
      if (found) this.fail(title, `shows ${found}: ${text.slice(Math.max(0, text.indexOf(found) - 80)).slice(0, 200)}`)
    }
  }

  /** What A and B have now, unless a refusal has just shown it. */
  async #base(): Promise<string[]> {
    this.#baseline ??= [await this.#checksum(this.#world.a), await this.#checksum(this.#world.b)]
    return this.#baseline
  }

  /** A factory or a control was at work. */
  async #rebase(): Promise<void> {
    this.#baseline = undefined
    await this.#base()
  }

  /**
   * Of all rows of an agency, whatever their order. Attempts that were denied or refused are compared apart; mails of A are sent
   * in the background.
   */
  async #checksum(side: Side): Promise<string> {
    const own = side === this.#world.a
    const parts = (await this.#tenantTables())
      .filter((table) => !(own && table === 'outbox'))
      .map((table) => {
        const more = table === 'audit_events' ? 'action <> all ($2)' : (lasting[table] ?? 'true')
        return `select '${table}', t::text from ${table} t where tenant_id = $1 and ${more}`
      })
    const apart = own ? ['authz.denied', 'session.refused'] : ['authz.denied']
    const text = `select md5(coalesce(string_agg(name || line, E'\n' order by name, line), '')) as sum from (
      ${parts.join(' union all ')}
      union all select 'tenants', t::text from tenants t where id = $1
      union all select 'users', u::text from users u where id in (select user_id from memberships where tenant_id = $1)
    ) as x (name, line)`
    const { rows } = await this.#world.sql.query({ name: own ? 'rows_of_a' : 'rows', text, values: [side.id, apart] })
    return rows[0].sum
  }

  async #checksumOfAll(): Promise<string> {
    const parts = [...(await this.#tenantTables()), 'tenants', 'users']
      .filter((table) => table !== 'outbox')
      .map((table) => {
        const more = table === 'audit_events' ? "action <> 'authz.denied'" : (lasting[table] ?? 'true')
        return `select '${table}', t::text from ${table} t where ${more}`
      })
    const text = `select md5(string_agg(name || line, E'\n' order by name, line)) as sum from (${parts.join(' union all ')}) as x (name, line)`
    return (await this.#world.sql.query(text)).rows[0].sum
  }

  async #tenantTables(): Promise<string[]> {
    this.#tables ??= (await this.#world.sql.query<{ name: string }>(tenantTables)).rows.map(({ name }) => name)
    return this.#tables
  }
}

/**
 * Of tables that the server works on by itself once a minute, what it leaves alone: it seals the log, which the role of requests may
 * only read, and sweeps what has expired. What soon expires by a request comes with a change of the tenant's own row.
 */
const lasting: Record<string, string> = {
  audit_seals: 'false',
  audit_signatures: 'false',
  revocations: "expires_at > now() + interval '1 hour'"
}

const tenantNotFound = { status: 404, code: 'tenant_not_found' }
const unknownHost = { status: 421, code: 'unknown_host' }

const bearerOf = (person: Person) => ({ authorization: `Bearer ${person.token}` })
const mayCall = (access: Access, role: Role) => access !== 'public' && access !== 'internal' && allows(access, role)
const encodeAll = (text: string) => [...text].map((each) => `%${each.charCodeAt(0).toString(16)}`).join('')

function attemptOf(
  { method, path }: Operation,
  { caller, side, params = {}, query, body, payload, headers }: Call
): Attempt {
  const filled = path.replaceAll(/\{(\w+)\}/g, (_, name) => encodeURIComponent(params[name] ?? unknownId))
  return {
    method,
    url: query ? `${filled}?${new URLSearchParams(query)}` : filled,
    host: side?.host ?? 'localhost',
    headers: { ...(caller && bearerOf(caller)), ...headers },
    ...(body && { payload: body }),
    ...(payload && { payload })
  }
}
