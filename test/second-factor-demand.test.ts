import { readdirSync, readFileSync } from 'node:fs'
import { join } from 'node:path'
import { sql } from 'kysely'
import t, { type Test } from 'tap'
import { complete, createAuthenticator, enroll, forgetUsedCodes, totp } from './factors.ts'
import {
  addMember,
  allRows,
  asOwner,
  createTenant,
  password,
  post,
  type Reply,
  root,
  send,
  startApp,
  type Tenant,
  type TestApp,
  type Tokens
} from './harness.ts'
import { bearer, login, me } from './requests.ts'
import { refresh } from './session-requests.ts'
import { sidOf } from './tokens.ts'

/*
 * An agency that demands a second factor, all doors that lead to a session, and operations that need a fresh proof.
 */

const demand = (tenant: Tenant, mfa_required_from: unknown, token = tenant.owner.tokens.access_token) =>
  tenant.with(token, { method: 'PATCH', url: '/api/v1/tenant', payload: { settings: { mfa_required_from } } })
const past = '2026-01-01T00:00:00Z'
const minuteMs = 60_000

/** An invitation, with the token of its mail. */
async function invite(app: TestApp, tenant: Tenant, email: string, token?: string): Promise<string> {
  const invited = await tenant.with(
    token ?? tenant.owner.tokens.access_token,
    post('/invitations', { email, role: 'member' })
  )
  if (invited.statusCode !== 201) throw new Error(invited.body)
  return app.oneTimeTokens.issue('invitation', { tenant_id: tenant.id, id: invited.json().id, generation: 1 })
}
const accept = (app: TestApp, body: object, headers = {}) =>
  send(app, 'localhost', post('/invitations/accept', body, headers))

/** Sets a factor up with the token of a sign-in, and completes the sign-in. */
async function enrollAtSignIn(app: TestApp, mfa_token: string): Promise<{ reply: Reply; code: () => string }> {
  const started = await send(app, 'localhost', post('/auth/mfa/totp', { mfa_token }))
  if (started.statusCode !== 200) throw new Error(started.body)
  const authenticator = createAuthenticator(started.json().secret)
  return { reply: await complete(app, mfa_token, authenticator.code()), code: authenticator.code }
}

/** As if the person had proved who they are six minutes ago, in all sessions in the agency. */
const makeStale = (app: TestApp, { id, owner }: Tenant) =>
  asOwner(app.database, id, owner.id, [
    ["update sessions set authenticated_at = now() - interval '6 minutes' where tenant_id = $1", [id]]
  ])

t.test('an agency that demands a second factor', async (t) => {
  const app = await startApp(t)
  const acme = await createTenant(app, 'acme')
  const rival = await createTenant(app, 'rival')
  /** A member of both agencies who has no factor. */
  const guest = await createTenant(app, 'guest')
  for (const tenant of [acme, rival]) await addMember(app, tenant, guest.owner.id, 'member')
  const signIn = (tenant: Tenant, email: string) => send(app, tenant.host, post('/auth/login', { email, password }))
  const before: Tokens = (await signIn(acme, guest.owner.email)).json()

  await t.test('is told so by an admin who has one', async (t) => {
    t.match((await demand(acme, past)).json(), { status: 409, code: 'conflict' })
    t.match(
      (await demand(acme, past, before.access_token)).json(),
      { status: 403, code: 'forbidden' },
      'not by a member'
    )
    await enroll(app, acme)
    for (const wrong of ['tomorrow', '2026-11-01', '', 5, '9999-12-31T23:59:59-01:00', '2026-12-31T23:59:60Z']) {
      t.match((await demand(acme, wrong)).json(), { status: 400, code: 'validation_failed' }, String(wrong))
    }
    const later = new Date(Date.now() + minuteMs).toISOString()
    t.equal((await demand(acme, later)).json().settings.mfa_required_from, later)
    const session = (await signIn(acme, guest.owner.email)).json()
    t.ok(session.access_token, 'until then nothing changes')
    t.equal((await refresh(app, session.refresh_token)).statusCode, 200)
    const zoned = await demand(acme, '2026-01-01T02:00:00+02:00')
    t.equal(zoned.json().settings.mfa_required_from, '2026-01-01T00:00:00.000Z')
  })

  await t.test('renews no session that was opened without one, until it demands none', async (t) => {
    t.match((await refresh(app, before.refresh_token)).json(), { status: 401, code: 'session_revoked' })
    t.equal((await acme.with(before.access_token, me)).statusCode, 200, 'an access token is good until its end')
    t.equal((await refresh(app, acme.owner.tokens.refresh_token)).statusCode, 200, 'who has one goes on')
    t.equal((await demand(acme, null)).statusCode, 200)
    t.equal((await refresh(app, before.refresh_token)).statusCode, 200)
    t.notOk('mfa_required_from' in (await acme.send('/api/v1/tenant')).json().settings)
    t.equal((await demand(acme, past)).statusCode, 200)
  })

  await t.test('lets nobody switch into it without one', async (t) => {
    const there: Tokens = (await signIn(rival, guest.owner.email)).json()
    const change = () => rival.with(there.access_token, post('/auth/switch', { tenant: 'acme' }))
    const refusal = (await change()).json()
    t.match(refusal, { status: 401, code: 'mfa_required', enroll: true })
    t.notOk('mfa_token' in refusal, 'a bearer alone does not enroll')
    const invited = await invite(app, acme, rival.owner.email)
    const refused = await accept(app, { token: invited }, bearer(rival.owner.tokens.access_token))
    t.match(refused.json(), { status: 401, code: 'mfa_required', enroll: true })
    t.notOk('mfa_token' in refused.json())
    const members = await allRows(app.database, 'select from memberships where tenant_id = $1', [acme.id])
    t.equal(members.length, 2, 'and nothing has changed')
    await enroll(app, rival)
    const taken = await accept(app, { token: invited }, bearer(rival.owner.tokens.access_token))
    t.equal(taken.statusCode, 200, 'with one in the session of the bearer it is open')
  })

  await t.test('sets one up with somebody at sign-in', async (t) => {
    const refusal = (await signIn(acme, guest.owner.email)).json()
    t.match(refusal, { status: 401, code: 'mfa_required', enroll: true, mfa_token: String })
    const { mfa_token } = refusal
    t.match((await complete(app, mfa_token, '123456')).json(), { code: 'invalid_mfa_token' }, 'there is no secret yet')
    t.match((await rival.anonymous(post('/auth/mfa/totp', { mfa_token }))).json(), {
      status: 403,
      code: 'tenant_mismatch'
    })
    const { reply, code } = await enrollAtSignIn(app, mfa_token)
    t.equal(reply.statusCode, 200)
    t.equal(reply.json().recovery_codes.length, 10)
    const { access_token, refresh_token } = reply.json()
    t.match((await acme.with(access_token, me)).json(), { tenant_id: acme.id, mfa_enabled: true })
    t.equal((await refresh(app, refresh_token)).statusCode, 200)
    t.match((await acme.with(before.access_token, me)).json(), { code: 'session_revoked' }, 'sessions without it ended')
    for (const again of [post('/auth/mfa/totp', { mfa_token }), post('/auth/mfa', { mfa_token, code: code() })]) {
      t.match((await send(app, 'localhost', again)).json(), { code: 'invalid_mfa_token' }, 'the token is used up')
    }
    for (const tenant of [acme, rival]) {
      const next = (await signIn(tenant, guest.owner.email)).json()
      t.match(next, { code: 'mfa_required' })
      t.notOk('enroll' in next)
    }
    await forgetUsedCodes(app, guest.owner.id)
    const there = (await complete(app, (await signIn(rival, guest.owner.email)).json().mfa_token, code())).json()
    const switched = await rival.with(there.access_token, post('/auth/switch', { tenant: 'acme' }))
    t.equal(switched.statusCode, 200, 'and a switch takes the proof along')
    t.equal((await refresh(app, switched.json().refresh_token)).statusCode, 200)

    await forgetUsedCodes(app, guest.owner.id)
    const removed = await rival.with(there.access_token, { method: 'DELETE', url: totp, payload: { code: code() } })
    t.equal(removed.statusCode, 204)
    t.equal((await refresh(app, there.refresh_token)).statusCode, 200, 'another agency asks for none')
    const change = await rival.with(there.access_token, post('/auth/switch', { tenant: 'acme' }))
    t.match(change.json(), { code: 'mfa_required', enroll: true }, 'who has none any more is out')
  })

  await t.test('takes an invited person in, who sets one up before the first session', async (t) => {
    const token = await invite(app, acme, 'new@acme.example')
    const refusal = (await accept(app, { token, name: 'New', password })).json()
    t.match(refusal, { status: 401, code: 'mfa_required', enroll: true, mfa_token: String })
    t.equal((await accept(app, { token, name: 'New', password })).statusCode, 410, 'the invitation was used')
    const { reply } = await enrollAtSignIn(app, refusal.mfa_token)
    t.match((await acme.with(reply.json().access_token, me)).json(), { email: 'new@acme.example', role: 'member' })
  })

  await t.test('is no matter of another agency', async (t) => {
    t.notMatch((await rival.send('/api/v1/tenant')).body, 'mfa_required_from')
    const stranger = await createTenant(app, 'stranger')
    t.equal((await login(app, stranger.owner.email, password)).statusCode, 200)
    t.match((await demand(acme, null, stranger.owner.tokens.access_token)).json(), { code: 'tenant_mismatch' })
  })
})

t.test('every door asks somebody who has a factor', async (t) => {
  const app = await startApp(t)
  const acme = await createTenant(app, 'acme')
  const rival = await createTenant(app, 'rival')
  await addMember(app, rival, acme.owner.id, 'member')
  const { email, id } = acme.owner
  const authenticator = await enroll(app, acme)
  /** A session of before, as a server without factors would have left it. */
  const old: Tokens = acme.owner.tokens
  const forget = () =>
    asOwner(app.database, acme.id, id, [['update sessions set mfa_at = null where id = $1', [sidOf(old)]]])
  await forget()
  const isAsked = (t: Test, reply: Reply) => t.match(reply.json(), { status: 401, code: 'mfa_required' })

  await t.test('these are all there are', (t) => {
    const files = readdirSync(join(root, 'routes'), { recursive: true, encoding: 'utf8' }).filter((file) => {
      return (
        file.endsWith('.ts') &&
        /\b(openSession|openFirstSession)\b/.test(readFileSync(join(root, 'routes', file), 'utf8'))
      )
    })
    const doors = ['auth/register.ts', 'auth/sign-in.ts', 'auth/switch.ts', 'invitations/accept.ts', 'mfa/sign-in.ts']
    // test/passkeys.test.ts, test/passkey-enrollment.test.ts, test/oauth.test.ts and test/invited-sign-in.test.ts
    const elsewhere = ['auth/passkeys.ts', 'mfa/enrollment.ts', 'oauth/exchange.ts', 'oauth/invited.ts']
    t.strictSame(files.sort(), [...doors, ...elsewhere].sort(), 'a new door has a test')
    t.end()
  })
  await t.test('sign-in', async (t) => isAsked(t, await login(app, email, password)))
  await t.test('a switch from a session without it, which a code mends', async (t) => {
    const change = () => acme.with(old.access_token, post('/auth/switch', { tenant: 'rival' }))
    const refusal = await change()
    isAsked(t, refusal)
    t.notOk('mfa_token' in refusal.json() || 'enroll' in refusal.json())
    const by = (code: string) => acme.with(old.access_token, post('/auth/reauthenticate', { code }))
    t.match((await by('000000')).json(), { status: 401, code: 'invalid_credentials' })
    t.equal((await by(authenticator.code())).statusCode, 204)
    t.equal((await change()).statusCode, 200)
    await forget()
    await forgetUsedCodes(app, id)
  })
  await t.test('an invitation, by the password or by a session without it', async (t) => {
    const third = await createTenant(app, 'third')
    const token = await invite(app, third, email)
    for (const [body, headers] of [
      [{ token, password }, {}],
      [{ token, password, name: 'Somebody' }, {}],
      [{ token }, bearer(old.access_token)]
    ] as const) {
      const refusal = await accept(app, body, headers)
      isAsked(t, refusal)
      t.notOk('mfa_token' in refusal.json(), 'the code belongs to the same request')
    }
    const failures = async () => {
      const [row] = await allRows(app.database, 'select failures from sign_in_failures where email = $1', [email])
      return row?.failures
    }
    for (const count of [1, 2]) {
      const wrong = await accept(app, { token, password, code: '000000' })
      t.match(wrong.json(), { status: 401, code: 'invalid_credentials' })
      t.equal(await failures(), count, 'the right password forgets no wrong code')
    }
    t.strictSame(await allRows(app.database, 'select from invitations where accepted_at is not null'), [])
    const { owner } = await createTenant(app, 'without')
    const foreign = await invite(app, third, owner.email)
    const needless = await accept(app, { token: foreign, password, code: authenticator.code() })
    t.match(needless.json(), { status: 409, code: 'conflict' }, 'somebody who has no factor')

    const [used = ''] = authenticator.recovery_codes
    const accepted = await accept(app, { token, password, code: used })
    t.equal(accepted.statusCode, 200)
    t.match((await third.with(accepted.json().access_token, me)).json(), { tenant_id: third.id })
    t.equal(await failures(), undefined)
    const fourth = await createTenant(app, 'fourth')
    const another = await invite(app, fourth, email)
    t.match(
      (await accept(app, { token: another, password, code: used })).json(),
      { code: 'invalid_credentials' },
      'once'
    )
    const code = authenticator.code()
    t.equal((await accept(app, { token: another, code }, bearer(old.access_token))).statusCode, 200, 'with a bearer')
  })
  await t.test('an old process, which does not know factors', async (t) => {
    const open = (tenant: string) =>
      app.gate.transaction({ tenant_id: tenant, user_id: id, request: '' }, async (trx) => {
        return (await sql<{ id: string | null }>`select open_session(${id}, '1 hour', '1 hour') as id`.execute(trx))
          .rows
      })
    t.strictSame(await open(acme.id), [{ id: null }], 'opens no session')
  })
})

t.test('what can not be undone needs a fresh proof', async (t) => {
  const app = await startApp(t)
  const acme = await createTenant(app, 'acme')
  const rival = await createTenant(app, 'rival')
  await addMember(app, acme, rival.owner.id, 'admin')
  await addMember(app, rival, acme.owner.id, 'owner')
  const dangerous = {
    'setting a factor up': { method: 'POST', url: totp },
    'demanding one': { method: 'PATCH', url: '/api/v1/tenant', payload: { settings: { mfa_required_from: past } } },
    'handing the agency over': post('/tenant/transfer', { user_id: rival.owner.id }),
    'deleting the agency': { method: 'DELETE', url: '/api/v1/tenant', payload: { slug: 'acme' } }
  } as const
  const refuses = async (t: Test, tokens: Tokens) => {
    for (const [title, request] of Object.entries(dangerous)) {
      const reply = await acme.with(tokens.access_token, request)
      t.match(reply.json(), { status: 403, code: 'reauthentication_required' }, title)
    }
  }
  const prove = (body: object) => acme.send(post('/auth/reauthenticate', body))

  await t.test('an older sign-in is refused, and a refresh or a switch makes it no newer', async (t) => {
    await makeStale(app, acme)
    await refuses(t, acme.owner.tokens)
    await refuses(t, (await refresh(app, acme.owner.tokens.refresh_token)).json())
    const there: Tokens = (await acme.send(post('/auth/switch', { tenant: 'rival' }))).json()
    await refuses(t, (await rival.with(there.access_token, post('/auth/switch', { tenant: 'acme' }))).json())
    const [{ n }] = await allRows(app.database, "select count(*)::int as n from tenants where status <> 'active'")
    t.equal(n, 0)
  })
  await t.test('one of another agency, or of another session, is none', async (t) => {
    const fresh = await acme.signIn()
    await refuses(t, acme.owner.tokens)
    t.equal((await rival.send({ method: 'POST', url: totp })).statusCode, 200, 'the control')
    t.equal((await acme.with(fresh.access_token, { method: 'POST', url: totp })).statusCode, 200)
  })
  await t.test('what proves itself needs no second proof', async (t) => {
    const name = { method: 'PATCH', url: '/api/v1/tenant', payload: { name: 'Acme' } } as const
    t.equal((await acme.send(name)).statusCode, 200, 'nor what can be undone')
    const same = { current_password: password, new_password: 'another horse battery' }
    t.equal((await acme.send(post('/users/me/password', same))).statusCode, 204)
    const back = { current_password: 'another horse battery', new_password: password }
    t.equal((await acme.send(post('/users/me/password', back))).statusCode, 204)
    await refuses(t, acme.owner.tokens)
  })
  await t.test('the password or a code is one', async (t) => {
    for (const body of [{}, { password, code: '123456' }, { passwort: password }]) {
      t.match((await prove(body)).json(), { status: 400, code: 'validation_failed' })
    }
    t.match((await prove({ password: 'not the right one' })).json(), { status: 401, code: 'invalid_credentials' })
    t.match((await prove({ code: '123456' })).json(), { status: 409, code: 'conflict' }, 'there is no factor')
    await refuses(t, acme.owner.tokens)
    t.equal((await prove({ password })).statusCode, 204)
    const authenticator = await enroll(app, acme)
    await makeStale(app, acme)
    await refuses(t, acme.owner.tokens)
    const code = authenticator.code()
    t.equal((await prove({ code })).statusCode, 204)
    t.match((await prove({ code })).json(), { code: 'invalid_credentials' }, 'a code once')
    const events = await allRows(
      app.database,
      "select detail from audit_events where action = 'session.reauthenticated'"
    )
    t.strictSame(events, [{ detail: { by: 'password' } }, { detail: { by: 'second_factor' } }])
    t.equal((await acme.send(dangerous['handing the agency over'])).statusCode, 204)
  })
  await t.test('a session that has ended is proved no more', async (t) => {
    const tokens = await rival.signIn()
    await allRows(app.database, 'update sessions set revoked_at = now() where id = $1', [sidOf(tokens)])
    const reply = await rival.with(tokens.access_token, post('/auth/reauthenticate', { password }))
    t.match(reply.json(), { status: 401, code: 'session_revoked' })
    t.equal((await rival.with(tokens.access_token, { method: 'POST', url: totp })).statusCode, 403)
  })
})
