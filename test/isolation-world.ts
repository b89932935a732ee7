import { createHash, randomBytes } from 'node:crypto'
import type { FastifyInstance } from 'fastify'
import pg from 'pg'
import type { Test } from 'tap'
import { v7 as uuidv7 } from 'uuid'
import { buildApp } from '../src/app.ts'
import type { Permission } from '../src/auth/api-keys/permissions.ts'
import { argon2 } from '../src/auth/argon2.ts'
import { type LinkPurpose, linkPurposes } from '../src/auth/one-time-tokens.ts'
import { type Access, type Role, roles } from '../src/auth/roles.ts'
import { readConfig } from '../src/config/config.ts'
import { fileKey, imageKey, uploadKey } from '../src/files/store/keys.ts'
import { createKeyRing } from '../src/keys.ts'
import { fresh, type ObjectKind } from './authz-calls.ts'
import { watchContract } from './contract-check.ts'
import type { DatabaseUrls } from './databases.ts'
import { createTestDatabase, finishInjectedStreams, jwtSecret, password, testEnvironment } from './harness.ts'
import { makeWrongKeys, plantKey } from './isolation-keys.ts'
import { makeWrongProofs, proofsOf } from './isolation-proofs.ts'
import { type NameServer, startNameServer } from './name-server.ts'
import { unknownId } from './requests.ts'
import { decode, encode, type Json, makeToken, seconds } from './tokens.ts'

/*
 * The world of the isolation matrix: the application, three agencies, and invalid tokens. Every text of an agency
 * contains the name of that agency (its canary), so that a leak can be found.
 */

export type Person = { id: string; email: string; role: Role; sid: string; token: string; refresh_token: string }
export type Side = { id: string; slug: string; host: string; canary: string; people: Record<Role, Person> }

/**
 * A hole that a test makes: by SQL (`plant`), in the application before it is ready, or in its decorators afterwards.
 */
export type Hole = {
  /** Settings beside those of the world. */
  env?: Record<string, string>
  plant?: string
  before?: (app: FastifyInstance) => void
  after?: (world: World) => void
}

export type Operation = {
  id: string
  method: Method
  path: string
  access: Access
  permission: Permission | undefined
  query: Json[]
  body: boolean
  /** Whether it takes a proof without a token. */
  proof: boolean
}
export type Method = 'DELETE' | 'GET' | 'HEAD' | 'PATCH' | 'POST' | 'PUT'
export const methods: Method[] = ['DELETE', 'GET', 'PATCH', 'POST', 'PUT']

export type World = {
  app: FastifyInstance
  database: DatabaseUrls
  /** A connection of the superuser, who sees all rows. */
  sql: pg.Client
  /** The name server that the application asks. */
  dns: NameServer
  operations: Operation[]
  /** Differences between the routes and the OpenAPI document. */
  disagreements: string[]
  /** Replies that the OpenAPI document does not describe. */
  faults: string[]
  logLines: string[]
  a: Side
  b: Side
  /** The suspended agency. */
  c: Side
  /** The ids of deleted objects of B. */
  gone: Record<ObjectKind, string>
  wrongTokens: WrongToken[]
  /** The headers of a person whose session is bound to a key, for one request. */
  proveAs(person: Person, request: ProvenRequest): Record<string, string>
  plantSide(name: string): Promise<Side>
  plantPerson(side: Side, role: Role): Promise<Person>
  plantMember(side: Side, userId: string, role: Role): Promise<void>
  plantSession(side: Side, userId: string): Promise<string>
  plantInvitation(side: Side, role?: Role, email?: string): Promise<string>
  /** A link as it is mailed to the person. Resolves to its token. */
  plantLink(side: Side, person: Person, purpose: LinkPurpose): Promise<string>
  /** A file whose bytes contain the canary. Default: the owner's. */
  plantFile(side: Side, userId?: string, status?: 'ready' | 'deleted'): Promise<string>
  /** An unfinished upload. If it is `direct`, its bytes have arrived. */
  plantUpload(side: Side, kind: 'direct' | 'resumable', userId?: string): Promise<string>
  plantImage(side: Side): Promise<string>
  close(): Promise<void>
}

export type WrongToken = {
  id: string
  title: string
  authorization: string | undefined
  status: number
  code: string
  /** Makes the proof that is sent with the token. */
  proof?: (request: ProvenRequest) => string
}
export type ProvenRequest = { method: string; host: string; url: string }

/** Starts an application on a database of its own, with three agencies. */
export async function createWorld(t: Test, { env, plant, before, after }: Hole = {}): Promise<World> {
  const database = await createTestDatabase(t)
  const logLines: string[] = []
  // one connection for all requests: settings that one leaves behind would reach the next
  const dns = await startNameServer(t)
  // GitHub is there to begin with, and is never reached
  const github = { GITHUB_CLIENT_ID: 'aggios', GITHUB_CLIENT_SECRET: 'a secret' }
  const settings = { LOG_LEVEL: 'info', DATABASE_POOL: '1', DNS_SERVERS: dns.address, ...github, ...env }
  const config = readConfig(testEnvironment(database, settings))
  const app = buildApp(config, { logStream: { write: (line) => void logLines.push(line) }, hasher: argon2 })
  const routes: string[] = []
  const hidden: string[] = []
  app.addHook('onRoute', ({ method, url, schema }) => {
    for (const each of [method].flat()) {
      ;(schema?.hide || !schema ? hidden : routes).push(`${each} ${url.replaceAll(/:(\w+)/g, '{$1}')}`)
    }
  })
  const faults = watchContract(app)
  finishInjectedStreams(app)
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
  // when a key was last used is written once a minute, also in the middle of a case
  app.keyUses.note = () => {}
  await sql.connect()
  // the trigger refuses events with such a request id, and the audit log of B is not sealed meanwhile
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
    database,
    sql,
    dns,
    operations: documented,
    disagreements: [
      ...routes
        // every GET route has a HEAD route
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
    proveAs: proofsOf(app, config.jwtSecret).proveAs,
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
  world.wrongTokens = [
    ...(await makeWrongTokens(world)),
    ...(await makeWrongProofs(world, config.jwtSecret)),
    ...(await makeWrongKeys(world))
  ]
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
      permission: operation['x-permission'] as Permission | undefined,
      query: ((operation.parameters ?? []) as Json[]).filter((parameter) => parameter.in === 'query'),
      body: bodyOf(operation)?.content['application/json'] !== undefined,
      proof: ((operation.parameters ?? []) as Json[]).some(({ name }) => name === 'dpop')
    }))
  )
}

const bodyOf = (operation: Json) => operation.requestBody as { content: Record<string, unknown> } | undefined

async function planters(app: FastifyInstance, sql: pg.Client) {
  // hashed once, because everybody has the same password
  const { password_hash, pepper_id } = await app.passwords.hash(password)

  async function plantMember(side: { id: string }, userId: string, role: Role): Promise<void> {
    await sql.query('insert into memberships (tenant_id, user_id, role) values ($1, $2, $3)', [side.id, userId, role])
  }

  async function plantSession(side: { id: string; canary?: string }, userId: string): Promise<string> {
    const id = uuidv7()
    await sql.query(
      // who they are was proved lately, also at the end of a long run of the matrix
      `insert into sessions (tenant_id, id, user_id, expires_at, user_agent, ip, authenticated_at)
       values ($1, $2, $3, now() + interval '1 day', $4, '203.0.113.7', now() + interval '1 hour')`,
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
    const subject = { user_id: id, email, tenant_id: side.id, role, sid, key_thumbprint: null }
    const { access_token, refresh_token } = app.tokens.issue(subject, 0)
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

  async function plantLink(side: { id: string }, person: Person, purpose: LinkPurpose): Promise<string> {
    const { rows } = await sql.query(
      `insert into account_links (user_id, purpose, email, password_version, expires_at)
       select id, $2, email, password_version, now() + interval '1 hour' from users where id = $1
       on conflict (user_id, purpose) do update set id = excluded.id, used_at = null returning id`,
      [person.id, purpose]
    )
    return app.oneTimeTokens.issue(purpose, { tenant_id: side.id, id: rows[0].id, generation: 1 })
  }

  /** The row of a file. The content is not stored. */
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
      await plantKey(sql, side, { role: 'viewer', permissions: [] })
      await sql.query('insert into tenant_domains (tenant_id, name) values ($1, $2)', [id, `${slug}-${i}.example`])
      // to be listed; without stored bytes, because worlds are made often
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
    ...{ plantMember, plantSession, plantPerson, plantInvitation, plantLink, plantSide },
    ...{ plantFile, plantUpload, plantImage }
  }
}

/** Publishes a revocation, as an operator's command or another process does. */
async function publish(world: World, side: Side, kind: string, subject: string, state: string | null): Promise<void> {
  await world.sql.query(
    `insert into changes (tenant_id, kind, subject, state, expires_at) values ($1, $2, $3, $4, now() + interval '1 day')`,
    [side.id, kind, subject, state]
  )
}

/** Invalid tokens for the host of A. Each would belong to an owner of A if it were valid. */
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
  for (const purpose of ['invitation', ...linkPurposes] as const)
    add('N21', `a mailed token (${purpose})`, app.oneTimeTokens.issue(purpose, invitation))
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
