import { randomBytes } from 'node:crypto'
import { setImmediate as breathe } from 'node:timers/promises'
import type { InjectOptions } from 'fastify'
import { roleTooLow } from '../src/auth/admission.ts'
import { permissions } from '../src/auth/api-keys/permissions.ts'
import { roles } from '../src/auth/roles.ts'
import { catalogue, Problem, problemText } from '../src/http/problems.ts'
import type { Call, Policy } from './authz-calls.ts'
import { tenantTables } from './catalogue-defects.ts'
import { eventually, type Reply } from './harness.ts'
import type { Method, Operation, Person, Side, World } from './isolation-world.ts'
import { unknownId } from './requests.ts'
import { fingerprint } from './tokens.ts'

/*
 * The cases of the isolation matrix. A case is a request, with checks of its reply, the rows, the log and the audit
 * log.
 */

export type Attempt = {
  method: Method
  url: string
  host: string
  headers: Record<string, string>
  payload?: object | Buffer
}
/** `names`: what the detail of the refusal must name. */
export type Expected = { status: number; code: string; deniedIn?: Side; like?: object; names?: string }

/** Details that a problem document may have, because they say the same to everybody. */
const sameDetails: Record<string, (string | undefined)[]> = {
  route_not_found: ['the API is described at /api/v1/docs, and for programs at /api/v1/openapi.json'],
  slug_taken: ['another agency has this slug'],
  forbidden: [
    ...[undefined, 'no API key may do this', 'this API key may not be used from this address'],
    ...permissions.map((name) => `this API key lacks the permission ${name}`),
    ...roles.map((role) => roleTooLow(role).options.detail),
    'nobody can invite to a role above their own',
    'admins change people up to admin, and only owners change owners',
    'members change files of their own, and admins those of anybody',
    'the invitation is for somebody else: sign out, or sign in as that person'
  ],
  token_expired: [undefined, 'this API key has expired'],
  invalid_token: [undefined, 'send this token as DPoP, with a proof of its key', 'send this token as Bearer'],
  invalid_dpop_proof: [
    'the token needs a proof in the DPoP header',
    'another key has signed than the one that the tokens are bound to',
    'htu must be the address of the request',
    // sign-out
    'the session is bound to a key: send a proof that this key has signed'
  ]
}
const noDetail = [undefined]
/** The details of refusals that name their reason where another key has signed. */
const ofAnotherKey = [
  'another key has signed than the one that the tokens are bound to',
  'the session is bound to a key: send a proof that this key has signed'
]

/** Thrown to stop at the first failure. */
export class Enough extends Error {}

/** Sends the requests of the matrix, and collects failures. */
export class Cases {
  readonly failures: string[] = []
  readonly actors = new Set<string>()
  cases = 0
  protected readonly world: World
  readonly #hasty: boolean
  protected readonly denials = new Map<string, string>()
  readonly #titles = new Map<string, string>()
  #tables: string[] | undefined
  #baseline: string[] | undefined

  constructor(world: World, hasty: boolean) {
    this.world = world
    this.#hasty = hasty
  }

  fail(title: string, what: string): void {
    this.failures.push(`${title}: ${what}`)
    if (this.#hasty) throw new Enough()
  }

  // -- checks after all cases ---------------------------------------------------------------------------------------

  /**
   * The audit log must have one `authz.denied` for each forbidden attempt, in the agency of the caller, and no others.
   */
  async compareDenials(): Promise<void> {
    const read = async () => {
      const text = "select request_id, tenant_id from audit_events where action = 'authz.denied'"
      return (await this.world.sql.query<{ request_id: string; tenant_id: string }>(text)).rows
    }
    await eventually(async () => (await read()).length >= this.denials.size, 5000).catch(() => {})
    const seen = new Map<string, number>()
    for (const { request_id, tenant_id } of await read()) {
      seen.set(request_id, (seen.get(request_id) ?? 0) + 1)
      const expected = this.denials.get(request_id)
      if (expected !== tenant_id) {
        const where = expected === undefined ? 'though it was not forbidden' : 'in the wrong agency'
        this.fail(this.#titles.get(request_id) ?? request_id, `is recorded as denied ${where}`)
      }
    }
    for (const id of this.denials.keys()) {
      if (seen.get(id) !== 1) this.fail(this.#titles.get(id) ?? id, `is recorded as denied ${seen.get(id) ?? 0} times`)
    }
  }

  /** No pooled connection may keep the settings of a request. */
  async lookForRememberedTenants(): Promise<void> {
    const { app, a } = this.world
    const headers = { host: a.host, authorization: `Bearer ${a.people.owner.token}` }
    const settings: { tenant: string; user: string }[] = []
    // right after a transaction each time, because a background job may use the connection at any moment
    for (let round = 0; round < 20; round++) {
      await app.inject({ method: 'PATCH', url: '/api/v1/users/me', payload: {}, headers })
      const query = app.db.selectNoFrom(({ fn, val }) => [
        fn<string>('current_setting', [val('app.tenant_id'), val(true)]).as('tenant'),
        fn<string>('current_setting', [val('app.user_id'), val(true)]).as('user')
      ])
      settings.push(await query.executeTakeFirstOrThrow())
    }
    this.count('a connection that was used')
    if (settings.some(({ tenant, user }) => tenant || user))
      this.fail('database', 'a connection remembers whose it was')
  }

  /** The log of a refused request must not name B or C. */
  searchLog(): void {
    const { b, c, logLines } = this.world
    for (const line of logLines) {
      const { request_id, host: _, ...rest } = JSON.parse(line)
      if (!this.#titles.has(request_id)) continue
      const text = JSON.stringify(rest).toLowerCase()
      if (text.includes(b.canary) || text.includes(c.canary))
        this.fail(request_id, `the log says ${text.slice(0, 300)}`)
    }
  }

  // -- one case -----------------------------------------------------------------------------------------------------

  protected count(actor: string): void {
    this.cases++
    this.actors.add(actor)
  }

  protected async ask(
    { host, ...attempt }: Attempt,
    id = `case-${this.cases}-${randomBytes(3).toString('hex')}`
  ): Promise<Reply> {
    // injected requests do no I/O, so timers need a turn of the event loop
    await breathe()
    const headers = { host, 'x-request-id': id, 'user-agent': 'the matrix', ...attempt.headers }
    return this.world.app.inject({ ...attempt, headers } as InjectOptions)
  }

  protected async allow(
    operation: Operation,
    policy: Policy,
    actor: string,
    call: Call,
    foreign = [this.world.b, this.world.c]
  ): Promise<Reply> {
    const { b } = this.world
    const [, before] = await this.#checksums()
    const attempt = attemptOf(operation, call)
    const reply = await this.expect(operation, actor, attempt, policy.status)
    this.#searchReply(`${operation.id}, ${actor}`, reply, foreign)
    const isInB = call.side === b
    if (!isInB && (await this.#checksums())[1] !== before)
      this.fail(`${operation.id}, ${actor}`, 'rows of B have changed')
    this.#baseline = undefined
    return reply
  }

  protected async expect(operation: { id: string }, actor: string, attempt: Attempt, status: number): Promise<Reply> {
    this.count(actor)
    const reply = await this.ask(attempt)
    if (reply.statusCode !== status) {
      const cause = reply.statusCode >= 500 ? this.#causeOf(reply) : ''
      this.fail(`${operation.id}, ${actor}`, `${reply.statusCode}, not ${status}: ${reply.body.slice(0, 200)}${cause}`)
    }
    return reply
  }

  /** The error of a failed request, from the log. */
  #causeOf(reply: Reply): string {
    const lines = this.world.logLines.map((line) => JSON.parse(line))
    const line = lines.find(({ request_id, err }) => err && request_id === reply.headers['x-request-id'])
    return ` (${line?.err.message})`
  }

  protected async refuse(
    operation: { id: string },
    actor: string,
    attempt: Attempt,
    expected: Expected
  ): Promise<Reply> {
    const reply = await this.refuseAs(operation, actor, attempt, [expected.code])
    const title = `${operation.id}, ${actor}`
    if (reply.statusCode !== expected.status) this.fail(title, `${reply.statusCode}, not ${expected.status}`)
    if (expected.names !== undefined && attempt.method !== 'HEAD') {
      const { detail = '' } = reply.json()
      if (!detail.includes(expected.names)) this.fail(title, `the detail "${detail}" does not name ${expected.names}`)
    }
    if (expected.deniedIn) this.denials.set(reply.headers['x-request-id'] as string, expected.deniedIn.id)
    if (expected.like && JSON.stringify(fingerprint(reply)) !== JSON.stringify(expected.like)) {
      this.fail(title, `${JSON.stringify(fingerprint(reply))} is not ${JSON.stringify(expected.like)}`)
    }
    return reply
  }

  protected async refuseAs(
    operation: { id: string },
    actor: string,
    attempt: Attempt,
    codes: string[]
  ): Promise<Reply> {
    const { a, b, c } = this.world
    const title = `${operation.id}, ${actor}`
    const before = await this.#base()
    this.count(actor.startsWith('V2') ? actor.replace(/,? (no token|on the host of B)$/, '') : actor)
    const reply = await this.ask(attempt)
    this.#titles.set(reply.headers['x-request-id'] as string, title)
    if (attempt.method === 'HEAD') this.#checkStatus(title, reply, codes)
    else this.#checkProblem(title, reply, codes)
    this.#searchReply(title, reply, [a, b, c])
    const after = await this.#checksums()
    if (after[0] !== before[0]) this.fail(title, 'rows of A have changed')
    if (after[1] !== before[1]) this.fail(title, 'rows of B have changed')
    this.#baseline = after
    return reply
  }

  /** Checks a reply to HEAD: the status, and no body. */
  #checkStatus(title: string, reply: Reply, codes: string[]): void {
    if (reply.body !== '' || !codes.some((code) => catalogue.get(code)?.status === reply.statusCode)) {
      this.fail(title, `${reply.statusCode} ${reply.body.slice(0, 200)}, and not ${codes}`)
    }
  }

  /** Checks that a reply is exactly the problem document of the catalogue, with one of these codes. */
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
    const hasReason = kind.code === 'invalid_dpop_proof' && 'reason' in body && ofAnotherKey.includes(detail)
    const options = hasReason ? { extensions: { reason: 'another_key' } } : {}
    const canonical = JSON.parse(problemText(new Problem(kind, options), reply.headers['x-request-id'] as string))
    const same = (sameDetails[kind.code] ?? noDetail).includes(detail)
    const plain = kind.code === 'validation_failed' || (same && errors === undefined)
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

  /** The checksums of A and B. Those after the last refusal are used again. */
  async #base(): Promise<string[]> {
    this.#baseline ??= await this.#checksums()
    return this.#baseline
  }

  /** Takes the checksums anew, after calls that may have changed rows. */
  protected async rebase(): Promise<void> {
    this.#baseline = undefined
    await this.#base()
  }

  /**
   * Checksums of all rows of A and of B. They leave out events of refused attempts, which have a check of their own, and the
   * outbox of A, whose mails are sent in the background.
   */
  async #checksums(): Promise<string[]> {
    const tables = await this.#tenantTables()
    const ofSide = (parameter: string, own: string[], events: string) =>
      checksumOf([
        ...own.map((table) => versionsOf(table, `tenant_id = ${parameter}`, events)),
        versionsOf('tenants', `id = ${parameter}`),
        versionsOf('users', `id in (select user_id from memberships where tenant_id = ${parameter})`)
      ])
    const ofA = ofSide(
      '$1',
      tables.filter((table) => table !== 'outbox'),
      "'authz.denied', 'session.refused'"
    )
    const text = `select (${ofA}) as a, (${ofSide('$2', tables, "'authz.denied'")}) as b`
    const { rows } = await this.world.sql.query({ name: 'rows', text, values: [this.world.a.id, this.world.b.id] })
    return [rows[0].a, rows[0].b]
  }

  /** A checksum of what all rows hold: those that were written and taken back count as unchanged. */
  protected async checksumOfAll(): Promise<string> {
    const tables = [...(await this.#tenantTables()), 'tenants', 'users'].filter((table) => table !== 'outbox')
    const parts = tables.map(
      (table) => `select '${table}' || t::text as version from ${table} t where ${countedRows(table, "'authz.denied'")}`
    )
    return (await this.world.sql.query(checksumOf(parts))).rows[0].sum
  }

  async #tenantTables(): Promise<string[]> {
    this.#tables ??= (await this.world.sql.query<{ name: string }>(tenantTables)).rows.map(({ name }) => name)
    return this.#tables
  }
}

/**
 * Which rows of some tables are in the checksums. The server itself changes the other rows once a minute: it seals the
 * audit log, whose seals a request can only read, and sweeps expired rows. A request that adds a row which expires soon
 * also changes the row of its tenant.
 */
const lasting: Record<string, string> = {
  audit_seals: 'false',
  audit_signatures: 'false',
  // each goes with a row of audit_events
  events: 'false',
  changes: "expires_at > now() + interval '1 hour'"
}

/** The condition of the rows of a table that are in the checksums. Of the audit log, these events are left out. */
const countedRows = (table: string, events: string) =>
  table === 'audit_events' ? `action <> all (array[${events}])` : (lasting[table] ?? 'true')

/**
 * The versions of a table's rows. PostgreSQL writes a new version at every change, at another place (ctid) or by another
 * transaction (xmin), so that nothing of the rows has to be read.
 */
const versionsOf = (table: string, condition: string, events = '') =>
  `select '${table}' || tableoid::text || ctid::text || xmin::text as version
   from ${table} where ${condition} and ${countedRows(table, events)}`

/** A checksum of lines, in any order. */
const checksumOf = (parts: string[]) =>
  `select count(*) || ':' || coalesce(bit_xor(hashtextextended(version, 0)), 0) as sum from (${parts.join(' union all ')}) as x`

export const bearerOf = (person: Person) => ({ authorization: `Bearer ${person.token}` })

export function attemptOf(
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
