import t from 'tap'
import { complete, createAuthenticator, enroll, forgetUsedCodes, totp } from './factors.ts'
import {
  addMember,
  allRows,
  createTenant,
  eventually,
  mailedTokens,
  mailsTo,
  password,
  post,
  send,
  setStatus,
  startApp
} from './harness.ts'
import {
  addPasskey,
  createDevice,
  originOf,
  passkeys,
  register,
  sharedRpId,
  signInWith,
  startFactor,
  startPasskey,
  startProof,
  startSignIn
} from './passkey-device.ts'
import { login, me } from './requests.ts'
import { sidOf } from './tokens.ts'

/*
 * Passkeys, with an authenticator in software. test/passkey-browser.test.ts uses a browser.
 */

/** As if the last proof of who somebody is were older than five minutes. */
const age = (app: Parameters<typeof allRows>[0], userId: string) =>
  allRows(app, "update sessions set authenticated_at = now() - interval '6 minutes' where user_id = $1", [userId])

t.test('a passkey', async (t) => {
  const app = await startApp(t, { ...sharedRpId, LOG_LEVEL: 'info' })
  const acme = await createTenant(app, 'acme')
  const rival = await createTenant(app, 'rival')
  const { id: userId, email } = acme.owner
  await addMember(app, rival, userId, 'viewer')
  const auditOf = (tenantId: string, action: string) =>
    allRows(
      app.database,
      'select actor_id, target_id, session_id, detail from audit_events where tenant_id = $1 and action = $2 order by id',
      [tenantId, action]
    )
  let device = createDevice(originOf(acme))
  let id = ''
  let recovery: string[] = []

  await t.test('is added after a fresh sign-in, and brings recovery codes', async (t) => {
    const other = await acme.signIn()
    const options = await startPasskey(acme)
    t.match(options, {
      rp: { id: 'localhost', name: 'Aggios' },
      user: { name: email, displayName: 'Owner of acme' },
      attestation: 'none',
      excludeCredentials: [],
      authenticatorSelection: { residentKey: 'required', userVerification: 'required' }
    })
    const reply = await addPasskey(acme, device.create(options), acme.owner.tokens, ' Phone ')
    t.equal(reply.statusCode, 201, reply.body)
    const { recovery_codes, ...passkey } = reply.json()
    id = passkey.id
    recovery = recovery_codes
    t.equal(recovery.length, 10)
    t.match(passkey, { name: 'Phone', device_type: 'multi_device', backed_up: false, last_used_at: null })
    t.strictSame((await acme.send(passkeys)).json(), { data: [passkey] })
    t.match((await acme.send(me)).json(), { mfa_enabled: true })
    t.strictSame((await acme.send(`${me}/mfa`)).json(), {
      enabled: true,
      factors: ['passkey'],
      recovery_codes_left: 10
    })
    t.match((await acme.with(other.access_token, me)).json(), { code: 'session_revoked' }, 'other sessions ended')
    const event = { actor_id: userId, target_id: userId, detail: { passkey_id: id } }
    t.strictSame(await auditOf(acme.id, 'user.passkey_added'), [{ ...event, session_id: sidOf(acme.owner.tokens) }])
    t.strictSame(await auditOf(rival.id, 'user.passkey_added'), [{ ...event, session_id: null }])
  })

  await t.test('signs in without a password, at each agency of the person', async (t) => {
    const options = await startSignIn(app, acme.host)
    t.match(options, { rpId: 'localhost', userVerification: 'required', allowCredentials: [] })
    const reply = await signInWith(app, acme.host, device)
    t.equal(reply.statusCode, 200, reply.body)
    t.strictSame(Object.keys(reply.json()).sort(), ['access_token', 'expires_in', 'refresh_token', 'token_type'])
    t.match((await acme.with(reply.json().access_token, me)).json(), { tenant_id: acme.id, role: 'owner' })
    const there = await signInWith(app, rival.host, device, { origin: originOf(rival) })
    t.match((await rival.with(there.json().access_token, me)).json(), { tenant_id: rival.id, role: 'viewer' })
    const [row] = await allRows(app.database, 'select mfa_at from sessions where id = $1', [sidOf(reply.json())])
    t.ok(row.mfa_at, 'and is a second factor at once')
    t.type((await acme.send(passkeys)).json().data[0].last_used_at, 'string')
  })

  await t.test('signs in on the general host, to the agency that is named or was used last', async (t) => {
    const named = await signInWith(app, 'localhost', device, {}, 'acme')
    t.equal(named.statusCode, 200, named.body)
    const last = await signInWith(app, 'localhost', device)
    t.match((await acme.with(last.json().access_token, me)).json(), { tenant_id: acme.id })
    t.match((await signInWith(app, 'localhost', device, {}, 'nobody')).json(), { code: 'invalid_credentials' })
  })

  await t.test('is a second factor beside the password', async (t) => {
    const refusal = (await login(app, email, password)).json()
    t.match(refusal, { status: 401, code: 'mfa_required', factors: ['passkey'], mfa_token: String })
    const { mfa_token } = refusal
    const options = await startFactor(app, mfa_token)
    t.match(options, { allowCredentials: [{ id: device.id, transports: ['internal', 'hybrid'] }] })
    const passkey = device.get(options)
    const both = await send(app, 'localhost', post('/auth/mfa', { mfa_token, passkey, code: recovery[0] }))
    t.match(both.json(), { status: 400, code: 'validation_failed' })
    const neither = await send(app, 'localhost', post('/auth/mfa', { mfa_token }))
    t.match(neither.json(), { status: 400, code: 'validation_failed' })
    const reply = await send(app, 'localhost', post('/auth/mfa', { mfa_token, passkey }))
    t.equal(reply.statusCode, 200, reply.body)
    t.match((await complete(app, mfa_token, recovery[9] as string)).json(), { code: 'invalid_credentials' }, 'once')
    t.match((await send(app, 'localhost', post('/auth/mfa/totp', { mfa_token }))).json(), { code: 'invalid_mfa_token' })
  })

  await t.test('that is lost is replaced by a recovery code', async (t) => {
    const begin = async () => (await login(app, email, password)).json().mfa_token
    const reply = await complete(app, await begin(), recovery[0] as string)
    t.equal(reply.statusCode, 200, reply.body)
    t.match((await complete(app, await begin(), recovery[0] as string)).json(), { code: 'invalid_credentials' })
    t.match((await complete(app, await begin(), '123456')).json(), { code: 'invalid_credentials' }, 'there is no app')
    const tokens = reply.json()
    const renew = (payload: object) =>
      acme.with(tokens.access_token, { method: 'POST', url: `${me}/mfa/recovery-codes`, payload })
    const byPasskey = await renew({ passkey: device.get(await startProof(acme, tokens)) })
    t.equal(byPasskey.json().recovery_codes?.length, 10, byPasskey.body)
    t.match((await complete(app, await begin(), recovery[1] as string)).json(), { code: 'invalid_credentials' })
    recovery = byPasskey.json().recovery_codes
  })

  await t.test('proves again who somebody is', async (t) => {
    await age(app.database, userId)
    const stale = { status: 403, code: 'reauthentication_required' }
    t.match((await acme.send({ method: 'POST', url: `${passkeys}/options` })).json(), stale)
    t.match((await acme.send({ method: 'DELETE', url: `${passkeys}/${id}` })).json(), stale)
    const prove = async (passkey: unknown) => acme.send(post('/auth/reauthenticate', { passkey }))
    const passkey = device.get(await startProof(acme))
    t.equal((await prove(passkey)).statusCode, 204)
    t.equal((await acme.send({ method: 'POST', url: `${passkeys}/options` })).statusCode, 200)
    t.match((await prove(passkey)).json(), { status: 401, code: 'invalid_credentials' }, 'once')
  })

  await t.test('stands beside an authenticator app, and either of them will do', async (t) => {
    const started = (await acme.send({ method: 'POST', url: totp })).json()
    const authenticator = createAuthenticator(started.secret)
    const begin = async () => (await login(app, email, password)).json()
    const pending = (await begin()).mfa_token
    t.match((await complete(app, pending, authenticator.code())).json(), { code: 'invalid_credentials' }, 'not yet')
    const confirmed = await acme.send({
      method: 'POST',
      url: `${totp}/confirm`,
      payload: { code: authenticator.code() }
    })
    t.equal(confirmed.statusCode, 200, confirmed.body)
    recovery = confirmed.json().recovery_codes
    await forgetUsedCodes(app, userId)
    const refusal = await begin()
    t.strictSame(refusal.factors, ['totp', 'passkey'])
    t.equal((await complete(app, refusal.mfa_token, authenticator.code())).statusCode, 200)
    const again = (await begin()).mfa_token
    const passkey = device.get(await startFactor(app, again))
    t.equal((await send(app, 'localhost', post('/auth/mfa', { mfa_token: again, passkey }))).statusCode, 200)

    const payload = { passkey: device.get(await startProof(acme)) }
    t.equal((await acme.send({ method: 'DELETE', url: totp, payload })).statusCode, 204)
    t.match((await acme.send(me)).json(), { mfa_enabled: true }, 'the passkey stays')
    t.strictSame((await begin()).factors, ['passkey'])
    t.equal((await complete(app, (await begin()).mfa_token, recovery[0] as string)).statusCode, 200, 'and the codes')
    const missing = await acme.send({ method: 'DELETE', url: totp, payload: { code: recovery[1] } })
    t.match(missing.json(), { status: 409, code: 'conflict' })
  })

  await t.test('is renamed and removed by its owner only', async (t) => {
    const rename = (tenant: typeof acme, name: string) =>
      tenant.send({ method: 'PATCH', url: `${passkeys}/${id}`, payload: { name } })
    t.match((await rename(acme, 'Work phone')).json(), { id, name: 'Work phone' })
    t.match((await rename(rival, 'Mine')).json(), { status: 404, code: 'not_found' })
    t.match((await rename(acme, '  ')).json(), { status: 400, code: 'validation_failed' })
    t.match((await rival.send({ method: 'DELETE', url: `${passkeys}/${id}` })).json(), { status: 404 })
    t.strictSame((await rival.send(passkeys)).json(), { data: [] })

    const second = await register(acme)
    t.strictSame(second.recovery_codes, [], 'there are some already')
    const other = (await signInWith(app, acme.host, second.device)).json()
    t.equal((await acme.send({ method: 'DELETE', url: `${passkeys}/${id}` })).statusCode, 204)
    t.match((await acme.with(other.access_token, me)).json(), { code: 'session_revoked' })
    t.match((await signInWith(app, acme.host, device)).json(), { status: 401, code: 'invalid_credentials' })
    t.match((await acme.send(me)).json(), { mfa_enabled: true }, 'one is left')
    t.equal((await acme.send({ method: 'DELETE', url: `${passkeys}/${second.id}` })).statusCode, 204)
    t.match((await acme.send(me)).json(), { mfa_enabled: false })
    t.strictSame((await acme.send(`${me}/mfa`)).json(), { enabled: false, factors: [], recovery_codes_left: 0 })
    t.equal((await login(app, email, password)).statusCode, 200, 'the password is enough again')
    t.equal((await auditOf(rival.id, 'user.passkey_removed')).length, 2)
    device = second.device
  })

  await t.test('tells its person by mail, in the language of the agency', async (t) => {
    await allRows(app.database, 'update users set email_verified_at = now() where id = $1', [userId])
    const { id: one } = await register(acme)
    await acme.send({ method: 'PATCH', url: '/api/v1/tenant', payload: { settings: { locale: 'pt-BR' } } })
    await acme.send({ method: 'DELETE', url: `${passkeys}/${one}` })
    const subjects = () => mailsTo(app, email).map(({ subject }) => subject)
    app.mail.wake()
    await eventually(() => subjects().includes('Uma chave de acesso da sua conta foi removida'))
    t.ok(subjects().some((subject) => /passkey was added|chave de acesso foi adicionada/.test(subject)))
  })

  await t.test('may use each of the algorithms, and may not count', async (t) => {
    for (const algorithm of ['EdDSA', 'RS256', 'ES256'] as const) {
      const own = createDevice(originOf(acme), { algorithm, counts: false })
      const added = await register(acme, acme.owner.tokens, own)
      for (const _ of [1, 2]) t.equal((await signInWith(app, acme.host, own)).statusCode, 200, algorithm)
      t.equal((await acme.send({ method: 'DELETE', url: `${passkeys}/${added.id}` })).statusCode, 204)
    }
  })

  await t.test('is one of at most twenty', async (t) => {
    const crowd = await createTenant(app, 'crowd')
    for (let i = 0; i < 20; i++) await register(crowd)
    const refused = await addPasskey(crowd, createDevice(originOf(crowd)).create(await startPasskey(crowd)))
    t.match(refused.json(), { status: 409, code: 'conflict' })
    const options = await startPasskey(crowd)
    t.equal((options as unknown as { excludeCredentials: object[] }).excludeCredentials.length, 20)
  })

  await t.test('opens nothing for the disabled, and for a suspended agency', async (t) => {
    const shut = await createTenant(app, 'shut')
    const { device } = await register(shut)
    await setStatus(app, shut, 'suspended')
    t.match((await signInWith(app, 'localhost', device, {}, 'shut')).json(), { status: 403, code: 'tenant_suspended' })
    await setStatus(app, shut, 'active')
    await allRows(app.database, 'update users set disabled_at = now() where id = $1', [shut.owner.id])
    t.match((await signInWith(app, 'localhost', device, {}, 'shut')).json(), { code: 'invalid_credentials' })
  })

  await t.test('satisfies an agency that demands a second factor', async (t) => {
    const strict = await createTenant(app, 'strict')
    const { device } = await register(strict)
    const settings = { mfa_required_from: new Date(Date.now() - 1000).toISOString() }
    const demanded = await strict.send({ method: 'PATCH', url: '/api/v1/tenant', payload: { settings } })
    t.equal(demanded.statusCode, 200, demanded.body)
    const tokens = (await signInWith(app, strict.host, device)).json()
    const { refresh_token } = tokens
    t.equal((await send(app, strict.host, post('/auth/refresh', { refresh_token }))).statusCode, 200)
  })

  await t.test('goes with its person, and with a reset of the password by whoever has the mailbox', async (t) => {
    const gone = await createTenant(app, 'gone')
    await addMember(app, gone, rival.owner.id, 'owner')
    await register(gone)
    t.equal((await gone.send({ method: 'DELETE', url: me, payload: { password } })).statusCode, 204)
    t.strictSame(await allRows(app.database, 'select from passkeys where user_id = $1', [gone.owner.id]), [])

    const squatted = await createTenant(app, 'squatted')
    const { device } = await register(squatted)
    await send(app, 'localhost', post('/auth/password/forgot', { email: squatted.owner.email }))
    const tokens = () => mailedTokens(app, squatted.owner.email, '/password/reset')
    app.mail.wake()
    await eventually(() => tokens().length > 0)
    const reset = { token: tokens()[0], password: 'another horse battery' }
    t.equal((await send(app, 'localhost', post('/auth/password/reset', reset))).statusCode, 204)
    t.match((await signInWith(app, squatted.host, device)).json(), { code: 'invalid_credentials' })
    t.equal((await login(app, squatted.owner.email, reset.password)).statusCode, 200, 'and nothing else is asked for')
  })

  await t.test('is of no use to an authenticator app that was never set up', async (t) => {
    const plain = await createTenant(app, 'plain')
    const { code } = await enroll(app, plain)
    const refusal = (await login(app, plain.owner.email, password)).json()
    t.strictSame(refusal.factors, ['totp'])
    const options = await send(app, 'localhost', post('/auth/mfa/passkey/options', { mfa_token: refusal.mfa_token }))
    t.match(options.json(), { status: 409, code: 'conflict' })
    t.equal((await complete(app, refusal.mfa_token, code())).statusCode, 200)
  })
})
