import type { Test } from 'tap'
import { type Access, allows, type Role, roles } from '../src/auth/roles.ts'
import { fresh, type ObjectKind, type Policy } from './authz-calls.ts'
import { policies } from './authz-policy.ts'
import { eventually } from './harness.ts'
import { type Attempt, attemptOf, bearerOf, Enough } from './isolation-cases.ts'
import { KeyCases } from './isolation-keys.ts'
import { createWorld, methods, type Operation, type Person, type Side, type World } from './isolation-world.ts'
import { unknownId } from './requests.ts'
import { fingerprint } from './tokens.ts'

/*
 * The isolation matrix: every operation of the OpenAPI document, called by every actor who must be refused, and by
 * every actor who must succeed. The operations come from the running application. Who may call them comes from
 * test/authz-policy.ts.
 */

export type Outcome = { operations: number; actors: number; cases: number; failures: string[] }
export type Options = {
  /** The ids of the operations to try. Default: all. */
  only?: readonly string[]
  /** Stops at the first failure. */
  hasty?: boolean
  /** Called when an operation is done. */
  report?: (operation: string, cases: number, failures: string[]) => void
}

export const concernsFiles = ({ path }: Operation): boolean => /\/(files|images|avatar|logo)\b/.test(path)
export const concernsAccounts = ({ path }: Operation): boolean => /^\/api\/v1\/(auth|users)\b/.test(path)
export const concernsWebhooks = ({ path }: Operation): boolean => path.includes('/webhooks')

/** Runs the matrix for the operations that `wanted` selects, and `after` it. Each operation is one assertion. */
export async function proveMatrix(
  t: Test,
  wanted: (operation: Operation) => boolean,
  after?: (world: World) => Promise<void>
): Promise<Outcome> {
  const startedAt = performance.now()
  const world = await createWorld(t)
  const outcome = await runMatrix(world, {
    only: world.operations.filter(wanted).map(({ id }) => id),
    report: (operation, cases, failures) => t.strictSame(failures, [], `${operation}: ${cases} cases`)
  })
  t.strictSame(outcome.failures, [])
  await after?.(world)
  const { operations, actors, cases, failures } = outcome
  const took = ((performance.now() - startedAt) / 1000).toFixed(1)
  t.comment(`${operations} operations x ${actors} actors: ${cases} cases, ${failures.length} failures, in ${took} s`)
  return outcome
}

/** Headers with which clients of other systems name their tenant or user. Here they must have no effect. */
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

class Matrix extends KeyCases {
  compareTables(): void {
    for (const each of this.world.disagreements) this.fail('routes', each)
    const known = new Set(this.world.operations.map(({ id }) => id))
    for (const id of Object.keys(policies))
      if (!known.has(id)) this.fail(id, 'is in the policy and not in the document')
  }

  async tryOperation(operation: Operation, policy: Policy): Promise<void> {
    if (!operation.access) this.fail(operation.id, 'does not say who may call it (x-authz)')
    if (operation.access !== policy.access) {
      this.fail(operation.id, `is for ${operation.access} by the document and for ${policy.access} by the policy`)
    }
    await this.#control(operation, policy)
    await this.allowKeys(operation, policy)
    // the calls that succeeded may have left objects to remove; removed later, they would look like changes by a
    // refused call
    await this.world.app.objectSweep.run()
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

  // -- calls that must succeed --------------------------------------------------------------------------------------

  async #control(operation: Operation, policy: Policy): Promise<void> {
    const { a, b } = this.world
    // first a reply for B: a cache without the tenant in its key would send it to A
    if (operation.method === 'GET')
      await this.allow(operation, policy, 'P0 in B', await policy.make(this.world, b, 'owner'), [a])
    const admitted =
      policy.access === 'public' ? (['owner'] as const) : roles.filter((role) => mayCall(policy.access, role))
    for (const role of admitted) {
      await this.allow(operation, policy, `R+ ${role}`, await policy.make(this.world, a, role))
    }
    for (const { title, call } of policy.also ?? []) {
      await this.allow(operation, policy, `X6 ${title}`, await call(this.world))
    }
    const make = () => policy.make(this.world, a, 'owner')
    const bound = await make()
    if (bound.caller && policy.access !== 'public') {
      const proven = this.world.proveAs(bound.caller, attemptOf(operation, bound))
      const call = { ...bound, headers: { ...bound.headers, ...proven } }
      await this.allow(operation, policy, 'D0 with a proof of the key of the session', call)
    }
    await this.allow(operation, policy, 'P0 on the general host', { ...(await make()), side: undefined })
    const claims = claimsOfHeaders(b)
    // one at a time for GET, together for calls that change something
    const together = operation.method === 'GET' ? claims : [Object.assign({}, ...claims)]
    for (const headers of together) {
      const title = `X11 ${Object.keys(headers).length === 1 ? Object.keys(headers)[0] : 'all headers'}`
      const call = await make()
      // the cookie of a flow stays beside the others
      const cookie = [call.headers?.cookie, headers.cookie].filter((each) => each !== undefined).join('; ')
      const all = { ...call.headers, ...headers, ...(cookie !== '' && { cookie }) }
      await this.allow(operation, policy, title, { ...call, headers: all })
    }
  }

  async #tryPublic(operation: Operation, policy: Policy): Promise<void> {
    const { a, c, wrongTokens } = this.world
    const call = await policy.make(this.world, a, 'owner')
    const attempt = attemptOf(operation, { ...call, side: a })
    if (policy.host !== 'any') {
      await this.refuse(operation, 'H1 an unknown agency', { ...attempt, host: 'nobody.localhost' }, tenantNotFound)
      await this.refuse(operation, 'H2 a foreign host', { ...attempt, host: 'example.com' }, unknownHost)
      await this.refuse(operation, 'N7 a suspended agency', { ...attempt, host: c.host }, tenantNotFound)
    } else {
      for (const host of ['nobody.localhost', 'example.com', c.host]) {
        await this.expect(operation, `H1 ${host === c.host ? 'suspended' : host}`, { ...attempt, host }, policy.status)
      }
    }
    for (const { id, title, authorization, status, code, proof } of wrongTokens) {
      const name = `${id} ${title}`
      const headers = {
        ...(authorization !== undefined && { authorization }),
        ...(proof && { dpop: proof(attempt) })
      }
      if (operation.proof && ['D4', 'D5'].includes(id)) {
        await this.refuse(
          operation,
          name,
          { ...attempt, headers: { ...attempt.headers, ...headers } },
          { status, code }
        )
      } else if (policy.bearer === 'ignored' || (policy.bearer === 'costly' && ['N3', 'N5', 'N14'].includes(id))) {
        const next = await policy.make(this.world, a, 'owner')
        await this.allow(operation, policy, name, { ...next, headers: { ...next.headers, ...headers } })
      } else if (policy.bearer === 'looked at' && authorization !== undefined) {
        await this.refuse(operation, name, { ...attempt, headers }, { status, code })
      } else if (policy.bearer === 'signature' && /unauthenticated|invalid_token|dpop/.test(code)) {
        const { payload: _, ...bare } = attempt
        await this.refuse(operation, name, { ...bare, headers }, { status, code })
      }
    }
  }

  // -- calls that must be refused -----------------------------------------------------------------------------------

  async #tryGuarded(operation: Operation, policy: Policy, access: Role | 'user' | 'internal'): Promise<void> {
    const { a, b, c, wrongTokens } = this.world
    const call = await policy.make(this.world, a, 'owner')
    const own = attemptOf(operation, { ...call, side: a, caller: undefined })
    const as = (person: Person, attempt = own) => ({ ...attempt, headers: { ...attempt.headers, ...bearerOf(person) } })
    const mismatch = (side: Side) => ({ status: 403, code: 'tenant_mismatch', deniedIn: side })

    for (const { id, title, authorization, status, code, proof } of wrongTokens) {
      const headers = {
        ...own.headers,
        ...(authorization !== undefined && { authorization }),
        ...(proof && { dpop: proof(own) })
      }
      await this.refuse(operation, `${id} ${title}`, { ...own, headers }, { status, code })
    }
    const suspended = { status: 403, code: 'tenant_suspended' }
    await this.refuse(operation, 'N7 on its host', as(c.people.owner, { ...own, host: c.host }), suspended)
    await this.refuse(operation, 'N7 on the general host', as(c.people.owner, { ...own, host: 'localhost' }), suspended)
    await this.refuse(operation, 'N7 no token', { ...own, host: c.host }, tenantNotFound)
    await this.refuse(operation, 'N7 somebody of A', as(a.people.owner, { ...own, host: c.host }), tenantNotFound)
    await this.refuse(
      operation,
      'H1 an unknown agency',
      as(a.people.owner, { ...own, host: 'nobody.localhost' }),
      tenantNotFound
    )
    await this.refuse(operation, 'H2 a foreign host', as(a.people.owner, { ...own, host: 'example.com' }), unknownHost)

    for (const role of roles) {
      await this.refuse(operation, `X1 ${role} of B on the host of A`, as(b.people[role]), mismatch(b))
      await this.refuse(
        operation,
        `X3 ${role} of A on the host of B`,
        as(a.people[role], { ...own, host: b.host }),
        mismatch(a)
      )
    }
    for (const headers of claimsOfHeaders(a)) {
      const attempt = { ...own, host: b.host, headers: { ...own.headers, ...headers } }
      await this.refuse(operation, `X3 ${Object.keys(headers)[0]}`, as(a.people.owner, attempt), mismatch(a))
    }
    for (const role of roles.filter((each) => !mayCall(access, each))) {
      const expected = { status: 403, code: 'forbidden', deniedIn: a, names: `the role ${access}` }
      await this.refuse(operation, `R ${role}`, as(a.people[role]), expected)
      await this.refuse(
        operation,
        `R ${role} on the general host`,
        as(a.people[role], { ...own, host: 'localhost' }),
        expected
      )
    }
    await this.refuseKeys(operation, policy)
    await this.#tryPaths(operation, own, as)
  }

  /** Other spellings of a path must lead to 404, 405 or 400, or to the same guard. */
  async #tryPaths(
    operation: Operation,
    own: Attempt,
    as: (person: Person, attempt: Attempt) => Attempt
  ): Promise<void> {
    const { a, b } = this.world
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
      await this.refuseAs(operation, `V2 ${title}, no token`, attempt, ['unauthenticated', ...unknown])
      const there = as(a.people.owner, { ...attempt, host: b.host })
      const reply = await this.refuseAs(operation, `V2 ${title} on the host of B`, there, [
        'tenant_mismatch',
        ...unknown
      ])
      if (reply.statusCode === 403) this.denials.set(reply.headers['x-request-id'] as string, a.id)
    }
  }

  /** Members in a body that name a tenant, an owner or a role must be refused. */
  async #tryBody(operation: Operation, policy: Policy): Promise<void> {
    if (!operation.body) return
    const { a, b } = this.world
    const call = await policy.make(this.world, a, 'owner')
    await this.rebase()
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
      await this.refuse(operation, `X12 ${name}`, attempt, { status: 400, code: 'validation_failed' })
    }
  }

  async #tryExcesses(operation: Operation, policy: Policy): Promise<void> {
    for (const { title, status, code, denied, call, likeNothing } of policy.excesses ?? []) {
      const none = likeNothing && (await this.ask(attemptOf(operation, await likeNothing(this.world))))
      await this.rebase()
      const attempt = attemptOf(operation, await call(this.world))
      await this.rebase()
      const expected = {
        status,
        code,
        ...(denied && { deniedIn: this.world[denied] }),
        ...(none && { like: fingerprint(none) })
      }
      await this.refuse(operation, `X6 ${title}`, attempt, expected)
    }
  }

  /** B's objects with A's token must be answered like objects that do not exist. */
  async #tryObjects(operation: Operation, policy: Policy, objects: Record<string, ObjectKind>): Promise<void> {
    const { a, b, gone } = this.world
    const call = await policy.make(this.world, a, 'owner')
    await this.rebase()
    const names = Object.keys(objects)
    const [invitation] = (await this.world.sql.query('select id from invitations where tenant_id = $1', [b.id])).rows
    const standing: Record<ObjectKind, string> = {
      invitation: invitation.id,
      member: b.people.member.id,
      session: b.people.owner.sid,
      file: await this.world.plantFile(b),
      upload: await this.world.plantUpload(b, 'direct')
    }
    await this.rebase()
    // each parameter alone, and all together
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
        const none = await this.ask(withIds(() => unknownId, host))
        const expected = { status: 404, code: 'not_found', like: fingerprint(none) }
        const where = host === 'localhost' ? ' on the general host' : ''
        await this.refuse(
          operation,
          `X4 ${replaced} of B${where}`,
          withIds((kind) => standing[kind], host),
          expected
        )
        await this.refuse(
          operation,
          `X4 ${replaced} of B that is gone${where}`,
          withIds((kind) => gone[kind], host),
          expected
        )
      }
      const theirs = withIds((kind) => standing[kind], a.host)
      const attempt = { ...theirs, headers: { ...theirs.headers, ...bearerOf(b.people.owner) } }
      await this.refuse(operation, `X2 ${replaced} of B by its owner on the host of A`, attempt, {
        ...{ status: 403, code: 'tenant_mismatch' },
        deniedIn: b
      })
    }
  }

  async #tryCursor(operation: Operation, policy: Policy): Promise<void> {
    const { a, b } = this.world
    const theirs = attemptOf(operation, { ...(await policy.make(this.world, b, 'owner')), query: { limit: '1' } })
    const cursor: unknown = (await this.ask(theirs)).json().next_cursor
    if (typeof cursor !== 'string') throw new Error(`${operation.id}: B has no second page`)
    const own = await policy.make(this.world, a, 'owner')
    const made = await this.ask(attemptOf(operation, { ...own, query: { cursor: 'bm9uZQ' } }))
    await this.rebase()
    await this.refuse(operation, 'X8 the cursor of B', attemptOf(operation, { ...own, query: { cursor } }), {
      ...{ status: 400, code: 'invalid_cursor' },
      like: fingerprint(made)
    })
    for (const { name, schema } of operation.query as { name: string; schema: { format?: string } }[]) {
      if (schema.format !== 'uuid') continue
      const ask = (id: string) => this.ask(attemptOf(operation, { ...own, query: { [name]: id } }))
      const [found, none] = [await ask(b.people.owner.id), await ask(unknownId)]
      this.count(`X5 ${name}`)
      if (JSON.stringify(fingerprint(found)) !== JSON.stringify(fingerprint(none))) {
        this.fail(operation.id, `X5 ${name} of B is not like an unknown one`)
      }
    }
  }

  async #tryTags(operation: Operation, policy: Policy): Promise<void> {
    const { a, b } = this.world
    const page = { ...attemptOf(operation, { caller: b.people.owner, side: b }), method: 'GET' as const }
    const tag = (await this.ask(page)).headers.etag
    if (typeof tag !== 'string') throw new Error(`${operation.id}: B has no tag`)
    const call = await policy.make(this.world, a, 'owner')
    if (operation.method === 'GET') {
      await this.allow(operation, policy, 'X7 the tag of B', { ...call, headers: { 'if-none-match': tag } })
      return
    }
    const made = await this.ask(attemptOf(operation, { ...call, headers: { 'if-match': '"none"' } }))
    await this.rebase()
    await this.refuse(operation, 'X7 the tag of B', attemptOf(operation, { ...call, headers: { 'if-match': tag } }), {
      ...{ status: 412, code: 'precondition_failed' },
      like: fingerprint(made)
    })
  }

  /** An Idempotency-Key that B has used must be a new one for A. */
  async #tryRepetition(operation: Operation, policy: Policy): Promise<void> {
    const { a, b, sql } = this.world
    const headers = { 'idempotency-key': fresh('key') }
    const call = await policy.make(this.world, b, 'owner')
    const first = await this.ask(attemptOf(operation, { ...call, headers }))
    if (first.statusCode !== policy.status) this.fail(operation.id, `X7 in B: ${first.statusCode}`)
    await eventually(async () => {
      const { rows } = await sql.query('select from outbox where tenant_id = $1 and sent_at is null', [b.id])
      return rows.length === 0
    })
    await this.rebase()
    const { body: _, ...own } = await policy.make(this.world, a, 'owner')
    const body = { ...call.body, ...(call.body && 'slug' in call.body && { slug: fresh('more') }) }
    const reply = await this.allow(operation, policy, 'X7 the key of B', { ...own, body, headers })
    if (reply.body === first.body) this.fail(operation.id, 'X7 the key of B gives A the reply of B')
  }

  /** If the audit event can't be written, nothing else may be changed. */
  async #tryUnrecordable(operation: Operation, policy: Policy): Promise<void> {
    const { a } = this.world
    const call = await policy.make(this.world, a, 'owner')
    await this.rebase()
    const before = await this.checksumOfAll()
    const reply = await this.ask(attemptOf(operation, call), `unrecordable-${this.cases}`)
    this.count('K1 an event that can not be written')
    if (reply.statusCode !== 500)
      this.fail(operation.id, `K1 answers ${reply.statusCode} when its event can not be written`)
    if ((await this.checksumOfAll()) !== before)
      this.fail(operation.id, 'K1 changes rows although its event can not be written')
  }

  async tryMethods(path: string): Promise<void> {
    const { a, operations } = this.world
    const url = path.replaceAll(/\{\w+\}/g, unknownId)
    // a path without parameters is matched literally, also where another path has a parameter in its place
    const matches = (template: string) => new RegExp(`^${template.replaceAll(/\{\w+\}/g, '[^/]+')}$`).test(url)
    const known = new Set<string>(
      operations.filter((each) => (path === url ? each.path === path : matches(each.path))).map(({ method }) => method)
    )
    const allow = [...known, 'OPTIONS', ...(known.has('GET') ? ['HEAD'] : [])].sort().join(', ')
    for (const method of methods.filter((each) => !known.has(each))) {
      for (const headers of [{}, bearerOf(a.people.owner)]) {
        const title = `${method} ${path}`
        const refusal = { status: 405, code: 'method_not_allowed' }
        const reply = await this.refuse({ id: title }, 'V1', { method, url, host: a.host, headers }, refusal)
        const answer = String(reply.headers.allow)
        if (answer !== allow) this.fail(title, `Allow: ${answer}, not ${allow}`)
      }
    }
  }
}

const tenantNotFound = { status: 404, code: 'tenant_not_found' }
const unknownHost = { status: 421, code: 'unknown_host' }

const mayCall = (access: Access, role: Role) => access !== 'public' && access !== 'internal' && allows(access, role)
const encodeAll = (text: string) => [...text].map((each) => `%${each.charCodeAt(0).toString(16)}`).join('')
