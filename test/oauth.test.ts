import t from 'tap'
import { complete, enroll } from './factors.ts'
import { allRows, createTenant, mailsTo, post, send, startApp } from './harness.ts'
import { mailsAreSent, verifyAll } from './mailed-links.ts'
import {
  addProvider,
  clientId,
  clientSecret,
  createBrowser,
  createVerifier,
  exchange,
  linkAt,
  page,
  resultOf,
  signInAt,
  startOpenIdProvider,
  startScriptedProvider,
  startUrl,
  walk
} from './providers.ts'
import { decode } from './tokens.ts'

const api = 'http://localhost:8080'
const callback = (provider: string) => `${api}/api/v1/auth/oauth/${provider}/callback`

t.test('sign-in at a provider for everybody', async (t) => {
  const google = await startOpenIdProvider(t, [callback('google')])
  const env = {
    GOOGLE_CLIENT_ID: clientId,
    GOOGLE_CLIENT_SECRET: clientSecret,
    GOOGLE_ISSUER: google.issuer,
    LOG_LEVEL: 'info'
  }
  const app = await startApp(t, env)
  const acme = await createTenant(app, 'acme')
  const rival = await createTenant(app, 'rival')
  const ada = { sub: 'ada at google', email: 'ada@gmail.example', email_verified: true, name: 'Ada' }
  await verifyAll(app)

  /** Goes to the provider and back, in a browser of its own. */
  const goThrough = async (slug: string) => {
    const { code_verifier, code_challenge } = createVerifier()
    const browser = createBrowser(app)
    const started = await browser.get(startUrl('google', slug, code_challenge))
    t.equal(started.statusCode, 302, started.body)
    const back = await browser.get(await walk(String(started.headers.location)))
    return { code_verifier, ...resultOf(back) } as { code_verifier: string; code?: string; error?: string }
  }

  t.test('the sign-in page learns what it may offer', async (t) => {
    const reply = await acme.anonymous('/api/v1/auth/providers')
    t.strictSame(reply.json(), {
      data: [{ id: 'google', name: 'Google', kind: 'google' }],
      required_provider: null
    })
  })

  t.test('the request to the provider has a state, a nonce and PKCE, and the verifier stays here', async (t) => {
    const browser = createBrowser(app)
    const started = await browser.get(startUrl('google', 'acme', createVerifier().code_challenge))
    const asked = new URL(String(started.headers.location)).searchParams
    t.ok((asked.get('state') ?? '').length >= 43)
    t.ok((asked.get('nonce') ?? '').length >= 43)
    t.match(Object.fromEntries(asked), {
      ...{ code_challenge_method: 'S256', code_challenge: /^[\w-]{43}$/, response_type: 'code' },
      redirect_uri: callback('google')
    })
    const [cookie] = [started.headers['set-cookie'] ?? []].flat()
    t.match(cookie, /^aggios_flow_[0-9a-f]{16}=[\w-]+; Path=\/; Max-Age=600; HttpOnly; SameSite=Lax$/)
    t.notMatch(cookie, String(asked.get('state')))
  })

  t.test('somebody without an account, and an address that has one, come in by no means', async (t) => {
    google.be(ada)
    t.equal((await goThrough('acme')).error, 'not_a_member')
    google.be({ sub: 'the address of acme', email: acme.owner.email, email_verified: true })
    t.equal((await goThrough('acme')).error, 'identity_not_linked')
    t.strictSame(await allRows(app.database, 'select from user_identities'), [])
  })

  t.test('a signed-in person links it, and signs in with it', async (t) => {
    google.be(ada)
    const { code_verifier, code_challenge } = createVerifier()
    const payload = { provider: 'google', redirect_to: page('acme'), code_challenge }
    const begun = await acme.send({ method: 'POST', url: '/api/v1/users/me/identities', payload })
    t.equal(begun.statusCode, 200, begun.body)
    const browser = createBrowser(app)
    const started = await browser.get(begun.json().url)
    t.equal(started.statusCode, 302, started.body)
    const { code } = resultOf(await browser.get(await walk(String(started.headers.location))))
    const confirm = { method: 'POST', url: '/api/v1/users/me/identities/confirm', payload: { code, code_verifier } }
    const linked = await acme.send(confirm as object)
    t.match(linked.json(), { provider: 'google', email: ada.email, tenant_id: null })
    t.equal((await acme.send(confirm as object)).json().code, 'invalid_sign_in_code', 'the code is good once')

    await mailsAreSent(app)
    t.match(mailsTo(app, acme.owner.email).at(-1), { subject: 'Another way to sign in to your account' })
    const [event] = await allRows(
      app.database,
      "select actor_id, detail from audit_events where action = 'user.identity_linked'"
    )
    t.strictSame(event, { actor_id: acme.owner.id, detail: { provider: 'google' } })

    const back = await goThrough('acme')
    const tokens = await exchange(app, back.code, back.code_verifier)
    t.equal(tokens.statusCode, 200, tokens.body)
    const { claims } = decode(tokens.json().access_token)
    t.match(claims, { user_id: acme.owner.id, tenant_id: acme.id, role: 'owner', email: acme.owner.email })
    t.equal((await acme.with(tokens.json().access_token, '/api/v1/users/me')).statusCode, 200)
    const opened = "select detail from audit_events where action = 'session.opened' order by id desc limit 1"
    t.strictSame(await allRows(app.database, opened), [{ detail: { by: 'google' } }])
    const refresh = post('/auth/refresh', { refresh_token: tokens.json().refresh_token })
    t.equal((await send(app, acme.host, refresh)).statusCode, 200)
  })

  t.test('a changed address at the provider changes nothing', async (t) => {
    google.be({ ...ada, email: rival.owner.email })
    // what the person has read is remembered, and a sign-in does not hang on it
    await app.revocations.readNow()
    await acme.send('/api/v1/users/me')
    const { hits, questions, entries } = app.readMemory.stats()
    t.ok(entries > 0)
    const back = await goThrough('acme')
    t.match(app.readMemory.stats(), { hits, questions })
    const tokens = await exchange(app, back.code, back.code_verifier)
    t.equal(decode(tokens.json().access_token).claims.user_id, acme.owner.id)
  })

  t.test('it is good in the agencies of the person only, and without a name in the one used last', async (t) => {
    google.be(ada)
    t.equal((await goThrough('rival')).error, 'not_a_member')
    const { code_verifier, code_challenge } = createVerifier()
    const app2 = await startApp(t, { ...env, APP_REDIRECTS: 'com.example.app:/signed-in' }, app.database)
    const browser = createBrowser(app2)
    const query = new URLSearchParams({ redirect_to: 'com.example.app:/signed-in', code_challenge })
    const started = await browser.get(`/api/v1/auth/oauth/google?${query}`)
    const back = await browser.get(await walk(String(started.headers.location)))
    t.match(String(back.headers.location), /^com\.example\.app:\/signed-in\?code=/)
    const tokens = await exchange(app2, resultOf(back).code, code_verifier)
    t.equal(decode(tokens.json().access_token).claims.tenant_id, acme.id)
  })

  t.test('a start on the host of the agency goes to the general host first', async (t) => {
    const { code_challenge } = createVerifier()
    const url = `/api/v1/auth/oauth/google?${new URLSearchParams({ redirect_to: page('acme'), code_challenge })}`
    const reply = await acme.anonymous(url)
    t.equal(reply.statusCode, 302)
    t.equal(reply.headers['set-cookie'], undefined)
    t.equal(String(reply.headers.location), `${api}${startUrl('google', 'acme', code_challenge)}`)
  })

  t.test('a second factor is asked for as after a password', async (t) => {
    const factor = await enroll(app, acme, await acme.signIn())
    google.be(ada)
    const back = await goThrough('acme')
    const refused = await exchange(app, back.code, back.code_verifier)
    t.match(refused.json(), { status: 401, code: 'mfa_required' })
    const done = await complete(app, refused.json().mfa_token, factor.code())
    t.equal(done.statusCode, 200, done.body)
    const opened = "select detail from audit_events where action = 'session.opened' order by id desc limit 1"
    t.strictSame(await allRows(app.database, opened), [{ detail: { by: 'google' } }])
    t.equal((await exchange(app, back.code, back.code_verifier)).json().code, 'invalid_sign_in_code')
  })

  t.test('the last way in stays, and others can be unlinked by whoever has just signed in', async (t) => {
    google.be(ada)
    const back = await goThrough('acme')
    t.ok(back.code)
    const [{ access_token }] = [await rival.signIn()]
    t.strictSame((await rival.with(access_token, '/api/v1/users/me/identities')).json(), { data: [] })
    await allRows(app.database, 'delete from second_factors')
    await allRows(app.database, 'update users set mfa_enabled_at = null')
    const tokens = await acme.signIn()
    const as = (options: object | string) => acme.with(tokens.access_token, options as string)
    const [identity] = (await as('/api/v1/users/me/identities')).json().data
    const remove = { method: 'DELETE', url: `/api/v1/users/me/identities/${identity.id}` }
    await allRows(app.database, 'update users set password_hash = null, pepper_id = null where id = $1', [
      acme.owner.id
    ])
    t.match((await as(remove)).json(), { status: 409, code: 'last_sign_in_method' })
    const hash = 'select password_hash, pepper_id from users where id = $1'
    const [stored] = await allRows(app.database, hash, [rival.owner.id])
    await allRows(app.database, 'update users set password_hash = $1, pepper_id = $2 where id = $3', [
      ...[stored.password_hash, stored.pepper_id, acme.owner.id]
    ])
    await allRows(app.database, "update sessions set authenticated_at = now() - interval '6 minutes'")
    t.match((await as(remove)).json(), { status: 403, code: 'reauthentication_required' })
    await allRows(app.database, 'update sessions set authenticated_at = now()')
    t.equal((await as(remove)).statusCode, 204)
    t.equal((await as('/api/v1/users/me')).statusCode, 200)
    const other = await acme.send('/api/v1/users/me')
    t.match(other.json(), { status: 401, code: 'session_revoked' }, 'every other session has ended')
    google.be(ada)
    t.equal((await goThrough('acme')).error, 'not_a_member')
  })
})

t.test("sign-in at an agency's own provider", async (t) => {
  const app = await startApp(t, { LOG_LEVEL: 'info' })
  const acme = await createTenant(app, 'acme')
  const rival = await createTenant(app, 'rival', 'owner@rival.example')
  const at = await startScriptedProvider(t)
  const key = await addProvider(acme, at.issuer, { newcomer_role: 'member' })
  const grace = { sub: 'grace', email: 'Grace@Acme.example', email_verified: true, name: ' Grace Hopper ' }
  const come = (account: Parameters<typeof signInAt>[3], slug = 'acme') => signInAt(app, { key, at }, slug, account)
  const prove = () =>
    allRows(
      app.database,
      "insert into tenant_domains (tenant_id, name, verified_at) values ($1, 'acme.example', now())",
      [acme.id]
    )

  t.test('nobody comes in before the domain is proven', async (t) => {
    t.equal((await come(grace)).error, 'identity_not_linked')
    await verifyAll(app)
    t.equal((await come({ sub: 'owner', email: acme.owner.email, email_verified: true })).error, 'identity_not_linked')
    await prove()
  })

  t.test('a newcomer of the domain gets an account without a password, and the role', async (t) => {
    const { code, code_verifier } = await come(grace)
    const tokens = (await exchange(app, code, code_verifier)).json()
    const me = await acme.with(tokens.access_token, '/api/v1/users/me')
    t.match(me.json(), { email: 'grace@acme.example', name: 'Grace Hopper', role: 'member', email_verified: true })
    const login = post('/auth/login', { email: 'grace@acme.example', password: 'anything at all' })
    t.match((await send(app, 'localhost', login)).json(), { status: 401, code: 'invalid_credentials' })
    const again = await come({ ...grace, email: 'somebody@else.example', email_verified: false })
    t.ok(again.code, 'the address does not matter any more')
  })

  t.test('a member of the domain is linked without asking, and told', async (t) => {
    const { code, code_verifier } = await come({ sub: 'the owner', email: acme.owner.email, email_verified: true })
    const tokens = (await exchange(app, code, code_verifier)).json()
    t.equal(decode(tokens.access_token).claims.user_id, acme.owner.id)
    await mailsAreSent(app)
    t.match(mailsTo(app, acme.owner.email).at(-1), { subject: 'Another way to sign in to your account' })
  })

  t.test('an address that the provider does not vouch for brings nobody in', async (t) => {
    const person = { sub: 'mallory', email: 'mallory@acme.example' }
    t.equal((await come(person)).error, 'identity_not_linked')
    t.equal(
      (await come({ ...person, email_verified: true, email: 'mallory@other.example' })).error,
      'identity_not_linked'
    )
  })

  t.test('another agency does not find the provider', async (t) => {
    const reply = await createBrowser(app).get(startUrl(key, 'rival', createVerifier().code_challenge))
    t.match(reply.json(), { status: 404, code: 'not_found' })
    t.strictSame((await rival.anonymous('/api/v1/auth/providers')).json().data, [])
    t.match((await acme.anonymous('/api/v1/auth/providers')).json().data, [
      { id: key, name: 'acme login', kind: 'openid' }
    ])
  })

  t.test('somebody who has left does not come back by it', async (t) => {
    const { code, code_verifier } = await come(grace)
    const tokens = (await exchange(app, code, code_verifier)).json()
    const { user_id } = decode(tokens.access_token).claims
    t.equal((await acme.send({ method: 'DELETE', url: `/api/v1/members/${user_id}` })).statusCode, 204)
    t.equal((await come(grace)).error, 'identity_not_linked')
  })

  t.test('a person links it on purpose, whatever address it has', async (t) => {
    const other = await startScriptedProvider(t)
    const id = await addProvider(acme, other.issuer)
    const linked = await linkAt(app, { key: id, at: other }, acme, { sub: 'o', email: 'o@else.example' })
    t.match(linked.json(), { provider: id, tenant_id: acme.id, name: 'acme login' })
    const { code, code_verifier } = await signInAt(app, { key: id, at: other }, 'acme', { sub: 'o' })
    t.equal((await exchange(app, code, code_verifier)).statusCode, 200)
  })
})

t.test('a sign-in at a provider counts as two attempts of its network, whatever addresses it goes by', async (t) => {
  const at = await startScriptedProvider(t)
  const google = { GOOGLE_CLIENT_ID: clientId, GOOGLE_CLIENT_SECRET: clientSecret, GOOGLE_ISSUER: at.issuer }
  const app = await startApp(t, google)
  const acme = await createTenant(app, 'acme')
  const account = { sub: 'ada' }
  t.equal((await linkAt(app, { key: 'google', at }, acme, account)).statusCode, 201)
  const limited = await startApp(t, { ...google, RATE_LIMIT_AUTH: '4/1m' }, app.database)
  for (const _ of [1, 2]) {
    const { code_verifier, code_challenge } = createVerifier()
    const browser = createBrowser(limited)
    const query = new URLSearchParams({ redirect_to: page('acme'), code_challenge })
    const sent = await browser.get(`/api/v1/auth/oauth/google?${query}`, acme.host)
    const started = await browser.get(String(sent.headers.location))
    const { code } = resultOf(await browser.get(at.authorize(String(started.headers.location), account)))
    t.equal((await exchange(limited, code, code_verifier)).statusCode, 200)
  }
  const another = await createBrowser(limited).get(startUrl('google', 'acme', createVerifier().code_challenge))
  t.match(another.json(), { status: 429, code: 'rate_limited' })
})
