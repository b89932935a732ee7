import { setTimeout as sleep } from 'node:timers/promises'
import t, { type Test } from 'tap'
import {
  addMember,
  allRows,
  asOwner,
  createTenant,
  createTestDatabase,
  eventually,
  password,
  post,
  send,
  startApp,
  type Tenant,
  type TestApp,
  type Tokens
} from './harness.ts'
import { bearer, me, unknownId } from './requests.ts'
import { refresh, refused, rotate, sessions } from './session-requests.ts'
import { decode, fingerprint, makeToken, seconds, sidOf, singleSecret } from './tokens.ts'

t.test('signing out', async (t) => {
  const app = await startApp(t, { JWT_SECRET: singleSecret })
  const acme = await createTenant(app, 'acme')
  const rival = await createTenant(app, 'rival')
  const logout = (host: string, headers: object, body?: object) => send(app, host, post('/auth/logout', body, headers))
  const ended = async (t: Test, tokens: Tokens) => {
    refused(t, await acme.with(tokens.access_token, me), 'session_revoked')
    refused(t, await refresh(app, tokens.refresh_token), 'session_revoked')
  }

  t.test('by the bearer, as often as one likes, is recorded once', async (t) => {
    const tokens = await acme.signIn()
    for (let time = 0; time < 3; time++) {
      const reply = await logout(acme.host, { ...bearer(tokens.access_token), 'user-agent': 'a phone/2.0' })
      t.equal(reply.statusCode, 204)
      t.equal(reply.body, '')
    }
    await ended(t, tokens)
    const rows = await allRows(
      app.database,
      "select * from audit_events where session_id = $1 and action = 'session.ended'",
      [sidOf(tokens)]
    )
    t.match(rows, [{ tenant_id: acme.id, actor_id: acme.owner.id, ip: '127.0.0.1', user_agent: 'a phone/2.0' }])
    t.equal(rows.length, 1)
    t.equal((await acme.send(me)).statusCode, 200, 'other sessions go on')
  })
  t.test('by an expired bearer', async (t) => {
    const tokens = await acme.signIn()
    const { header, claims } = decode(tokens.access_token)
    const late = makeToken(header, { ...claims, iat: seconds() - 90_000, exp: seconds() - 3600 }, singleSecret)
    t.equal((await acme.with(late, me)).statusCode, 401, 'good for nothing else')
    t.equal((await logout('localhost', bearer(late))).statusCode, 204)
    await ended(t, tokens)
  })
  t.test('by the refresh token alone', async (t) => {
    const tokens = await acme.signIn()
    for (let time = 0; time < 2; time++) {
      t.equal((await logout('localhost', {}, { refresh_token: tokens.refresh_token })).statusCode, 204)
    }
    await ended(t, tokens)
  })
  t.test('by a refresh token that has a successor', async (t) => {
    const first = await acme.signIn()
    const second = await rotate(app, first.refresh_token)
    t.equal((await logout(acme.host, {}, { refresh_token: first.refresh_token })).statusCode, 204)
    await ended(t, second)
  })
  t.test('with an empty body or none, on either path', async (t) => {
    for (const url of ['/api/v1/auth/logout', '/api/logout']) {
      for (const payload of [undefined, {}, '', null]) {
        const { access_token } = await acme.signIn()
        const headers = { ...bearer(access_token), 'content-type': 'application/json' }
        const body = payload === null ? 'null' : payload
        const request = { method: 'POST', url, headers, ...(body !== undefined && { payload: body }) } as const
        t.equal((await send(app, 'localhost', request)).statusCode, 204, `${url} ${JSON.stringify(payload)}`)
        t.equal((await acme.with(access_token, me)).json().code, 'session_revoked')
      }
    }
  })
  t.test('needs something to go by', async (t) => {
    const { access_token } = await acme.signIn()
    refused(t, await logout('localhost', {}), 'unauthenticated')
    refused(t, await logout('localhost', {}, {}), 'unauthenticated')
    refused(t, await logout('localhost', { authorization: 'Basic eDp5' }), 'unauthenticated')
    refused(t, await logout('localhost', bearer('x.y.z')), 'invalid_token')
    const { header, claims } = decode(access_token)
    refused(t, await logout('localhost', bearer(makeToken(header, claims, 'a guess'))), 'invalid_token')
    refused(t, await logout('localhost', bearer(makeToken({ ...header, alg: 'none' }, claims, ''))), 'invalid_token')
    refused(t, await logout('localhost', {}, { refresh_token: 'forged' }), 'invalid_refresh_token')
    t.equal((await acme.with(access_token, me)).statusCode, 200, 'and none of it ended anything')
  })
  t.test('on the host of another agency is refused, and ends nothing', async (t) => {
    const tokens = await acme.signIn()
    t.match((await logout(rival.host, bearer(tokens.access_token))).json(), { status: 403, code: 'tenant_mismatch' })
    const body = { refresh_token: tokens.refresh_token }
    t.match((await logout(rival.host, {}, body)).json(), { status: 403, code: 'tenant_mismatch' })
    t.equal((await acme.with(tokens.access_token, me)).statusCode, 200)
    t.equal((await refresh(app, tokens.refresh_token)).statusCode, 200)
  })
})

t.test('the sessions of a person', async (t) => {
  const app = await startApp(t)
  const acme = await createTenant(app, 'acme')
  const rival = await createTenant(app, 'rival')
  await addMember(app, rival, acme.owner.id, 'viewer')
  const signIn = async (userAgent: string, ip: string): Promise<Tokens> => {
    const request = post('/auth/login', { email: acme.owner.email, password }, { 'user-agent': userAgent })
    return (await send(app, acme.host, { ...request, remoteAddress: ip })).json()
  }
  const phone = await signIn('Aggios/1.4 (Android 16)', '203.0.113.7')
  const laptop = await signIn('Firefox', '2001:db8::7')
  const visit: Tokens = (await acme.with(laptop.access_token, post('/auth/switch', { tenant: 'rival' }))).json()
  const list = async (token: string, query = '') =>
    (await send(app, 'localhost', { url: sessions + query, headers: bearer(token) })).json()

  t.test('are listed with what tells them apart, in all agencies, the newest first', async (t) => {
    const { data, next_cursor } = await list(phone.access_token)
    t.equal(next_cursor, null)
    t.strictSame(
      data.map(({ id }: { id: string }) => id),
      [sidOf(visit), sidOf(laptop), sidOf(phone), sidOf(acme.owner.tokens)]
    )
    t.match(data[2], {
      id: sidOf(phone),
      tenant_id: acme.id,
      tenant_slug: 'acme',
      user_agent: 'Aggios/1.4 (Android 16)',
      ip: '203.0.113.7',
      current: true
    })
    t.match(data[1], { ip: '2001:db8::7', current: false })
    t.match(data[0], { tenant_id: rival.id, tenant_slug: 'rival', current: false })
    t.strictSame(Object.keys(data[0]).sort(), [
      'bound',
      'created_at',
      'current',
      'expires_at',
      'id',
      'ip',
      'last_used_at',
      'tenant_id',
      'tenant_slug',
      'user_agent'
    ])
    for (const { created_at, expires_at } of data) {
      t.match(created_at, /^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z$/)
      const life = Date.parse(expires_at) - Date.parse(created_at)
      t.equal(Math.round(life / 86_400_000), 7)
    }
    const seen = await list(visit.access_token)
    t.strictSame(
      seen.data.filter((each: { current: boolean }) => each.current).map(({ id }: { id: string }) => id),
      [sidOf(visit)]
    )
  })
  t.test('of another person are not among them', async (t) => {
    const { data } = await list(rival.owner.tokens.access_token)
    t.strictSame(
      data.map(({ id }: { id: string }) => id),
      [sidOf(rival.owner.tokens)]
    )
  })
  t.test('come page by page, each once, while others are made', async (t) => {
    const seen: string[] = []
    let query = '?limit=2'
    for (let page = 0; page < 10; page++) {
      const { data, next_cursor } = await list(phone.access_token, query)
      t.ok(data.length === 2 || next_cursor === null)
      seen.push(...data.map(({ id }: { id: string }) => id))
      if (next_cursor === null) break
      query = `?limit=2&cursor=${next_cursor}`
      await acme.signIn()
    }
    t.strictSame(seen, [sidOf(visit), sidOf(laptop), sidOf(phone), sidOf(acme.owner.tokens)])
  })
  t.test('have cursors that nobody else can use, nor bend', async (t) => {
    const { next_cursor: cursor } = await list(phone.access_token, '?limit=1')
    t.type(cursor, 'string')
    t.equal((await list(visit.access_token, `?cursor=${cursor}`)).status, undefined, 'a session of the same person can')
    const invalid = { status: 400, code: 'invalid_cursor' }
    t.match(await list(rival.owner.tokens.access_token, `?cursor=${cursor}`), invalid)
    const elsewhere = await acme.send(`/api/v1/users/me/tenants?cursor=${cursor}`)
    t.match(elsewhere.json(), invalid, 'in another list')
    const position = Buffer.from(JSON.stringify([unknownId]))
    const forged = Buffer.concat([Buffer.from(cursor, 'base64url').subarray(0, 16), position]).toString('base64url')
    for (const each of [
      forged,
      cursor.slice(1),
      cursor.slice(0, -1),
      `${cursor}A`,
      'x',
      "'--",
      unknownId,
      position.toString('base64url')
    ]) {
      t.match(await list(phone.access_token, `?cursor=${encodeURIComponent(each)}`), invalid, each)
    }
  })
  t.test('have pages of 1 to 100', async (t) => {
    t.equal((await list(phone.access_token, '?limit=100')).status, undefined)
    for (const query of [
      'limit=0',
      'limit=101',
      'limit=-1',
      'limit=1.5',
      'limit=x',
      'limit=',
      'limit=1&limit=2',
      'cursor=',
      'page=2',
      'user_id=x'
    ]) {
      t.match(await list(phone.access_token, `?${query}`), { status: 400, code: 'validation_failed' }, query)
    }
  })
  t.test('can be ended one by one', async (t) => {
    const reply = await acme.with(phone.access_token, { method: 'DELETE', url: `${sessions}/${sidOf(laptop)}` })
    t.equal(reply.statusCode, 204)
    refused(t, await acme.with(laptop.access_token, me), 'session_revoked')
    refused(t, await refresh(app, laptop.refresh_token), 'session_revoked')
    t.equal((await acme.with(phone.access_token, me)).statusCode, 200)
    t.equal((await rival.with(visit.access_token, me)).statusCode, 200)
    const { data } = await list(phone.access_token)
    t.notOk(data.some(({ id }: { id: string }) => id === sidOf(laptop)))
    const rows = await allRows(
      app.database,
      "select * from audit_events where session_id = $1 and action = 'session.ended'",
      [sidOf(laptop)]
    )
    t.match(rows, [{ tenant_id: acme.id, actor_id: acme.owner.id }])
  })
  t.test('can be ended in another agency', async (t) => {
    const reply = await acme.with(phone.access_token, { method: 'DELETE', url: `${sessions}/${sidOf(visit)}` })
    t.equal(reply.statusCode, 204)
    refused(t, await rival.with(visit.access_token, me), 'session_revoked')
    const rows = await allRows(
      app.database,
      "select * from audit_events where session_id = $1 and action = 'session.ended'",
      [sidOf(visit)]
    )
    t.match(rows, [{ tenant_id: rival.id, actor_id: acme.owner.id }], 'recorded where it was')
  })
  t.test('of somebody else, ended ones, and unknown ones are one and the same', async (t) => {
    const drop = (id: string) => acme.with(phone.access_token, { method: 'DELETE', url: `${sessions}/${id}` })
    const unknown = await drop(unknownId)
    t.match(unknown.json(), { status: 404, code: 'not_found' })
    t.strictSame(fingerprint(await drop(sidOf(rival.owner.tokens))), fingerprint(unknown))
    t.strictSame(fingerprint(await drop(sidOf(laptop))), fingerprint(unknown))
    t.equal((await rival.send(me)).statusCode, 200)
    t.match((await drop('x')).json(), { status: 400, code: 'validation_failed' })
  })
  t.test('can be ended all but this one', async (t) => {
    const other = await acme.signIn()
    const there: Tokens = (await acme.with(phone.access_token, post('/auth/switch', { tenant: 'rival' }))).json()
    for (let time = 0; time < 2; time++) {
      t.equal((await acme.with(phone.access_token, { method: 'DELETE', url: sessions })).statusCode, 204)
    }
    refused(t, await acme.with(other.access_token, me), 'session_revoked')
    refused(t, await rival.with(there.access_token, me), 'session_revoked')
    refused(t, await refresh(app, there.refresh_token), 'session_revoked')
    const { data } = await list(phone.access_token)
    t.strictSame(
      data.map(({ id }: { id: string }) => id),
      [sidOf(phone)]
    )
    t.equal((await rival.send(me)).statusCode, 200, "nobody else's")
  })
  t.test('includes the one in use, which can end itself', async (t) => {
    const reply = await acme.with(phone.access_token, { method: 'DELETE', url: `${sessions}/${sidOf(phone)}` })
    t.equal(reply.statusCode, 204)
    refused(t, await acme.with(phone.access_token, me), 'session_revoked')
  })
})

t.test('what is done to sessions is recorded, with who, where and what with', async (t) => {
  const app = await startApp(t, { TRUST_PROXY: '10.0.0.0/8' })
  const acme = await createTenant(app, 'acme')
  const rival = await createTenant(app, 'rival')
  await addMember(app, rival, acme.owner.id, 'member')
  const through = { 'user-agent': 'Safari', 'x-forwarded-for': '198.51.100.9', 'x-request-id': 'from-the-proxy' }
  const login = post('/auth/login', { email: acme.owner.email, password }, through)
  const tokens: Tokens = (await send(app, acme.host, { ...login, remoteAddress: '10.1.2.3' })).json()
  const wrong = post('/auth/login', { email: acme.owner.email, password: 'not my password' }, through)
  await send(app, acme.host, { ...wrong, remoteAddress: '10.1.2.3' })
  const visit: Tokens = (
    await acme.with(tokens.access_token, {
      ...post('/auth/switch', { tenant: 'rival' }, through),
      remoteAddress: '10.1.2.3'
    })
  ).json()
  await send(app, 'localhost', {
    ...post('/auth/logout', { refresh_token: visit.refresh_token }, through),
    remoteAddress: '10.1.2.3'
  })

  const facts = { ip: '198.51.100.9', user_agent: 'Safari', request_id: 'from-the-proxy' }
  const rows = (tenant: Tenant) =>
    allRows(app.database, 'select * from audit_events where tenant_id = $1 order by created_at, id', [tenant.id])
  const ours = await rows(acme)
  t.equal(ours.length, 3)
  t.match(ours[0], { action: 'tenant.registered', actor_id: acme.owner.id, session_id: sidOf(acme.owner.tokens) })
  t.match(ours[1], { action: 'session.opened', actor_id: acme.owner.id, session_id: sidOf(tokens), ...facts })
  t.match(ours[2], { action: 'session.refused', actor_id: null, detail: { email: acme.owner.email }, ...facts })
  const theirs = await rows(rival)
  t.match(theirs.slice(1), [
    { action: 'session.switched', actor_id: acme.owner.id, session_id: sidOf(visit), ...facts },
    { action: 'session.ended', actor_id: acme.owner.id, session_id: sidOf(visit), ...facts }
  ])
  t.equal(theirs.length, 3)
})

t.test('nothing that was issued or typed is in the database', async (t) => {
  const app = await startApp(t, { LOG_LEVEL: 'trace', REFRESH_GRACE: '0' })
  const acme = await createTenant(app, 'acme')
  const all = [acme.owner.tokens, await acme.signIn(), await acme.signIn()]
  for (let use = 0; use < 3; use++) all.push(await rotate(app, (all.at(-1) as Tokens).refresh_token))
  const [, first, second] = all as [Tokens, Tokens, Tokens]
  await refresh(app, second.refresh_token)
  await acme.with(first.access_token, post('/auth/logout', undefined))
  await send(app, acme.host, post('/auth/login', { email: acme.owner.email, password: 'a wrong pass phrase' }))
  const changed = { current_password: password, new_password: 'the newest of all passwords' }
  t.equal((await acme.send(post('/users/me/password', changed))).statusCode, 204)

  const tables = await allRows(
    app.database,
    "select relname from pg_class where relkind in ('r', 'p') and relnamespace = 'public'::regnamespace"
  )
  t.ok(tables.length > 6)
  let dump = ''
  for (const { relname } of tables) {
    dump += (await allRows(app.database, `select x::text as line from "${relname}" x`))
      .map(({ line }) => line)
      .join('\n')
  }
  t.ok(dump.includes(acme.owner.email) && dump.includes(sidOf(first)), 'it is a dump of everything')

  const secrets = [password, 'a wrong pass phrase', changed.new_password]
  for (const { access_token, refresh_token } of all) {
    const bytes = Buffer.from(refresh_token, 'base64url')
    secrets.push(access_token, access_token.split('.')[2] as string, refresh_token, bytes.toString('hex'))
    secrets.push(
      bytes.subarray(-32).toString('hex'),
      bytes.subarray(-32).toString('base64url'),
      refresh_token.slice(-40)
    )
  }
  for (const text of secrets) {
    t.notOk(dump.includes(text), 'the database')
    t.notOk(app.logLines.join('').includes(text), 'the log')
  }
  t.ok(app.logLines.length >= 10, 'there is a log')
})

t.test('another agency of the same person', async (t) => {
  const app = await startApp(t)
  const acme = await createTenant(app, 'acme')
  const rival = await createTenant(app, 'rival')
  await createTenant(app, 'closed')
  await addMember(app, rival, acme.owner.id, 'viewer')
  const go = (tenant: unknown, token = acme.owner.tokens.access_token) =>
    acme.with(token, post('/auth/switch', { tenant }))

  t.test('is entered with a new session, in the role held there', async (t) => {
    const reply = await go('rival')
    t.equal(reply.statusCode, 200)
    const tokens: Tokens = reply.json()
    t.strictSame(Object.keys(tokens).sort(), ['access_token', 'expires_in', 'refresh_token', 'token_type'])
    t.match(decode(tokens.access_token).claims, { tenant_id: rival.id, user_id: acme.owner.id, role: 'viewer' })
    t.not(sidOf(tokens), sidOf(acme.owner.tokens))
    t.match((await rival.with(tokens.access_token, me)).json(), { tenant_id: rival.id, role: 'viewer' })
    t.match((await acme.with(tokens.access_token, me)).json(), { status: 403, code: 'tenant_mismatch' })
    t.equal((await acme.send(me)).statusCode, 200, 'the one before goes on')
    const renewed = await rotate(app, tokens.refresh_token)
    t.equal(decode(renewed.access_token).claims.tenant_id, rival.id)
    t.equal((await rival.with(tokens.access_token, post('/auth/logout', undefined))).statusCode, 204)
    t.equal((await acme.send(me)).statusCode, 200, 'and its end ends no other')
  })
  t.test('that is not of the same person is not there', async (t) => {
    const unknown = await go('nobody-has-this')
    t.match(unknown.json(), { status: 404, code: 'not_found' })
    t.strictSame(fingerprint(await go('closed')), fingerprint(unknown))
    for (const odd of ['../rival', 'a'.repeat(63), "rival'--", 'rival ', '__proto__']) {
      t.strictSame(fingerprint(await go(odd)), fingerprint(unknown), odd)
    }
    for (const odd of ['', 7, null, ['rival'], 'a'.repeat(64)])
      t.equal((await go(odd)).json().code, 'validation_failed')
  })
  t.test('is not entered from a session that has ended', async (t) => {
    const { access_token } = await acme.signIn()
    // as another replica does; this one has not read the revocation yet
    await asOwner(app.database, acme.id, acme.owner.id, [
      ['update sessions set revoked_at = now() where id = $1', [decode(access_token).claims.sid]]
    ])
    t.equal((await acme.with(access_token, me)).statusCode, 200, 'not heard of yet')
    refused(t, await go('rival', access_token), 'session_revoked')
  })
  t.test('is where the next sign-in leads, until another one is used', async (t) => {
    const login = () => send(app, 'localhost', post('/auth/login', { email: acme.owner.email, password }))
    await go('rival')
    t.equal(decode((await login()).json().access_token).claims.tenant_id, rival.id)
    await acme.signIn()
    t.equal(decode((await login()).json().access_token).claims.tenant_id, acme.id)
    const named = post('/auth/login', { email: acme.owner.email, password, tenant: 'rival' })
    t.equal(decode((await send(app, 'localhost', named)).json().access_token).claims.tenant_id, rival.id)
  })
})

t.test('each sign-in makes a session of its own', async (t) => {
  const app = await startApp(t)
  const acme = await createTenant(app, 'acme')
  const all = await Promise.all(Array.from({ length: 5 }, () => acme.signIn()))
  t.equal(new Set(all.map(sidOf)).size, 5)
  const shown = post('/auth/login', { email: acme.owner.email, password }, bearer(acme.owner.tokens.access_token))
  const again: Tokens = (await send(app, acme.host, shown)).json()
  t.not(sidOf(again), sidOf(acme.owner.tokens), 'none is taken over')
})

t.test('an end on one replica is felt on the others within a second, and after a restart', async (t) => {
  const database = await createTestDatabase(t)
  const near = await startApp(t, {}, database)
  const far = await startApp(t, {}, database)
  const acme = await createTenant(near, 'acme')
  const tokens = await Promise.all(Array.from({ length: 6 }, () => acme.signIn()))
  const see = async (app: TestApp, token: string) =>
    (await send(app, acme.host, { url: me, headers: bearer(token) })).json().code ?? 'good'
  for (const [index, { access_token, refresh_token }] of tokens.entries()) {
    t.equal(await see(far, access_token), 'good')
    // at different moments between two polls
    await sleep(index * 170)
    t.equal((await acme.with(access_token, post('/auth/logout', undefined))).statusCode, 204)
    refused(t, await refresh(far, refresh_token), 'session_revoked', 'a refresh asks the database: at once')
    const waited = await eventually(async () => (await see(far, access_token)) === 'session_revoked')
    t.ok(waited <= 1000, `${waited} ms`)
  }
  const restarted = await startApp(t, {}, database)
  for (const { access_token } of tokens) t.equal(await see(restarted, access_token), 'session_revoked')
})
