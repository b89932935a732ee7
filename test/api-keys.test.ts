import t, { type Test } from 'tap'
import { createSecret, formatKey, parseKey } from '../src/auth/api-keys/key-format.ts'
import { permissions, permissionTable } from '../src/auth/api-keys/permissions.ts'
import {
  addMember,
  allRows,
  createTenant,
  eventually,
  mailedTokens,
  password,
  post,
  readText,
  send,
  startApp,
  type Tenant,
  type TestApp
} from './harness.ts'
import { from, me, unknownId } from './requests.ts'

/*
 * API keys: their life, what they may do and from where, and what ends them. test/isolation-keys.ts has every operation.
 */

const input = { name: 'Accounting', role: 'member', permissions: ['files:read', 'tenant:read'] }
const collection = '/api/v1/api-keys'
const path = (id: string) => `${collection}/${id}`
const tenantPath = '/api/v1/tenant'
type Made = { id: string; key: string; name: string; created_by: string }

async function make(tenant: Tenant, more: object = {}, token = tenant.owner.tokens.access_token): Promise<Made> {
  const reply = await tenant.with(token, post('/api-keys', { ...input, ...more }))
  if (reply.statusCode !== 201) throw new Error(reply.body)
  return reply.json()
}
const rotate = (tenant: Tenant, id: string, body: object = {}) => tenant.send(post(`/api-keys/${id}/rotate`, body))
const end = (tenant: Tenant, id: string) => tenant.send({ method: 'DELETE', url: path(id) })

/** The status of a read with a key, in one process. */
const statusOf = async (app: TestApp, tenant: Tenant, key: string, url = tenantPath) =>
  (await send(app, tenant.host, { url, headers: { authorization: `Bearer ${key}` } })).statusCode

/** An admin of the agency, who has just signed in. */
async function addAdmin(app: TestApp, tenant: Tenant, name: string): Promise<{ id: string; token: string }> {
  const email = `${name}@example.com`
  const other = await createTenant(app, `${name}-own`, email)
  await addMember(app, tenant, other.owner.id, 'admin')
  const reply = await send(app, tenant.host, post('/auth/login', { email, password }))
  return { id: other.owner.id, token: reply.json().access_token }
}

const events = async (app: TestApp, tenant: Tenant) =>
  allRows(
    app.database,
    `select action, actor_id, target_id, detail from audit_events where tenant_id = $1 and action like 'api_key.%' order by created_at, id`,
    [tenant.id]
  )

async function start(t: Test, env = {}) {
  const app = await startApp(t, env)
  return { app, acme: await createTenant(app, 'acme'), rival: await createTenant(app, 'rival') }
}

t.test('the life of a key', async (t) => {
  const { app, acme, rival } = await start(t)
  const made = await make(acme, { cidrs: ['0.0.0.0/1', '127.0.0.1', '2001:db8::1/32'], name: '  Accounting ' })
  const { key, ...shown } = made
  t.match(shown, { ...input, cidrs: ['0.0.0.0/1', '127.0.0.1/32', '2001:db8::/32'], created_by: acme.owner.id })
  t.match(shown, { expires_at: null, last_used_at: null, previous_until: null })

  await t.test('it is shown once, and stored nowhere', async (t) => {
    t.strictSame((await acme.send(path(made.id))).json(), shown)
    t.strictSame((await acme.send(collection)).json(), { data: [shown], next_cursor: null })
    const { secret } = parseKey(key) as { secret: Buffer }
    const rows = await allRows(
      app.database,
      'select k::text as row from api_keys k union all select a::text from audit_events a'
    )
    const found = rows.filter(({ row }) => row.includes(key) || row.includes(secret.toString('hex')))
    t.strictSame(found, [])
  })
  await t.test('another agency sees none of it', async (t) => {
    t.strictSame((await rival.send(collection)).json().data, [])
    t.equal((await rival.send(path(made.id))).statusCode, 404)
    t.equal((await rotate(rival, made.id)).statusCode, 404)
    t.equal((await end(rival, made.id)).statusCode, 404)
    t.equal((await rival.with(key, tenantPath)).json().code, 'tenant_mismatch')
  })
  await t.test('it may do what its role and permissions allow, and nothing else', async (t) => {
    t.equal((await acme.with(key, tenantPath)).statusCode, 200)
    t.equal(
      (await send(app, 'localhost', { url: tenantPath, headers: { authorization: `bEaReR ${key}` } })).statusCode,
      200
    )
    t.match((await acme.with(key, '/api/v1/members')).json(), {
      ...{ code: 'forbidden', detail: 'this API key lacks the permission members:read' }
    })
    for (const url of [me, collection, '/api/v1/domains', '/api/v1/tenant/export']) {
      t.match(
        (await acme.with(key, url)).json(),
        { status: 403, code: 'forbidden', detail: 'no API key may do this' },
        url
      )
    }
    const signOut = await acme.with(key, post('/auth/logout', {}))
    t.match(signOut.json(), { status: 401, code: 'invalid_token' })
    const readDenied = () =>
      allRows(
        app.database,
        "select actor_id, session_id from audit_events where action = 'authz.denied' and tenant_id = $1",
        [acme.id]
      )
    // they are written beside the replies: five here, and one on the host of the other agency
    await eventually(async () => (await readDenied()).length === 6)
    const denied = await readDenied()
    t.ok(denied.every(({ actor_id, session_id }) => actor_id === made.id && session_id === null))
  })
  await t.test('it is rotated, with an overlap', async (t) => {
    const status = (each: string) => statusOf(app, acme, each)
    const second = (await rotate(acme, made.id)).json()
    t.not(second.key, key)
    t.ok(Math.abs(Date.parse(second.previous_until) - Date.now() - 86_400_000) < 60_000, 'a day')
    t.strictSame([await status(key), await status(second.key)], [200, 200])
    const third = (await rotate(acme, made.id, { overlap_seconds: 1 })).json()
    t.strictSame(
      [await status(key), await status(second.key), await status(third.key)],
      [401, 200, 200],
      'one older key at most'
    )
    await eventually(async () => (await status(second.key)) === 401, 5000)
    t.equal((await acme.send(path(made.id))).json().previous_until, null)
    const fourth = (await rotate(acme, made.id, { overlap_seconds: 0 })).json()
    t.strictSame([await status(third.key), await status(fourth.key)], [401, 200], 'at once')
    t.equal((await end(acme, made.id)).statusCode, 204)
    t.equal(await status(fourth.key), 401)
    t.equal((await end(acme, made.id)).statusCode, 404)
    t.equal((await rotate(acme, made.id)).statusCode, 404)
  })
  t.match(await events(app, acme), [
    {
      action: 'api_key.created',
      actor_id: acme.owner.id,
      target_id: made.id,
      detail: { after: { name: 'Accounting' } }
    },
    { action: 'api_key.rotated', detail: { overlap_seconds: 86_400 } },
    { action: 'api_key.rotated', detail: { overlap_seconds: 1 } },
    { action: 'api_key.rotated', detail: { overlap_seconds: 0 } },
    { action: 'api_key.ended', detail: { before: { name: 'Accounting' } } }
  ])
})

t.test('what is refused at creation', async (t) => {
  const { app, acme } = await start(t)
  const refused: [body: object, path: string][] = [
    [{ role: 'owner' }, '/body/role'],
    [{ permissions: [] }, '/body/permissions'],
    [{ permissions: ['files:read', 'files:read'] }, '/body/permissions'],
    [{ permissions: ['files:everything'] }, '/body/permissions/0'],
    [{ role: 'member', permissions: ['files:read', 'members:write'] }, '/body/permissions/1'],
    [{ role: 'viewer', permissions: ['files:write'] }, '/body/permissions/0'],
    [{ cidrs: ['192.0.2.0/33'] }, '/body/cidrs/0'],
    [{ cidrs: ['192.0.2.0', 'example.com'] }, '/body/cidrs/1'],
    [{ cidrs: ['0.0.0.0/0'] }, '/body/cidrs/0'],
    [{ cidrs: ['fe80::1%eth0'] }, '/body/cidrs/0'],
    [{ cidrs: ['::ffff:1.2.3.4/90'] }, '/body/cidrs/0'],
    [{ cidrs: ['192.0.2.1', '::ffff:0:0/96'] }, '/body/cidrs/1'],
    [{ cidrs: Array.from({ length: 21 }, (_, i) => `192.0.2.${i}`) }, '/body/cidrs'],
    [{ expires_at: new Date(Date.now() - 1000).toISOString() }, '/body/expires_at'],
    [{ expires_at: 'tomorrow' }, '/body/expires_at'],
    [{ name: ' ' }, '/body/name']
  ]
  for (const [body, where] of refused) {
    const { code, errors } = (await acme.send(post('/api-keys', { ...input, ...body }))).json()
    t.equal(code, 'validation_failed', JSON.stringify(body))
    t.ok(
      errors?.some((each: { path: string }) => each.path.startsWith(where)),
      `${JSON.stringify(errors)} names ${where}`
    )
  }
  t.match((await rotate(acme, unknownId, { overlap_seconds: 604_801 })).json(), { code: 'validation_failed' })

  await allRows(app.database, "update sessions set authenticated_at = now() - interval '6 minutes'")
  const stale = { status: 403, code: 'reauthentication_required' }
  t.match((await acme.send(post('/api-keys', input))).json(), stale, 'a stolen token makes no key')
  t.match((await rotate(acme, unknownId)).json(), stale)
  await allRows(app.database, 'update sessions set authenticated_at = now()')

  await allRows(
    app.database,
    `insert into api_keys (tenant_id, id, name, role, permissions, cidrs, secret_hash, created_by)
     select $1, uuid_v7(), 'one of many', 'viewer', '{files:read}', '{}', sha256('none'), $2 from generate_series(1, 98)`,
    [acme.id, acme.owner.id]
  )
  const many = await Promise.all([1, 2, 3, 4].map(() => acme.send(post('/api-keys', input))))
  t.strictSame(
    many.map(({ statusCode }) => statusCode).sort(),
    [201, 201, 409, 409],
    'a hundred at most, also at the same moment'
  )
  const first = (await acme.send(`${collection}?limit=60`)).json()
  const second = (await acme.send(`${collection}?limit=60&cursor=${first.next_cursor}`)).json()
  t.equal(new Set([...first.data, ...second.data].map(({ id }) => id)).size, 100)
})

t.test('where a key may be used from', async (t) => {
  const { acme } = await start(t, { TRUST_PROXY: '10.0.0.1' })
  const status = async (key: string, ip: string) => {
    const { headers, ...rest } = from(ip)
    return (await acme.with(key, { url: tenantPath, ...rest, headers })).statusCode
  }
  const cases: [cidrs: string[], inside: string[], outside: string[]][] = [
    [
      ['192.0.2.0/24'],
      ['192.0.2.1', '::ffff:192.0.2.1', '::ffff:c000:201'],
      ['192.0.3.1', '::ffff:192.0.3.1', '::1', '2001:db8::1']
    ],
    [['::ffff:0:0/97'], ['1.2.3.4', '::ffff:127.0.0.1'], ['128.0.0.1', '2001:db8::1']],
    [['::ffff:192.0.2.0/120'], ['192.0.2.9', '::ffff:192.0.2.9'], ['192.0.3.9', '::ffff:192.0.3.9']],
    [
      ['2001:db8::/32', '198.51.100.7'],
      ['2001:db8:1::2', '198.51.100.7'],
      ['2001:db9::1', '198.51.100.8']
    ],
    [[], ['192.0.2.1', '2001:db8::1'], []]
  ]
  for (const [cidrs, inside, outside] of cases) {
    const { key } = await make(acme, { cidrs })
    for (const ip of inside) t.equal(await status(key, ip), 200, `${cidrs}: ${ip}`)
    for (const ip of outside) t.equal(await status(key, ip), 403, `${cidrs}: not ${ip}`)
    for (const ip of inside) t.equal(await status(key, ip), 200, `${cidrs}: ${ip} again`)
  }
})

t.test('a key expires, also while it is remembered', async (t) => {
  const { app, acme } = await start(t)
  const made = await make(acme, { expires_at: new Date(Date.now() + 2000).toISOString() })
  t.equal(await statusOf(app, acme, made.key), 200)
  await eventually(async () => (await statusOf(app, acme, made.key)) === 401, 5000)
  t.match((await acme.with(made.key, tenantPath)).json(), { code: 'token_expired', detail: 'this API key has expired' })
  t.match((await rotate(acme, made.id)).json(), { status: 409, code: 'conflict' })
  t.equal((await acme.send(collection)).json().data.length, 1, 'and is listed until it is ended')
})

t.test('a key ends with the right of its author to make one', async (t) => {
  const { app, acme } = await start(t)
  const other = await startApp(t, {}, app.database)
  const member = (id: string) => `/api/v1/members/${id}`
  const ways: [title: string, act: (id: string, token: string) => Promise<unknown>][] = [
    ['demoted', (id) => acme.send({ method: 'PATCH', url: member(id), payload: { role: 'member' } })],
    ['removed', (id) => acme.send({ method: 'DELETE', url: member(id) })],
    ['gone by themselves', (id, token) => acme.with(token, { method: 'DELETE', url: member(id) })],
    ['disabled', (id) => allRows(app.database, "select operate_account($1, 'disable', interval '1 day')", [id])],
    [
      'who has ended their account',
      async (_, token) => acme.with(token, { method: 'DELETE', url: me, payload: { password } })
    ]
  ]
  for (const [index, [title, act]] of ways.entries()) {
    const admin = await addAdmin(app, acme, `author${index}`)
    // an account is ended by its only owner no more than an agency is left without one
    await allRows(app.database, "delete from memberships where user_id = $1 and role = 'owner'", [admin.id])
    const { key, id } = await make(acme, {}, admin.token)
    const kept = await make(acme, {}, admin.token)
    const rotated = await rotate(acme, kept.id)
    t.equal(rotated.statusCode, 201, 'another admin takes one over')
    for (const each of [key, kept.key])
      t.strictSame([await statusOf(app, acme, each), await statusOf(other, acme, each)], [200, 200], title)
    await act(admin.id, admin.token)
    const ms = await eventually(async () => (await statusOf(other, acme, key)) === 401, 5000)
    t.ok(ms < 1000, `${title}: within a second in every process, ${Math.round(ms)} ms`)
    await eventually(async () => (await statusOf(app, acme, key)) === 401, 1000)
    t.equal(await statusOf(other, acme, rotated.json().key), 200, `${title}: what another admin has rotated goes on`)
    t.equal(await statusOf(other, acme, kept.key), 401, `${title}: but not under the secret that its author was shown`)
    t.equal((await acme.send(path(kept.id))).json().previous_until, null)
    t.equal((await acme.send(path(id))).statusCode, 404)
    const [ended] = (await events(app, acme)).filter(
      ({ action, target_id }) => action === 'api_key.ended' && target_id === id
    )
    t.match(ended?.detail, { before: { name: 'Accounting' }, reason: 'author' }, title)
  }

  await t.test('and not with a change that leaves it', async (t) => {
    const admin = await addAdmin(app, acme, 'promoted')
    const { key } = await make(acme, {}, admin.token)
    await acme.send({ method: 'PATCH', url: member(admin.id), payload: { role: 'owner' } })
    t.equal(await statusOf(app, acme, key), 200)
  })
  await t.test('also when it is made at that moment', async (t) => {
    for (let i = 0; i < 5; i++) {
      const admin = await addAdmin(app, acme, `hasty${i}`)
      const [made] = await Promise.all([
        acme.with(admin.token, post('/api-keys', input)),
        acme.send({ method: 'PATCH', url: member(admin.id), payload: { role: 'member' } })
      ])
      if (made.statusCode !== 201) continue
      t.equal(await statusOf(app, acme, made.json().key), 401)
    }
    const left = await allRows(
      app.database,
      `select from api_keys k join memberships m on m.tenant_id = k.tenant_id and m.user_id = k.created_by
       where m.role not in ('owner', 'admin')`
    )
    t.equal(left.length, 0)
  })
})

t.test('every process refuses an ended key within a second', async (t) => {
  const { app, acme } = await start(t)
  const other = await startApp(t, {}, app.database)
  const { id, key } = await make(acme)
  t.equal(await statusOf(other, acme, key), 200)
  await end(acme, id)
  const ms = await eventually(async () => (await statusOf(other, acme, key)) === 401, 5000)
  t.ok(ms < 1000, `${Math.round(ms)} ms`)
})

t.test('the database is asked about a key once, and not by a flood', async (t) => {
  const app = await startApp(t, { RATE_LIMIT: '20/1m', RATE_LIMIT_KEY: '30/1m', TRUST_PROXY: '10.0.0.1' })
  const acme = await createTenant(app, 'acme')
  const { id, key } = await make(acme)
  let asked = 0
  const { query } = app.gate
  app.gate.query = (scope, statement, values) => {
    if (statement.name === 'find_api_key') asked++
    return query(scope, statement, values)
  }
  const sendFrom = (ip: string, token: string) => {
    const { headers, ...rest } = from(ip)
    return acme.with(token, { url: tenantPath, ...rest, headers })
  }
  const first = await Promise.all(Array.from({ length: 10 }, () => sendFrom('192.0.2.1', key)))
  t.ok(first.every(({ statusCode }) => statusCode === 200))
  t.equal(asked, 1, 'also for ten requests at once')
  const replies = await Promise.all(Array.from({ length: 40 }, () => sendFrom('192.0.2.1', key)))
  t.equal(
    replies.filter(({ statusCode }) => statusCode === 200).length,
    30,
    'the quota of the key, and not of the address'
  )
  t.match(replies.at(-1)?.headers['ratelimit-policy'], /"key";q=30;w=60/)

  asked = 0
  const wrong = formatKey({ tenant_id: acme.id, id, secret: createSecret() })
  for (let i = 0; i < 5; i++) t.match((await sendFrom('192.0.2.2', wrong)).json(), { code: 'invalid_token' })
  t.equal(asked, 1, 'what was refused is remembered')
  const mistyped = key.slice(0, -1) + (key.endsWith('0') ? '1' : '0')
  t.match((await sendFrom('192.0.2.3', mistyped)).json(), { code: 'invalid_token' })
  t.equal(asked, 1, 'a mistyped key is not looked up')
  const flood = Array.from({ length: 60 }, () => formatKey({ tenant_id: acme.id, id, secret: createSecret() }))
  const answers = await Promise.all(flood.map((each) => sendFrom('192.0.2.4', each)))
  t.equal(asked, 1 + 20, 'a flood of invented keys is limited by its address')
  t.strictSame(new Set(answers.map(({ statusCode }) => statusCode)), new Set([401, 429]))
})

t.test('when a key was last used is written once a minute, and not by the request', async (t) => {
  const { app, acme } = await start(t)
  const [used, unused] = [await make(acme), await make(acme)]
  let writes = 0
  const { query } = app.gate
  app.gate.query = (scope, statement, values) => {
    if (statement.name === 'note_key_uses') writes++
    return query(scope, statement, values)
  }
  const lastUsed = async ({ id }: Made) => (await acme.send(path(id))).json().last_used_at
  for (let i = 0; i < 50; i++) await acme.with(used.key, tenantPath)
  await acme.with(unused.key, '/api/v1/members')
  t.equal(await lastUsed(used), null)
  await app.keyUses.run()
  t.equal(writes, 1, 'all uses in one statement')
  t.ok(Math.abs(Date.parse(await lastUsed(used)) - Date.now()) < 60_000)
  t.equal(await lastUsed(unused), null, 'what was refused is no use')
  await app.keyUses.run()
  t.equal(writes, 1, 'and nothing when no key was used')
})

t.test('a key is an actor of its own', async (t) => {
  const { app, acme } = await start(t, {
    LOG_LEVEL: 'info',
    RATE_LIMIT_MAIL: '2/24h',
    RATE_LIMIT_MAIL_UNVERIFIED: '2/24h'
  })
  const { id, key } = await make(acme, { role: 'admin', permissions })
  const invite = (email: string, token = key, headers = {}) =>
    acme.with(token, { ...post('/invitations', { email, role: 'viewer' }), headers })

  await t.test('in the audit log, and as the author of an invitation', async (t) => {
    const idempotent = { 'idempotency-key': 'one' }
    const reply = await invite('ada@example.com', key, idempotent)
    t.match(reply.json(), { invited_by: id, valid: true })
    const again = await invite('ada@example.com', key, idempotent)
    t.strictSame(again.json(), reply.json(), 'sent again with the same Idempotency-Key it makes nothing')
    t.equal(again.headers['idempotency-replayed'], 'true')
    const [event] = await allRows(app.database, "select actor_id from audit_events where action = 'invitation.created'")
    t.equal(event.actor_id, id)
  })
  await t.test('whose mails count for its author', async (t) => {
    t.equal((await invite('grace@example.com', acme.owner.tokens.access_token)).statusCode, 201)
    t.match((await invite('edsger@example.com')).json(), { status: 429 })
    const another = await make(acme, { role: 'admin', permissions })
    t.match((await invite('edsger@example.com', another.key)).json(), { status: 429 }, 'also by another key')
  })
  await t.test('whose invitation is good while the key is', async (t) => {
    app.mail.wake()
    await eventually(() => mailedTokens(app, 'ada@example.com').length > 0)
    const [token] = mailedTokens(app, 'ada@example.com')
    const byKey = await acme.with(key, post('/invitations/accept', { token }))
    t.match(byKey.json(), { status: 401, code: 'invalid_token' }, 'a key is nobody who could accept it')
    await end(acme, id)
    const accept = await acme.anonymous(post('/invitations/accept', { token, name: 'Ada', password }))
    t.match(accept.json(), { status: 410, code: 'invitation_expired' })
    const [invitation] = (await acme.send('/api/v1/invitations'))
      .json()
      .data.filter((each: { email: string }) => each.email === 'ada@example.com')
    t.equal(invitation.valid, false)
  })
  await t.test('and changes members, but never an owner', async (t) => {
    const other = await make(acme, { role: 'admin', permissions: ['members:write', 'members:read'] })
    const admin = await addAdmin(app, acme, 'colleague')
    const change = (user: string, role: string) =>
      acme.with(other.key, { method: 'PATCH', url: `/api/v1/members/${user}`, payload: { role } })
    t.match((await change(admin.id, 'viewer')).json(), { role: 'viewer' })
    t.match((await change(admin.id, 'owner')).json(), { status: 403, code: 'forbidden' })
    t.match((await change(acme.owner.id, 'viewer')).json(), { status: 403, code: 'forbidden' })
    t.match((await change(unknownId, 'viewer')).json(), { status: 404 })
    const remove = await acme.with(other.key, { method: 'DELETE', url: `/api/v1/members/${admin.id}` })
    t.equal(remove.statusCode, 204)
  })
  await t.test('the export of the agency has keys, without their digests', async (t) => {
    const lines = (await acme.send('/api/v1/tenant/export')).body
      .trim()
      .split('\n')
      .map((line) => JSON.parse(line))
    const rows = lines.filter(({ table }) => table === 'api_key').map(({ row }) => row)
    t.equal(rows.length, 2)
    t.match(rows[0], { name: 'Accounting', role: 'admin', created_by: acme.owner.id })
    t.ok(rows.every((row) => !Object.keys(row).some((name) => /hash|sid/.test(name))))
  })
})

t.test('a suspended agency, and one that is purged', async (t) => {
  const { app, acme, rival } = await start(t)
  const { key } = await make(acme)
  const other = await make(rival)
  const general = (token: string) =>
    send(app, 'localhost', { url: tenantPath, headers: { authorization: `Bearer ${token}` } })
  t.equal((await general(key)).statusCode, 200)
  const deletion = await acme.send({ method: 'DELETE', url: tenantPath, payload: { slug: 'acme' } })
  t.equal(deletion.statusCode, 202)
  t.match((await general(key)).json(), { status: 403, code: 'tenant_suspended' })
  t.match((await acme.with(key, tenantPath)).json(), { status: 403, code: 'tenant_suspended' })
  await allRows(app.database, "delete from changes where kind = 'tenant'")
  const later = await startApp(t, {}, app.database)
  const afterwards = await send(later, 'localhost', { url: tenantPath, headers: { authorization: `Bearer ${key}` } })
  t.match(afterwards.json(), { code: 'tenant_suspended' }, 'also when the change was forgotten')
  await allRows(app.database, 'update tenants set purge_at = now() where id = $1', [acme.id])
  await app.housekeeping.run()
  t.strictSame(await allRows(app.database, 'select tenant_id from api_keys'), [{ tenant_id: rival.id }])
  t.equal((await general(other.key)).statusCode, 200)
})

t.test('the page about keys says what the product does', async (t) => {
  const page = readText('docs/api-keys.md')
  for (const [name, { role, may }] of Object.entries(permissionTable)) {
    t.match(page, `| \`${name}\` | \`${role}\` | ${may} |`)
  }
  t.equal(page.match(/^\| `\w+:\w+` \|/gm)?.length, permissions.length)
})
