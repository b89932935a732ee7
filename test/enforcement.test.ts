import { readdirSync, readFileSync } from 'node:fs'
import { join } from 'node:path'
import { sql } from 'kysely'
import t, { type Test } from 'tap'
import { withClient } from './databases.ts'
import { complete, enroll, forgetUsedCodes, totp } from './factors.ts'
import {
  addMember,
  allRows,
  asOwner,
  createTenant,
  eventually,
  mailsTo,
  password,
  post,
  type Reply,
  root,
  send,
  setStatus,
  startApp,
  type Tenant,
  type TestApp,
  type Tokens
} from './harness.ts'
import { verifyAll } from './mailed-links.ts'
import { clientId, clientSecret, exchange, linkAt, signInAt, startScriptedProvider } from './providers.ts'
import { bearer, login, me, unknownId } from './requests.ts'
import { refresh } from './session-requests.ts'
import { sidOf } from './tokens.ts'

/*
 * An agency that demands its own provider: every other door is closed, but for break-glass owners.
 */

const enforcement = '/api/v1/enforcement'
const enforce = (tenant: Tenant, provider_id: string) =>
  tenant.send({ method: 'PUT', url: enforcement, payload: { provider_id } })
const end = (tenant: Tenant) => tenant.send({ method: 'DELETE', url: enforcement })
const breakGlass = (tenant: Tenant, method: 'PUT' | 'DELETE', userId: string) =>
  tenant.send({ method, url: `${enforcement}/break-glass/${userId}` })

/** A provider of the agency. Nothing answers at the address unless the test says so. */
async function addProvider(tenant: Tenant, issuer = 'http://localhost:1'): Promise<string> {
  const payload = { name: 'Login', issuer, client_id: clientId, client_secret: clientSecret }
  const reply = await tenant.send(post('/identity-providers', payload))
  if (reply.statusCode !== 201) throw new Error(reply.body)
  return reply.json().id
}

const proveDomain = (app: TestApp, tenant: Tenant) =>
  allRows(
    app.database,
    "insert into tenant_domains (tenant_id, name, verified_at) values ($1, 'acme.example', now())",
    [tenant.id]
  )

/** Opens a session as a sign-in through the provider does. Undefined: it was refused. */
async function throughProvider(
  app: TestApp,
  tenant: Tenant,
  userId: string,
  provider: string
): Promise<Tokens | undefined> {
  const scope = { tenant_id: tenant.id, user_id: userId, request: '' }
  const id = await app.gate.transaction(scope, async (trx) => {
    const { rows } = await sql<{ id: string | null }>`
      select open_session(${userId}, '1 day', '1 day', null, now(), ${provider}::uuid) as id`.execute(trx)
    return rows[0]?.id
  })
  if (!id) return undefined
  const [{ email, role }] = await allRows(
    app.database,
    'select u.email, m.role from users u join memberships m on m.user_id = u.id where u.id = $1 and m.tenant_id = $2',
    [userId, tenant.id]
  )
  return app.tokens.issue(
    { user_id: userId, email, tenant_id: tenant.id, role, sid: id, key_thumbprint: null },
    0
  ) as Tokens
}

/** An agency that demands its provider. Its owner has broken the glass in advance. */
async function createEnforced(app: TestApp, slug: string, issuer?: string) {
  const tenant = await createTenant(app, slug)
  const authenticator = await enroll(app, tenant)
  const provider = await addProvider(tenant, issuer)
  await proveDomain(app, tenant)
  await throughProvider(app, tenant, tenant.owner.id, provider)
  const added = await breakGlass(tenant, 'PUT', tenant.owner.id)
  if (added.statusCode !== 204) throw new Error(added.body)
  const start = async () => {
    const started = await enforce(tenant, provider)
    if (started.statusCode !== 200) throw new Error(started.body)
  }
  return { tenant, provider, authenticator, start }
}

async function invite(app: TestApp, tenant: Tenant, email: string): Promise<string> {
  const invited = await tenant.send(post('/invitations', { email, role: 'member' }))
  if (invited.statusCode !== 201) throw new Error(invited.body)
  return app.oneTimeTokens.issue('invitation', { tenant_id: tenant.id, id: invited.json().id, generation: 1 })
}

t.test('an agency begins to demand its provider', async (t) => {
  const app = await startApp(t)
  const acme = await createTenant(app, 'acme')
  const rival = await createTenant(app, 'rival')
  const provider = await addProvider(acme)
  const lacks = async (missing: string[]) => {
    const refusal = (await enforce(acme, provider)).json()
    t.match(refusal, { status: 409, code: 'enforcement_not_ready' })
    t.strictSame(refusal.missing, missing)
  }
  await lacks(['proven_domain', 'owner_sign_in', 'break_glass_owner'])
  await proveDomain(app, acme)
  await lacks(['owner_sign_in', 'break_glass_owner'])

  await addMember(app, acme, rival.owner.id, 'member')
  await throughProvider(app, acme, rival.owner.id, provider)
  await lacks(['owner_sign_in', 'break_glass_owner'])
  const own = await throughProvider(app, acme, acme.owner.id, provider)
  await lacks(['break_glass_owner'])
  await allRows(app.database, "update sessions set provider_at = now() - interval '25 hours' where id = $1", [
    sidOf(own as Tokens)
  ])
  await lacks(['owner_sign_in', 'break_glass_owner'])
  await throughProvider(app, acme, acme.owner.id, provider)

  t.match((await breakGlass(acme, 'PUT', acme.owner.id)).json(), { status: 409, code: 'conflict' }, 'without a factor')
  await enroll(app, acme)
  t.equal((await breakGlass(acme, 'PUT', acme.owner.id)).statusCode, 204)
  t.equal((await breakGlass(acme, 'PUT', acme.owner.id)).statusCode, 204, 'twice is once')
  for (const id of [unknownId, rival.owner.id]) {
    t.match((await breakGlass(acme, 'PUT', id)).json(), { status: 404, code: 'not_found' }, 'only an owner')
  }
  const foreign = await addProvider(rival)
  for (const id of [unknownId, foreign]) t.match((await enforce(acme, id)).json(), { status: 404, code: 'not_found' })

  t.match((await acme.send(enforcement)).json(), {
    provider_id: null,
    enforced_from: null,
    break_glass_owners: [{ user_id: acme.owner.id, ready: true }]
  })
  await verifyAll(app)
  const offered = () => acme.anonymous('/api/v1/auth/providers')
  t.match((await offered()).json(), { required_provider: null })
  t.match((await enforce(acme, provider)).json(), { provider_id: provider, enforced_from: String })
  t.match((await offered()).json(), { required_provider: provider })
  t.match((await enforce(acme, provider)).json(), { provider_id: provider }, 'twice is once')
  t.match((await acme.send(enforcement)).json(), { provider_id: provider, enforced_from: String })
  t.match((await rival.send(enforcement)).json(), { provider_id: null, break_glass_owners: [] })

  const second = await addProvider(acme, 'http://localhost:2')
  t.match((await enforce(acme, second)).json(), { missing: ['owner_sign_in'] }, 'each provider is tried first')
  t.equal((await end(acme)).statusCode, 204)
  t.equal((await end(acme)).statusCode, 204)
  const events = await allRows(
    app.database,
    "select action from audit_events where tenant_id = $1 and action ~ 'enforcement|break_glass' order by created_at, id",
    [acme.id]
  )
  t.strictSame(
    events.map(({ action }) => action),
    ['member.break_glass_granted', 'enforcement.started', 'enforcement.ended']
  )
  const told = await allRows(
    app.database,
    "select kind, user_id, detail from account_mails where agency_id = $1 and kind ~ '^provider_demand' order by id",
    [acme.id]
  )
  t.strictSame(
    told.map(({ kind, user_id, detail }) => `${kind} ${user_id} ${detail.provider}`).sort(),
    ['provider_demanded', 'provider_demand_ended']
      .flatMap((kind) => [acme, rival].map(({ owner }) => `${kind} ${owner.id} Login`))
      .sort(),
    'each member is told once of each'
  )

  await allRows(
    app.database,
    "update sessions set authenticated_at = now() - interval '6 minutes' where provider_id is null"
  )
  const stale = { status: 403, code: 'reauthentication_required' }
  t.match((await enforce(acme, provider)).json(), stale)
  t.match((await end(acme)).json(), stale)
  t.match((await breakGlass(acme, 'DELETE', acme.owner.id)).json(), stale)
})

t.test('every door but the provider is closed', async (t) => {
  const [own, google] = [await startScriptedProvider(t), await startScriptedProvider(t)]
  const atGoogle = { GOOGLE_CLIENT_ID: clientId, GOOGLE_CLIENT_SECRET: clientSecret, GOOGLE_ISSUER: google.issuer }
  const app = await startApp(t, { LOG_LEVEL: 'info', ...atGoogle })
  const { tenant: acme, provider, authenticator, start } = await createEnforced(app, 'acme', own.issuer)
  const rival = await createTenant(app, 'rival')
  /** A member of both agencies. */
  const guest = await createTenant(app, 'guest')
  for (const tenant of [acme, rival]) await addMember(app, tenant, guest.owner.id, 'member')
  const { email, id } = guest.owner
  const signIn = (tenant: Tenant, word = password) =>
    send(app, tenant.host, post('/auth/login', { email, password: word }))
  const before: Tokens = (await signIn(acme)).json()
  const invitations = await Promise.all(['new@acme.example', rival.owner.email].map((each) => invite(app, acme, each)))
  const wrongBefore = (await signIn(acme, 'not the right one')).json()
  await start()
  const required = (t: Test, reply: Reply) =>
    t.match(reply.json(), { status: 403, code: 'provider_required', provider })

  await t.test('these are all there are', (t) => {
    const files = readdirSync(join(root, 'routes'), { recursive: true, encoding: 'utf8' }).filter((file) => {
      const opens = /\b(openSession|openFirstSession)\b/
      return file.endsWith('.ts') && opens.test(readFileSync(join(root, 'routes', file), 'utf8'))
    })
    // the two of a second factor share their refusal
    const shared = [join('mfa', 'sign-in.ts'), join('mfa', 'enrollment.ts')]
    for (const file of files.filter((each) => each !== join('auth', 'register.ts'))) {
      const text = readFileSync(join(root, 'routes', file), 'utf8')
      t.match(text, shared.includes(file) ? 'throw refusalOf(' : 'providerRequired', `${file} names the provider`)
    }
    t.match(readFileSync(join(root, 'routes', 'mfa', 'sign-in-tokens.ts'), 'utf8'), 'return providerRequired(')
    t.end()
  })
  await t.test('sign-in, which answers a wrong password as always', async (t) => {
    required(t, await signIn(acme))
    required(t, await send(app, 'localhost', post('/auth/login', { email, password, tenant: 'acme' })))
    const { request_id: _, ...wrong } = (await signIn(acme, 'not the right one')).json()
    const { request_id: __, ...expected } = wrongBefore
    t.strictSame(wrong, expected)
    const stranger = (await send(app, acme.host, post('/auth/login', { email: 'x@acme.example', password }))).json()
    t.match(stranger, { status: 401, code: 'invalid_credentials' })
    t.equal((await signIn(rival)).statusCode, 200, 'other agencies are open')
  })
  await t.test('refresh', async (t) => {
    t.match((await refresh(app, before.refresh_token)).json(), { status: 401, code: 'session_revoked' })
    t.equal((await acme.with(before.access_token, me)).statusCode, 200, 'an access token is good until its end')
  })
  await t.test('switch', async (t) => {
    const there: Tokens = (await signIn(rival)).json()
    required(t, await rival.with(there.access_token, post('/auth/switch', { tenant: 'acme' })))
  })
  await t.test('a second factor', async (t) => {
    const careful = await createTenant(app, 'careful')
    const { id: user_id } = careful.owner
    await addMember(app, acme, user_id, 'member')
    const factor = await enroll(app, careful)
    const mfa_token = app.mfaTokens.issue('sign_in', { tenant_id: acme.id, user_id, password_version: 1 })
    required(t, await complete(app, mfa_token, factor.code()))
    await forgetUsedCodes(app, user_id)
    const removed = await careful.send({ method: 'DELETE', url: totp, payload: { code: factor.code() } })
    t.equal(removed.statusCode, 204, 'which somebody who is no break-glass owner may remove')
  })
  await t.test('an invitation, which stays as it was', async (t) => {
    const accept = (body: object, headers = {}) => send(app, 'localhost', post('/invitations/accept', body, headers))
    required(t, await accept({ token: invitations[0], name: 'New', password }))
    required(t, await accept({ token: invitations[1] }, bearer(rival.owner.tokens.access_token)))
    const { data } = (await acme.send('/api/v1/members')).json()
    const members = data.map((each: { email: string }) => each.email)
    t.notOk(members.includes('new@acme.example') || members.includes(rival.owner.email))
    const waiting = (await acme.send('/api/v1/invitations')).json().data
    t.match(waiting, [{ valid: true }, { valid: true }])
  })
  await t.test('what the version before calls', async (t) => {
    const scope = { tenant_id: acme.id, user_id: id, request: '' }
    for (const call of [
      sql`open_session(${id}, '1 hour', '1 hour')`,
      sql`open_session(${id}, '1 hour', '1 hour', null, now())`
    ]) {
      const opened = await app.gate.transaction(
        scope,
        async (trx) => (await sql<{ id: unknown }>`select ${call} as id`.execute(trx)).rows
      )
      t.strictSame(opened, [{ id: null }])
    }
    const renew = [['update sessions set counter = counter + 1 where id = $1', [sidOf(before)]]] as [
      string,
      unknown[]
    ][]
    await t.rejects(asOwner(app.database, acme.id, id, renew), { code: 'AG003' })
  })
  await t.test('a refresh at the moment at which the demand begins', async (t) => {
    await allRows(app.database, 'update identity_providers set enforced_from = null where id = $1', [provider])
    await withClient(app.database.postgres, async (blocker) => {
      await blocker.query('begin')
      await blocker.query('select from sessions where id = $1 for update', [sidOf(before)])
      const asked = refresh(app, before.refresh_token)
      const waiting = "select from pg_stat_activity where datname = current_database() and wait_event_type = 'Lock'"
      await eventually(async () => (await allRows(app.database, waiting)).length > 0)
      await allRows(app.database, 'update identity_providers set enforced_from = now() where id = $1', [provider])
      await blocker.query('rollback')
      t.match((await asked).json(), { status: 401, code: 'session_revoked' })
    })
  })
  await t.test('another provider of the agency', async (t) => {
    const other = await addProvider(acme, 'http://localhost:2')
    t.equal(await throughProvider(app, acme, id, other), undefined)
  })
  await t.test('a provider for everybody', async (t) => {
    const linked = await linkAt(app, { key: 'google', at: google }, guest, { sub: 'guest', email })
    t.equal(linked.statusCode, 201)
    const { code, code_verifier } = await signInAt(app, { key: 'google', at: google }, 'acme', { sub: 'guest', email })
    required(t, await exchange(app, code, code_verifier))
    const elsewhere = await signInAt(app, { key: 'google', at: google }, 'rival', { sub: 'guest', email })
    t.equal((await exchange(app, elsewhere.code, elsewhere.code_verifier)).statusCode, 200)
  })
  await t.test('the provider opens, and its sessions are renewed', async (t) => {
    await verifyAll(app)
    const account = { sub: 'guest', email, email_verified: true }
    const { code, code_verifier } = await signInAt(app, { key: provider, at: own }, 'acme', account)
    const reply = await exchange(app, code, code_verifier)
    t.equal(reply.statusCode, 200)
    const opened = reply.json()
    t.equal((await acme.with(opened.access_token, me)).statusCode, 200)
    const renewed = (await refresh(app, opened.refresh_token)).json()
    t.equal((await refresh(app, renewed.refresh_token)).statusCode, 200)
  })
  await t.test('a lost domain opens nothing', async (t) => {
    await allRows(app.database, 'update tenant_domains set verified_at = null where tenant_id = $1', [acme.id])
    required(t, await signIn(acme))
  })
  await t.test('a break-glass owner comes in, and all owners are told', async (t) => {
    await verifyAll(app)
    await addMember(app, acme, rival.owner.id, 'member').catch(() => {})
    await allRows(app.database, "update memberships set role = 'owner' where tenant_id = $1 and user_id = $2", [
      ...[acme.id, rival.owner.id]
    ])
    await forgetUsedCodes(app, acme.owner.id)
    const challenge = (await login(app, acme.owner.email, password)).json()
    t.match(challenge, { code: 'mfa_required' }, 'never by the password alone')
    const reply = await complete(app, challenge.mfa_token, authenticator.code())
    t.equal(reply.statusCode, 200)
    t.equal((await refresh(app, reply.json().refresh_token)).statusCode, 200)
    const events = await allRows(
      app.database,
      "select actor_id from audit_events where tenant_id = $1 and action = 'session.break_glass'",
      [acme.id]
    )
    t.strictSame(events, [{ actor_id: acme.owner.id }])
    app.mail.wake()
    for (const owner of [acme.owner.email, rival.owner.email]) {
      await eventually(() =>
        mailsTo(app, owner).some(({ text }) => text.includes(`${acme.owner.email}, a break-glass`))
      )
    }
    t.notOk(
      mailsTo(app, email).some(({ text }) => text.includes('break-glass')),
      'and nobody else'
    )
  })
  await t.test('until the demand ends', async (t) => {
    t.equal((await end(acme)).statusCode, 204)
    t.equal((await signIn(acme)).statusCode, 200)
    t.equal((await refresh(app, before.refresh_token)).statusCode, 200)
  })
})

t.test('the last break-glass owner stays one', async (t) => {
  const app = await startApp(t)
  const { tenant: acme, provider, authenticator, start } = await createEnforced(app, 'acme')
  const other = await createTenant(app, 'other')
  await addMember(app, acme, other.owner.id, 'owner')
  await start()
  const { id } = acme.owner
  const last = { status: 409, code: 'last_break_glass_owner' }
  const byOther = async () => (await throughProvider(app, acme, other.owner.id, provider)) as Tokens
  const attempts: Record<string, () => Promise<Reply>> = {
    'by taking it from them': () => breakGlass(acme, 'DELETE', id),
    'by another role': () => acme.send({ method: 'PATCH', url: `/api/v1/members/${id}`, payload: { role: 'admin' } }),
    'by handing the agency over': () => acme.send(post('/tenant/transfer', { user_id: other.owner.id })),
    'by leaving': () => acme.send({ method: 'DELETE', url: `/api/v1/members/${id}` }),
    'by being removed': async () => {
      const { access_token } = await byOther()
      return acme.with(access_token, { method: 'DELETE', url: `/api/v1/members/${id}` })
    },
    'by removing the second factor': async () => {
      await forgetUsedCodes(app, id)
      return acme.send({ method: 'DELETE', url: totp, payload: { code: authenticator.code() } })
    },
    'by deleting the account': () => acme.send({ method: 'DELETE', url: '/api/v1/users/me', payload: { password } })
  }
  for (const [title, attempt] of Object.entries(attempts)) t.match((await attempt()).json(), last, title)
  t.match((await acme.send(enforcement)).json(), { break_glass_owners: [{ user_id: id, ready: true }] })

  await setStatus(app, acme, 'suspended')
  const suspended = { tenant_id: acme.id, user_id: id, request: '' }
  const removals = [
    sql`select remove_my_factor()`,
    sql`update memberships set break_glass = false where user_id = ${id}`
  ]
  for (const removal of removals) {
    const removed = app.gate.transaction(suspended, (trx) => removal.execute(trx))
    await t.rejects(removed, { code: 'AG001' }, 'nor while the agency is suspended')
  }
  const forgotten = app.gate.transaction(suspended, (trx) => sql`delete from identity_providers`.execute(trx))
  await t.rejects(forgotten, { code: 'AG002' })
  await setStatus(app, acme, 'active')
  await app.revocations.readNow()

  await enroll(app, other)
  t.equal((await breakGlass(acme, 'PUT', other.owner.id)).statusCode, 204)
  const both = await Promise.all([breakGlass(acme, 'DELETE', id), breakGlass(acme, 'DELETE', other.owner.id)])
  t.strictSame(both.map(({ statusCode }) => statusCode).sort(), [204, 409], 'of two at the same moment one stays')
  const [{ user_id: left }] = (await acme.send(enforcement)).json().break_glass_owners
  const gone = left === id ? other.owner.id : id
  t.equal((await breakGlass(acme, 'PUT', gone)).statusCode, 204)
  t.equal((await attempts['by another role']?.())?.statusCode, 200, 'with another one they may go')
  t.strictSame(
    await allRows(app.database, 'select break_glass from memberships where tenant_id = $1 and user_id = $2', [
      acme.id,
      id
    ]),
    [{ break_glass: false }],
    'and are none any more'
  )

  const { access_token } = await byOther()
  const removal = { method: 'DELETE', url: `/api/v1/identity-providers/${provider}` } as const
  const refused = await acme.with(access_token, removal)
  t.match(refused.json(), { status: 409, code: 'conflict' }, 'a provider that is demanded stays')
  t.equal((await acme.with(access_token, { method: 'DELETE', url: enforcement })).statusCode, 204)
  t.equal((await acme.with(access_token, removal)).statusCode, 204)
})

t.test('an agency demands its provider ten times a day at most, and may always end it', async (t) => {
  const app = await startApp(t)
  const { tenant: acme, provider, start } = await createEnforced(app, 'acme')
  for (let n = 0; n < 10; n++) {
    await start()
    t.equal((await end(acme)).statusCode, 204)
  }
  t.match((await enforce(acme, provider)).json(), { status: 429, code: 'rate_limited' })
  t.equal((await acme.send(enforcement)).json().provider_id, null, 'nothing has changed')
  const payload = { settings: { mfa_required_from: '2031-01-01T00:00:00Z' } }
  const demanded = await acme.send({ method: 'PATCH', url: '/api/v1/tenant', payload })
  t.match(demanded.json(), { status: 429, code: 'rate_limited' }, 'a second factor is counted with it')
})

t.test('an agency that demands its provider can be deleted and purged', async (t) => {
  const app = await startApp(t, { TENANT_PURGE_AFTER: '0' })
  const { tenant: acme, start } = await createEnforced(app, 'acme')
  await start()
  const deleted = await acme.send({ method: 'DELETE', url: '/api/v1/tenant', payload: { slug: 'acme' } })
  t.equal(deleted.statusCode, 202)
  await app.housekeeping.run()
  t.strictSame(await allRows(app.database, 'select from tenants where id = $1', [acme.id]), [])
})
