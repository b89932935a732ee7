import t from 'tap'
import { complete, createAuthenticator, enroll, forgetUsedCodes } from './factors.ts'
import { addMember, allRows, createTenant, password, post, send, startApp } from './harness.ts'
import { verifyAll } from './mailed-links.ts'
import { addProvider, clientId, clientSecret, exchange, linkAt, signInAt, startScriptedProvider } from './providers.ts'
import { login } from './requests.ts'

/*
 * A sign-in that waits for a second factor ends when the way in by which it began is taken from the account.
 */

t.test('a sign-in that waits for a factor', async (t) => {
  const google = { key: 'google', at: await startScriptedProvider(t) }
  const app = await startApp(t, {
    GOOGLE_CLIENT_ID: clientId,
    GOOGLE_CLIENT_SECRET: clientSecret,
    GOOGLE_ISSUER: google.at.issuer
  })
  const acme = await createTenant(app, 'acme')
  await verifyAll(app)
  await enroll(app, acme)
  const settings = { mfa_required_from: '2020-01-01T00:00:00Z' }
  t.equal((await acme.send({ method: 'PATCH', url: '/api/v1/tenant', payload: { settings } })).statusCode, 200)

  /** A member without a factor, whose account somebody else has linked to an identity of their own. */
  async function addVictim(slug: string) {
    const home = await createTenant(app, slug)
    await verifyAll(app)
    await addMember(app, acme, home.owner.id, 'member')
    const intruder = { sub: `intruder of ${slug}` }
    const linked = await linkAt(app, google, home, intruder)
    t.equal(linked.statusCode, 201, linked.body)
    const { code, code_verifier } = await signInAt(app, google, 'acme', intruder)
    const waiting = (await exchange(app, code, code_verifier)).json()
    t.match(waiting, { code: 'mfa_required', enroll: true })
    return { home, identity: linked.json().id as string, mfa_token: waiting.mfa_token as string }
  }
  const enrollment = (mfa_token: string) => send(app, 'localhost', post('/auth/mfa/totp', { mfa_token }))
  const refused = { status: 401, code: 'invalid_mfa_token' }

  t.test('ends when the person unlinks the identity', async (t) => {
    const { home, identity, mfa_token } = await addVictim('first')
    const began = (await enrollment(mfa_token)).json()
    const unlink = { method: 'DELETE', url: `/api/v1/users/me/identities/${identity}` } as const
    t.equal((await home.send(unlink)).statusCode, 204)
    t.match((await enrollment(mfa_token)).json(), refused)
    t.match((await complete(app, mfa_token, createAuthenticator(began.secret).code())).json(), refused)
    t.equal((await login(app, home.owner.email, password, { headers: { host: home.host } })).statusCode, 200)
  })
  t.test('ends when an operator unlinks it', async (t) => {
    const { home, identity, mfa_token } = await addVictim('second')
    const text = "select operate_identity($1, $2, '1 day') as outcome"
    t.strictSame(await allRows(app.database, text, [home.owner.id, identity]), [{ outcome: 'unlinked' }])
    t.match((await enrollment(mfa_token)).json(), refused)
  })
  t.test('ends when the last factor is removed, so that one token sets up one factor', async (t) => {
    const home = await createTenant(app, 'third')
    await addMember(app, acme, home.owner.id, 'member')
    const { email, id } = home.owner
    const { mfa_token } = (await login(app, email, password, { headers: { host: acme.host } })).json()
    const authenticator = createAuthenticator((await enrollment(mfa_token)).json().secret)
    const { access_token } = (await complete(app, mfa_token, authenticator.code())).json()
    await forgetUsedCodes(app, id)
    const removal = {
      method: 'DELETE',
      url: '/api/v1/users/me/mfa/totp',
      payload: { code: authenticator.code() }
    } as const
    t.equal((await acme.with(access_token, removal)).statusCode, 204)
    t.match((await enrollment(mfa_token)).json(), refused)
  })
})

t.test('what factors there are is not told to the provider of an agency', async (t) => {
  const own = await startScriptedProvider(t)
  const app = await startApp(t)
  const acme = await createTenant(app, 'acme')
  const home = await createTenant(app, 'home')
  await verifyAll(app)
  await addMember(app, acme, home.owner.id, 'member')
  const key = await addProvider(acme, own.issuer)
  await allRows(
    app.database,
    `insert into user_identities (id, user_id, provider, agency_id, issuer, subject)
      values (gen_random_uuid(), $1, $2, $3, $4, 'confined')`,
    [home.owner.id, key, acme.id, own.issuer]
  )
  const { code, code_verifier } = await signInAt(app, { key, at: own }, 'acme', { sub: 'confined' })
  const { access_token } = (await exchange(app, code, code_verifier)).json()
  t.match((await acme.with(access_token, '/api/v1/users/me/mfa')).json(), { status: 403, code: 'forbidden' })
})
