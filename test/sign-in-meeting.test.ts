import t from 'tap'
import { complete, demandFactor, enroll, forgetUsedCodes } from './factors.ts'
import { addMember, allRows, createTenant, password, post, send, startApp } from './harness.ts'
import { forgotToken, reset, verifyAll } from './mailed-links.ts'
import {
  addProvider,
  clientId,
  clientSecret,
  createBrowser,
  createVerifier,
  exchange,
  linkAt,
  page,
  signInAt,
  startScriptedProvider,
  startUrl
} from './providers.ts'

/*
 * Take-overs where passwords, providers, second factors and passkeys meet. Each of them fails.
 */

t.test('where the ways to sign in meet', async (t) => {
  const google = await startScriptedProvider(t)
  const app = await startApp(t, {
    GOOGLE_CLIENT_ID: clientId,
    GOOGLE_CLIENT_SECRET: clientSecret,
    GOOGLE_ISSUER: google.issuer,
    LOG_LEVEL: 'info'
  })
  const acme = await createTenant(app, 'acme')
  const evil = await createTenant(app, 'evil')
  const everybody = { key: 'google', at: google }
  const patch = (settings: object) => evil.send({ method: 'PATCH', url: '/api/v1/tenant', payload: { settings } })
  const identities = (id: string) => allRows(app.database, 'select id from user_identities where user_id = $1', [id])

  await t.test('whoever registered the address of somebody else links nothing to it', async (t) => {
    const payload = { provider: 'google', redirect_to: page('acme'), code_challenge: createVerifier().code_challenge }
    const begun = await acme.send({ method: 'POST', url: '/api/v1/users/me/identities', payload })
    t.match(begun.json(), { status: 403, code: 'forbidden', detail: /verify your address/ })
  })

  await t.test('and what they have linked all the same is gone when its owner sets a password', async (t) => {
    const { id, email } = acme.owner
    await allRows(
      app.database,
      `insert into user_identities (id, user_id, provider, issuer, subject)
        values (gen_random_uuid(), $1, 'google', $2, 'the squatter')`,
      [id, google.issuer]
    )
    t.equal((await reset(app, await forgotToken(app, email), password)).statusCode, 204)
    t.strictSame(await identities(id), [])
    t.equal((await signInAt(app, everybody, 'acme', { sub: 'the squatter' })).error, 'not_a_member')
  })

  await verifyAll(app)
  Object.assign(acme.owner.tokens, await acme.signIn())
  t.equal((await linkAt(app, everybody, acme, { sub: 'ada' }, acme.owner.tokens)).statusCode, 201)

  await t.test('the page of an admin gets no session that is good elsewhere', async (t) => {
    const stolen = 'https://evil.example/signed-in'
    const { code_challenge } = createVerifier()
    t.equal((await patch({ allowed_origins: ['https://evil.example'] })).statusCode, 200)
    const started = await createBrowser(app).get(startUrl('google', 'evil', code_challenge, stolen))
    t.match(started.json(), { status: 400, errors: [{ path: '/query/redirect_to' }] })
    const payload = { provider: 'google', redirect_to: stolen, code_challenge }
    const linking = await evil.send({ method: 'POST', url: '/api/v1/users/me/identities', payload })
    t.match(linking.json(), { status: 400, errors: [{ path: '/body/redirect_to' }] })

    const own = await addProvider(evil, google.issuer)
    const confined = await createBrowser(app).get(startUrl(own, 'evil', code_challenge, stolen))
    t.equal(confined.statusCode, 302, 'a session that stays in the agency may begin there')
  })

  await t.test('an agency sets up no second factor by its own provider', async (t) => {
    await addMember(app, evil, acme.owner.id, 'member')
    await allRows(
      app.database,
      "insert into tenant_domains (tenant_id, name, verified_at) values ($1, 'acme.example', now())",
      [evil.id]
    )
    await demandFactor(app, evil.id)
    const { id } = (await evil.send('/api/v1/identity-providers'))
      .json()
      .data.find(({ issuer }: { issuer: string }) => issuer === google.issuer)
    const account = { sub: 'ada', email: acme.owner.email, email_verified: true }
    const { code, code_verifier } = await signInAt(app, { key: id, at: google }, 'evil', account)
    const tokens = await exchange(app, code, code_verifier)
    t.equal(tokens.statusCode, 200, 'its demand is met by what it asks for itself')
    const again = await send(app, 'localhost', post('/auth/refresh', { refresh_token: tokens.json().refresh_token }))
    t.equal(again.statusCode, 200)

    const subject = { tenant_id: evil.id, user_id: acme.owner.id, password_version: 2, by: id, provider_id: id }
    const mfa_token = app.mfaTokens.issue('enrollment', subject)
    for (const path of ['/auth/mfa/totp', '/auth/mfa']) {
      const body = path === '/auth/mfa' ? { mfa_token, code: '123456' } : { mfa_token }
      t.match((await send(app, 'localhost', post(path, body))).json(), { status: 401, code: 'invalid_mfa_token' }, path)
    }
    const { access_token } = tokens.json()
    const proof = await evil.with(access_token, post('/auth/reauthenticate', { password }))
    t.match(proof.json(), { status: 403, code: 'forbidden' })
    const there = await acme.send('/api/v1/users/me')
    t.equal(there.statusCode, 200, `the sessions elsewhere go on: ${there.body}`)
    const { email } = acme.owner
    t.equal((await acme.anonymous(post('/auth/login', { email, password }))).statusCode, 200, 'no code is asked for')
  })

  const factor = await enroll(app, acme)

  await t.test('after a provider the problem names the factors, and wrong codes there use up none', async (t) => {
    const { code, code_verifier } = await signInAt(app, everybody, 'acme', { sub: 'ada' })
    const asked = (await exchange(app, code, code_verifier)).json()
    t.match(asked, { status: 401, code: 'mfa_required', factors: ['totp'] })

    const [{ id }] = (await evil.send('/api/v1/identity-providers'))
      .json()
      .data.filter(({ issuer }: { issuer: string }) => issuer === google.issuer)
    const own = await signInAt(app, { key: id, at: google }, 'evil', { sub: 'ada' })
    const { mfa_token } = (await exchange(app, own.code, own.code_verifier)).json()
    for (let n = 0; n < 3; n++) t.equal((await complete(app, mfa_token, '000000')).statusCode, 401)
    const [{ failures }] = await allRows(app.database, 'select failures from second_factors')
    t.equal(failures, 0)
    t.equal((await complete(app, mfa_token, factor.code())).statusCode, 200, 'the right one is good')
    await forgetUsedCodes(app, acme.owner.id)
  })

  await t.test('a token and the password alone change no factor', async (t) => {
    await allRows(
      app.database,
      "update sessions set mfa_at = now() - interval '6 minutes', authenticated_at = now() where provider_id is null"
    )
    const stale = { status: 403, code: 'reauthentication_required' }
    const options = post('/users/me/passkeys/options', undefined)
    t.match((await acme.send(options)).json(), stale)
    t.equal((await acme.send(post('/auth/reauthenticate', { password }))).statusCode, 204)
    t.match((await acme.send(options)).json(), stale, 'nor after the password')
    const path = '/api/v1/users/me/passkeys/019a2c4e-7b1d-7c3e-9f00-3d5a1b2c4d5e'
    t.match((await acme.send({ method: 'DELETE', url: path })).json(), stale)
    t.equal((await acme.send(post('/auth/reauthenticate', { code: factor.code() }))).statusCode, 204)
    t.equal((await acme.send(options)).statusCode, 200, 'but after a code')
  })
})
