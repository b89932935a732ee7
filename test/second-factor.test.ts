import { existsSync } from 'node:fs'
import { join } from 'node:path'
import t from 'tap'
import { createMfaTokens } from '../src/auth/mfa-tokens.ts'
import { createKeyRing } from '../src/keys.ts'
import { complete, createAuthenticator, enroll, forgetUsedCodes, totp } from './factors.ts'
import { addMember, allRows, clientFolder, createTenant, password, post, send, startApp } from './harness.ts'
import { listen, login, me } from './requests.ts'
import { refresh } from './session-requests.ts'
import { sidOf } from './tokens.ts'

/*
 * A second factor, from the QR code to the sign-in that asks for it.
 */

t.test('a second factor', async (t) => {
  const app = await startApp(t, { JWT_SECRET: 'the one secret of these tests of second factors' })
  const acme = await createTenant(app, 'acme')
  const rival = await createTenant(app, 'rival')
  const { id: userId, email } = acme.owner
  const auditOf = async (tenantId: string, action: string) =>
    allRows(
      app.database,
      'select actor_id, target_id, session_id from audit_events where tenant_id = $1 and action = $2',
      [...[tenantId, action]]
    )
  /** Signs in with the password, and returns the token for the second step. */
  const begin = async () => (await login(app, email, password)).json().mfa_token as string
  let authenticator = createAuthenticator('JBSWY3DPEHPK3PXPJBSWY3DPEHPK3PXP')
  let recovery: string[] = []

  await t.test('is set up by a code of the app', async (t) => {
    const other = await acme.signIn()
    await addMember(app, rival, userId, 'viewer')
    t.equal((await acme.send(me)).json().mfa_enabled, false)
    const before = (await acme.send(me)).headers.etag
    const started = await acme.send({ method: 'POST', url: totp })
    t.equal(started.statusCode, 200)
    t.match(started.json(), { secret: /^[A-Z2-7]{32}$/, uri: /^otpauth:\/\/totp\/Aggios:owner%40acme\.example\?/ })
    authenticator = createAuthenticator(started.json().secret)
    t.equal((await login(app, email, password)).statusCode, 200, 'sign-in is as before until it is confirmed')
    t.strictSame((await acme.send(`${me}/mfa`)).json(), { enabled: false, factors: [], recovery_codes_left: 0 })
    const confirm = (code: string) => acme.send({ method: 'POST', url: `${totp}/confirm`, payload: { code } })
    t.match((await confirm('000000')).json(), { status: 401, code: 'invalid_credentials' })
    const confirmed = await confirm(authenticator.code())
    t.equal(confirmed.statusCode, 200)
    recovery = confirmed.json().recovery_codes
    t.equal(new Set(recovery).size, 10)
    for (const code of recovery) t.match(code, /^[a-z2-7]{4}(-[a-z2-7]{4}){3}$/)
    const mine = await acme.send(me)
    t.equal(mine.json().mfa_enabled, true)
    t.not(mine.headers.etag, before)
    t.match((await acme.with(other.access_token, me)).json(), { code: 'session_revoked' }, 'other sessions ended')
    t.match((await confirm(authenticator.code(1))).json(), { status: 409, code: 'conflict' })
    t.match((await acme.send({ method: 'POST', url: totp })).json(), { status: 409, code: 'conflict' })
    t.strictSame(await auditOf(acme.id, 'user.mfa_enabled'), [
      { actor_id: userId, target_id: userId, session_id: sidOf(acme.owner.tokens) }
    ])
    t.strictSame(
      await auditOf(rival.id, 'user.mfa_enabled'),
      [{ actor_id: userId, target_id: userId, session_id: null }],
      'each agency of the person knows'
    )
  })

  await t.test('is asked for after the right password, and only then', async (t) => {
    const sessions = () => allRows(app.database, 'select id from sessions where user_id = $1', [userId])
    const before = await sessions()
    const reply = await login(app, email, password)
    t.match(reply.json(), { status: 401, code: 'mfa_required', mfa_token: /^[\w-]{100,300}$/ })
    t.notOk('access_token' in reply.json() || 'enroll' in reply.json())
    t.equal(reply.headers['cache-control'], 'no-store')
    t.strictSame(await sessions(), before, 'no session was opened')
    const challenges = [{ actor_id: userId, target_id: null, session_id: null }]
    t.strictSame(await auditOf(acme.id, 'session.challenged'), challenges, 'but somebody had the password')
    const wrong = await login(app, email, 'not the right password')
    t.match(wrong.json(), { code: 'invalid_credentials' })
    t.notOk('mfa_token' in wrong.json())
  })

  await t.test('completes the sign-in to the agency that it chose', async (t) => {
    await forgetUsedCodes(app, userId)
    const there = (await send(app, rival.host, post('/auth/login', { email, password }))).json()
    t.match(there, { code: 'mfa_required' })
    const mismatch = await complete(app, there.mfa_token, authenticator.code(), acme.host)
    t.match(mismatch.json(), { status: 403, code: 'tenant_mismatch' }, 'on the host of another agency')
    const reply = await complete(app, there.mfa_token, authenticator.code(), rival.host)
    t.equal(reply.statusCode, 200)
    t.strictSame(Object.keys(reply.json()).sort(), ['access_token', 'expires_in', 'refresh_token', 'token_type'])
    t.match((await rival.with(reply.json().access_token, me)).json(), { tenant_id: rival.id, role: 'viewer' })
    t.equal((await refresh(app, reply.json().refresh_token)).statusCode, 200)
  })

  await t.test('takes a code once, and no older one after it', async (t) => {
    await forgetUsedCodes(app, userId)
    // of one moment, because a step may end between two requests
    const [earlier = '', current = '', later = '', far = ''] = [-1, 0, 1, 4].map((at) => authenticator.code(at))
    t.equal((await complete(app, await begin(), current)).statusCode, 200)
    for (const code of [current, earlier]) {
      t.match((await complete(app, await begin(), code)).json(), { status: 401, code: 'invalid_credentials' })
    }
    t.equal((await complete(app, await begin(), later)).statusCode, 200, 'the next one is good')
    await forgetUsedCodes(app, userId)
    t.match((await complete(app, await begin(), far)).json(), { code: 'invalid_credentials' })
  })

  await t.test('takes each recovery code once, however it is typed', async (t) => {
    const [first = '', second = ''] = recovery
    t.equal((await complete(app, await begin(), first)).statusCode, 200)
    t.match((await complete(app, await begin(), first)).json(), { code: 'invalid_credentials' })
    const typed = second.toUpperCase().replaceAll('-', ' ')
    t.equal((await complete(app, await begin(), typed)).statusCode, 200)
    t.strictSame((await acme.send(`${me}/mfa`)).json(), { enabled: true, factors: ['totp'], recovery_codes_left: 8 })
    t.equal((await auditOf(acme.id, 'user.recovery_code_used')).length, 2)
    t.equal((await auditOf(rival.id, 'user.recovery_code_used')).length, 2)
  })

  await t.test('has new recovery codes for a code, and the old ones die', async (t) => {
    await forgetUsedCodes(app, userId)
    const renew = (code: string) => acme.send(post('/users/me/mfa/recovery-codes', { code }))
    t.match((await renew('000000')).json(), { status: 401, code: 'invalid_credentials' })
    const renewed = await renew(authenticator.code())
    t.equal(renewed.json().recovery_codes.length, 10)
    t.match((await complete(app, await begin(), recovery[5] as string)).json(), { code: 'invalid_credentials' })
    recovery = renewed.json().recovery_codes
    t.equal((await complete(app, await begin(), recovery[0] as string)).statusCode, 200)
  })

  await t.test('has a token that is good for nothing else, and once', async (t) => {
    await forgetUsedCodes(app, userId)
    const token = await begin()
    const code = () => authenticator.code()
    t.match((await acme.with(token, me)).json(), { status: 401, code: 'invalid_token' }, 'as a bearer')
    t.match((await refresh(app, token)).json(), { status: 401, code: 'invalid_refresh_token' }, 'as a refresh token')
    t.match((await send(app, 'localhost', post('/invitations/accept', { token }))).json(), { code: 'not_found' })
    const enrolls = await send(app, 'localhost', post('/auth/mfa/totp', { mfa_token: token }))
    t.match(enrolls.json(), { status: 401, code: 'invalid_mfa_token' }, 'to enroll')
    const invitation = { tenant_id: acme.id, id: userId, generation: 1 }
    const others = {
      'an access token': acme.owner.tokens.access_token,
      'a refresh token': acme.owner.tokens.refresh_token,
      'a mailed token': app.oneTimeTokens.issue('invitation', invitation),
      'an enrollment': app.mfaTokens.issue('enrollment', { tenant_id: acme.id, user_id: userId, password_version: 1 }),
      'another key': createMfaTokens(createKeyRing(['another key of these tests, long enough'], 'mfa token')).issue(
        'sign_in',
        { tenant_id: acme.id, user_id: userId, password_version: 1 }
      ),
      'another spelling': `${token}=`,
      'one other bit': `${token.slice(0, 40)}${token[40] === 'A' ? 'B' : 'A'}${token.slice(41)}`
    }
    for (const [title, other] of Object.entries(others)) {
      t.match((await complete(app, other, code())).json(), { status: 401, code: 'invalid_mfa_token' }, title)
    }
    const stranger = app.mfaTokens.issue('sign_in', {
      tenant_id: rival.id,
      user_id: rival.owner.id,
      password_version: 1
    })
    t.match((await complete(app, stranger, code())).json(), { code: 'invalid_mfa_token' }, 'of somebody without one')
    t.equal((await complete(app, token, code())).statusCode, 200)
    await forgetUsedCodes(app, userId)
    t.match((await complete(app, token, code())).json(), { status: 401, code: 'invalid_credentials' }, 'twice')
    const { now } = Date
    const late = await begin()
    Date.now = () => now() + 301_000
    t.match((await complete(app, late, authenticator.code())).json(), { code: 'invalid_mfa_token' }, 'too late')
    Date.now = now
  })

  await t.test('dies with the password that was proved', async (t) => {
    const token = await begin()
    const changed = { current_password: password, new_password: 'another horse battery' }
    t.equal((await acme.send(post('/users/me/password', changed))).statusCode, 204)
    t.match((await complete(app, token, authenticator.code())).json(), { code: 'invalid_mfa_token' })
    const back = { current_password: 'another horse battery', new_password: password }
    t.equal((await acme.send(post('/users/me/password', back))).statusCode, 204)
  })

  await t.test('goes by a code, and ends the other sessions', async (t) => {
    await forgetUsedCodes(app, userId)
    const other = (await complete(app, await begin(), recovery[1] as string)).json()
    const remove = (code: string) => acme.send({ method: 'DELETE', url: totp, payload: { code } })
    t.match((await remove('000000')).json(), { status: 401, code: 'invalid_credentials' })
    t.equal((await remove(authenticator.code())).statusCode, 204)
    t.match(
      (await send(app, 'localhost', { url: me, headers: { authorization: `Bearer ${other.access_token}` } })).json(),
      {
        code: 'session_revoked'
      }
    )
    t.match((await acme.send(me)).json(), { mfa_enabled: false })
    t.equal((await login(app, email, password)).statusCode, 200)
    t.match((await remove(authenticator.code())).json(), { status: 409, code: 'conflict' })
    t.equal((await auditOf(rival.id, 'user.mfa_removed')).length, 1)
  })

  await t.test('is of one person, and another agency knows nothing of it', async (t) => {
    const enrolled = await enroll(app, acme)
    t.match((await rival.send(me)).json(), { mfa_enabled: false })
    t.match((await rival.send({ method: 'DELETE', url: totp, payload: { code: enrolled.code() } })).json(), {
      status: 409
    })
    const members = await rival.send('/api/v1/members')
    t.notMatch(members.body, 'mfa')
    const foreign = await createTenant(app, 'foreign')
    t.notMatch((await foreign.send('/api/v1/audit-events')).body, 'mfa_enabled')
    t.equal((await login(app, foreign.owner.email, password)).statusCode, 200)
  })

  await t.test('goes with its person', async (t) => {
    const gone = await createTenant(app, 'gone')
    await addMember(app, gone, rival.owner.id, 'owner')
    await enroll(app, gone)
    const ended = await gone.send({ method: 'DELETE', url: me, payload: { password } })
    t.equal(ended.statusCode, 204)
    t.strictSame(await allRows(app.database, 'select from second_factors where user_id = $1', [gone.owner.id]), [])
  })
})

const built = join(clientFolder, 'dist', 'index.js')
const missing = !existsSync(built) && process.env.CI !== 'true'
const needsClient = { skip: missing && 'client/dist is not built: npm --prefix client run build' }

t.test('the TypeScript client completes a sign-in', needsClient, async (t) => {
  const app = await startApp(t)
  const acme = await createTenant(app, 'acme')
  const { recovery_codes } = await enroll(app, acme)
  const { createAggiosClient, ProblemError, unwrap } = await import(built)
  const client = createAggiosClient({ baseUrl: `http://127.0.0.1:${await listen(app)}` })
  const refusal = await client.signIn({ email: acme.owner.email, password }).catch((err: unknown) => err)
  t.ok(refusal instanceof ProblemError)
  t.match(refusal, { code: 'mfa_required', mfa_token: String, enroll: false })
  await client.completeSignIn({ mfa_token: refusal.mfa_token, code: recovery_codes[0] })
  t.match(await unwrap(client.GET(me)), { id: acme.owner.id, mfa_enabled: true })
})
