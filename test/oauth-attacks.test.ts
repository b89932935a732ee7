import { createHmac } from 'node:crypto'
import t from 'tap'
import { allRows, createTenant, password, post, send, startApp } from './harness.ts'
import { verifyAll } from './mailed-links.ts'
import {
  type Account,
  addProvider,
  clientId,
  clientSecret,
  createBrowser,
  createVerifier,
  exchange,
  linkAt,
  page,
  resultOf,
  type Script,
  signInAt,
  signToken,
  startScriptedProvider,
  startUrl
} from './providers.ts'

/*
 * Attempts to take over an account, or to get into an agency, by a sign-in at a provider. Each of them fails.
 */

t.test('take-overs by a sign-in at a provider', async (t) => {
  const google = await startScriptedProvider(t)
  const rivalIdp = await startScriptedProvider(t)
  const app = await startApp(t, {
    GOOGLE_CLIENT_ID: clientId,
    GOOGLE_CLIENT_SECRET: clientSecret,
    GOOGLE_ISSUER: google.issuer,
    GITHUB_CLIENT_ID: clientId,
    GITHUB_CLIENT_SECRET: clientSecret,
    GITHUB_URL: google.url,
    CORS_ORIGINS: 'https://desk.example',
    LOG_LEVEL: 'trace'
  })
  const acme = await createTenant(app, 'acme')
  const rival = await createTenant(app, 'rival')
  await verifyAll(app)
  const own = { key: await addProvider(acme, google.issuer, { newcomer_role: 'viewer' }), at: google }
  const rivals = {
    key: await addProvider(rival, rivalIdp.issuer, { newcomer_role: 'admin', trust_email: true }),
    at: rivalIdp
  }
  const global = { key: 'google', at: google }
  await allRows(
    app.database,
    "insert into tenant_domains (tenant_id, name, verified_at) values ($1, 'acme.example', now()), ($2, 'rival.example', now())",
    [acme.id, rival.id]
  )
  const victim = { sub: 'the victim', email: 'victim@gmail.example', email_verified: true }
  t.equal((await linkAt(app, global, acme, victim)).statusCode, 201)
  const identities = () => allRows(app.database, 'select id from user_identities order by id')
  const before = await identities()
  const refusedState = { status: 400, code: 'invalid_oauth_state' }
  const refusedCode = { status: 401, code: 'invalid_sign_in_code' }

  /** Begins a sign-in, and lets the account in at the provider: `back` is where the browser would come back to. */
  async function begin(account: Account = victim, provider = global, slug = 'acme') {
    const { code_verifier, code_challenge } = createVerifier()
    const browser = createBrowser(app)
    const started = await browser.get(startUrl(provider.key, slug, code_challenge))
    const location = String(started.headers.location)
    return { code_verifier, browser, location, back: provider.at.authorize(location, account) }
  }

  t.test('an address that a stranger has registered first is not linked to its owner', async (t) => {
    const body = { tenant: { name: 'Fake', slug: 'fake' }, name: 'Fake', email: 'late@gmail.example', password }
    t.equal((await send(app, 'localhost', post('/auth/register', body))).statusCode, 201)
    const late = { sub: 'late', email: 'late@gmail.example', email_verified: true }
    t.equal((await signInAt(app, global, 'fake', late)).error, 'identity_not_linked')
  })

  t.test("an unverified account is not linked by the agency's own provider either", async (t) => {
    const person = { sub: 'unverified', email: acme.owner.email, email_verified: true }
    await allRows(app.database, 'update users set email_verified_at = null where id = $1', [acme.owner.id])
    t.equal((await signInAt(app, own, 'acme', person)).error, 'identity_not_linked')
    await verifyAll(app)
  })

  t.test("an account of the agency's domain that is no member is not linked", async (t) => {
    const person = { sub: 'x', email: 'outside@acme.example', email_verified: true }
    const body = { tenant: { name: 'Outside', slug: 'outside' }, name: 'Outside', email: person.email, password }
    t.equal((await send(app, 'localhost', post('/auth/register', body))).statusCode, 201)
    await verifyAll(app)
    t.equal((await signInAt(app, own, 'acme', person)).error, 'identity_not_linked')
  })

  t.test('an address at the provider that is that of a victim gives nothing', async (t) => {
    const person = { sub: 'an attacker', email: acme.owner.email, email_verified: true }
    t.equal((await signInAt(app, global, 'acme', person)).error, 'identity_not_linked')
    t.equal((await signInAt(app, global, 'acme', { ...person, email_verified: false })).error, 'not_a_member')
    const unknown = { ...person, email: 'nobody@acme.example', email_verified: false }
    t.equal((await signInAt(app, global, 'acme', unknown)).error, 'not_a_member', 'the same without an account')
  })

  t.test('an agency that says its own provider vouches for a foreign address gets nobody', async (t) => {
    const person = { sub: 'mallory', email: acme.owner.email, email_verified: true }
    t.equal((await signInAt(app, rivals, 'rival', person)).error, 'identity_not_linked')
  })

  t.test('an agency does not learn by its own provider who has an account', async (t) => {
    const come = async (email: string, email_verified: boolean) =>
      (await signInAt(app, rivals, 'rival', { sub: `somebody at ${email}`, email, email_verified })).error
    for (const verified of [true, false]) {
      for (const email of [acme.owner.email, 'nobody@acme.example', 'nobody@gmail.example']) {
        t.equal(await come(email, verified), 'identity_not_linked', `${email}, ${verified}`)
      }
    }
    const silent = { key: await addProvider(rival, google.issuer), at: google }
    const mine = { sub: 'nobody', email: 'nobody@rival.example', email_verified: true }
    t.equal((await signInAt(app, silent, 'rival', mine)).error, 'identity_not_linked', 'nor within its domain')
    const removal = { method: 'DELETE', url: `/api/v1/identity-providers/${silent.key}` } as const
    t.equal((await rival.send(removal)).statusCode, 204)
  })

  t.test('a rival that configures the issuer of another agency, or of everybody, has other identities', async (t) => {
    const same = { key: await addProvider(rival, google.issuer, { newcomer_role: 'admin' }), at: google }
    t.equal((await signInAt(app, same, 'rival', victim)).error, 'identity_not_linked')
    t.equal((await signInAt(app, own, 'acme', victim)).error, 'identity_not_linked', 'nor does the agency itself')
  })

  t.test('an agency does not use up the identities of its members by its own provider', async (t) => {
    const person = (number: number) => ({ sub: `${number}`, email: rival.owner.email, email_verified: true })
    const linked = () => allRows(app.database, 'select id from user_identities where user_id = $1', [rival.owner.id])
    t.ok((await signInAt(app, rivals, 'rival', person(1))).code)
    t.equal((await signInAt(app, rivals, 'rival', person(2))).error, 'identity_not_linked', 'one at each provider')
    t.match((await linkAt(app, rivals, rival, person(3))).json(), { status: 409, code: 'conflict' })
    t.match((await linkAt(app, rivals, rival, person(1))).json(), { status: 409, code: 'identity_taken' })
    t.equal((await linked()).length, 1)
    await allRows(
      app.database,
      `insert into user_identities (id, user_id, provider, issuer, subject)
        select gen_random_uuid(), $1, 'google', $2, 'one of many ' || number from generate_series(1, 19) as number`,
      [rival.owner.id, google.issuer]
    )
    t.equal((await linkAt(app, global, rival, { sub: 'the twentieth' })).statusCode, 201, 'it does not count')
    t.match((await linkAt(app, global, rival, { sub: 'one more' })).json(), { status: 409, code: 'conflict' })
    await allRows(app.database, 'delete from user_identities where user_id = $1', [rival.owner.id])
  })

  t.test('an issuer for every customer of somebody is not accepted', async (t) => {
    for (const issuer of [
      'https://login.microsoftonline.com/{tenantid}/v2.0',
      'ftp://x.example',
      'https://a@b.example'
    ]) {
      const payload = { name: 'x', issuer, client_id: clientId, client_secret: clientSecret }
      const reply = await rival.send({ method: 'POST', url: '/api/v1/identity-providers', payload })
      t.match(reply.json(), { status: 400, code: 'validation_failed' }, issuer)
    }
  })

  t.test('a provider of one agency can not be begun with at another one', async (t) => {
    const reply = await createBrowser(app).get(startUrl(rivals.key, 'acme', createVerifier().code_challenge))
    t.match(reply.json(), { status: 404, code: 'not_found' })
  })

  t.test('an answer in another browser is refused, and nothing is asked of the provider', async (t) => {
    const { back } = await begin()
    const asked = google.requests.filter((path) => path === '/token').length
    t.match((await createBrowser(app).get(back)).json(), refusedState)
    t.equal(google.requests.filter((path) => path === '/token').length, asked)
  })

  t.test('an answer with the state of another tab, or without one, is refused', async (t) => {
    const [one, two] = [await begin(), await begin()]
    const url = new URL(one.back)
    url.searchParams.set('state', new URL(two.back).searchParams.get('state') as string)
    t.match((await one.browser.get(url.href)).json(), refusedState)
    url.searchParams.delete('state')
    t.match((await one.browser.get(url.href)).json(), refusedState)
  })

  t.test('an answer at the address of another provider is refused', async (t) => {
    for (const other of ['github', own.key]) {
      const { browser, back } = await begin()
      t.match((await browser.get(back.replace('/google/', `/${other}/`))).json(), refusedState, other)
    }
  })

  t.test('an answer that names another issuer is refused', async (t) => {
    google.script.metadata = { authorization_response_iss_parameter_supported: true }
    const { browser, back } = await begin()
    const url = new URL(back)
    url.searchParams.set('iss', rivalIdp.issuer)
    t.equal(resultOf(await browser.get(url.href)).error, 'provider_error')
    google.script.metadata = {}
  })

  t.test('a flow is good once, also when the answer is another one', async (t) => {
    const { browser, back, location } = await begin()
    const kept = [...browser.cookies]
    t.ok(resultOf(await browser.get(back)).code)
    for (const [name, value] of kept) browser.cookies.set(name, value)
    t.match((await browser.get(google.authorize(location, victim))).json(), refusedState)
  })

  t.test('a cookie of a flow that was changed, or that is over, is refused', async (t) => {
    const { browser, back } = await begin()
    const [[name, value] = ['', '']] = browser.cookies
    browser.cookies.set(name, `${value.slice(0, -2)}AA`)
    t.match((await browser.get(back)).json(), refusedState)
    const late = await begin()
    const now = Date.now
    Date.now = () => now() + 601_000
    try {
      t.match((await late.browser.get(late.back)).json(), refusedState)
    } finally {
      Date.now = now
    }
  })

  t.test("a code of somebody else's sign-in at the provider is refused by its PKCE", async (t) => {
    const [stolen, mine] = [await begin(), await begin({ sub: 'an attacker' })]
    const url = new URL(mine.back)
    url.searchParams.set('code', new URL(stolen.back).searchParams.get('code') as string)
    t.equal(resultOf(await mine.browser.get(url.href)).error, 'provider_error')
  })

  const now = () => Math.floor(Date.now() / 1000)
  const forged: Record<string, NonNullable<Script['token']>> = {
    'without a signature': (claims) => `${signToken(claims, { alg: 'none' }).split('.').slice(0, 2).join('.')}.`,
    'signed with the secret of the client': (claims) => {
      const content = signToken(claims, { alg: 'HS256' }).split('.').slice(0, 2).join('.')
      return `${content}.${createHmac('sha256', clientSecret).update(content).digest('base64url')}`
    },
    'with a signature that was changed': (claims) => `${signToken(claims).slice(0, -4)}AAAA`,
    'with an unknown key': (claims) => signToken(claims, { alg: 'RS256', kid: 'two' }),
    'of another issuer': (claims) => ({ ...claims, iss: rivalIdp.issuer }),
    'for another client': (claims) => ({ ...claims, aud: 'another client' }),
    'for another client as well, without saying for whom': (claims) => ({ ...claims, aud: [clientId, 'another'] }),
    'of another party': (claims) => ({ ...claims, aud: [clientId, 'another'], azp: 'another' }),
    'with another nonce': (claims) => ({ ...claims, nonce: 'another' }),
    'without a nonce': ({ nonce: _, ...claims }) => claims,
    'that has expired': (claims) => ({ ...claims, exp: now() - 120 }),
    'of tomorrow': (claims) => ({ ...claims, nbf: now() + 86_400 }),
    'without a subject': ({ sub: _, ...claims }) => claims,
    'with an endless subject': (claims) => ({ ...claims, sub: 'x'.repeat(256) })
  }
  for (const [title, token] of Object.entries(forged)) {
    t.test(`an id_token ${title} is refused`, async (t) => {
      google.script.token = token
      t.teardown(() => delete google.script.token)
      t.equal((await signInAt(app, global, 'acme', victim)).error, 'provider_error')
    })
  }

  t.test('a stolen code is nothing without the verifier, and is used up by the attempt', async (t) => {
    const { code, code_verifier } = await signInAt(app, global, 'acme', victim)
    t.match((await exchange(app, code, createVerifier().code_verifier)).json(), refusedCode)
    t.match((await exchange(app, code, code_verifier)).json(), refusedCode)
  })

  t.test('a code on the host of another agency is refused, and stays good on its own', async (t) => {
    const { code, code_verifier } = await signInAt(app, global, 'acme', victim)
    t.match((await exchange(app, code, code_verifier, rival.host)).json(), { status: 403, code: 'tenant_mismatch' })
    t.equal((await exchange(app, code, code_verifier, acme.host)).statusCode, 200)
    t.match((await exchange(app, code, code_verifier, acme.host)).json(), refusedCode)
  })

  t.test('a code is dead after a minute, after a new password, and when the identity is unlinked', async (t) => {
    const old = await signInAt(app, global, 'acme', victim)
    const clock = Date.now
    Date.now = () => clock() + 61_000
    try {
      t.match((await exchange(app, old.code, old.code_verifier)).json(), refusedCode)
    } finally {
      Date.now = clock
    }
    await allRows(app.database, 'update users set password_version = password_version + 1 where id = $1', [
      acme.owner.id
    ])
    t.match((await exchange(app, old.code, old.code_verifier)).json(), refusedCode)
    const next = await signInAt(app, global, 'acme', victim)
    await allRows(app.database, 'update users set password_version = password_version - 1 where id = $1', [
      acme.owner.id
    ])
    t.match((await exchange(app, next.code, next.code_verifier)).json(), refusedCode)
    const last = await signInAt(app, global, 'acme', victim)
    const [row] = await allRows(app.database, 'delete from user_identities where subject = $1 returning *', [
      victim.sub
    ])
    t.match((await exchange(app, last.code, last.code_verifier)).json(), refusedCode)
    await allRows(
      app.database,
      'insert into user_identities select (json_populate_record(null::user_identities, $1)).*',
      [row]
    )
  })

  t.test('no other token is one of these codes, and a code is no other token', async (t) => {
    const { code_verifier, browser, code } = await signInAt(app, global, 'acme', victim)
    const { access_token, refresh_token } = acme.owner.tokens
    const cookie = [...(await begin()).browser.cookies.values()][0]
    for (const token of [access_token, refresh_token, cookie]) {
      t.match((await exchange(app, token, code_verifier)).json(), refusedCode)
    }
    const ticket = `/api/v1/auth/oauth/google/link?ticket=${code}`
    t.match((await browser.get(ticket)).json(), refusedState)
  })

  t.test('a sign-in leads to no address that is not listed', async (t) => {
    const { code_challenge } = createVerifier()
    const bad = [
      'https://evil.example/',
      '//evil.example/',
      '/\\evil.example',
      'https://desk.example.evil.example/',
      'https://desk.example@evil.example/',
      'https://user@desk.example/',
      'https://desk.example\\@evil.example/',
      'https://desk.example:444/',
      'http://desk.example/',
      'https://sub.desk.example/',
      'https://DESK.example/',
      'https://desk.example//evil.example',
      'https://desk.example/#fragment',
      'https:desk.example/',
      'https:///desk.example/',
      'javascript:alert(1)',
      'data:text/html,x',
      'com.example.app:/signed-in',
      'http://127.0.0.1:1/',
      page('rival'),
      'https://desk.example/\r\nset-cookie:x=y',
      'https://desk.example/%'.repeat(60)
    ]
    for (const target of bad) {
      const reply = await createBrowser(app).get(startUrl('google', 'acme', code_challenge, target))
      t.match(reply.json(), { status: 400, code: 'validation_failed' }, target)
      t.equal(reply.headers.location, undefined)
    }
    const good = await createBrowser(app).get(startUrl('google', 'acme', code_challenge, 'https://desk.example/in?a=b'))
    t.equal(good.statusCode, 302)
  })

  t.test('a sign-in without PKCE of the client does not begin', async (t) => {
    for (const challenge of ['', 'short', 'x'.repeat(44)]) {
      t.equal((await createBrowser(app).get(startUrl('google', 'acme', challenge))).statusCode, 400)
    }
  })

  t.test('a link that somebody else has begun does not take the identity of whoever follows it', async (t) => {
    const { code_verifier, code_challenge } = createVerifier()
    const payload = { provider: 'google', redirect_to: page('rival'), code_challenge }
    const begun = await rival.send({ method: 'POST', url: '/api/v1/users/me/identities', payload })
    const browser = createBrowser(app)
    const started = await browser.get(begun.json().url)
    const back = await browser.get(google.authorize(String(started.headers.location), { sub: 'a careless person' }))
    const { code } = resultOf(back)
    t.strictSame(await identities(), before, 'nothing is linked by following it')
    const confirm = {
      method: 'POST',
      url: '/api/v1/users/me/identities/confirm',
      payload: { code, code_verifier }
    } as const
    t.match((await acme.send(confirm)).json(), refusedCode, 'somebody else can not complete it')
    const other = await rival.signIn()
    t.match((await rival.with(other.access_token, confirm)).json(), refusedCode, 'nor another session')
    t.match((await exchange(app, code, code_verifier)).json(), refusedCode, 'and it is no sign-in')
    t.match((await createBrowser(app).get(begun.json().url)).json(), refusedState, 'the address is good once')
  })

  t.test('linking needs a fresh sign-in, and an identity of somebody else can not be linked', async (t) => {
    t.match((await linkAt(app, global, rival, victim)).json(), { status: 409, code: 'identity_taken' })
    await allRows(
      app.database,
      "update sessions set authenticated_at = now() - interval '6 minutes' where tenant_id = $1",
      [rival.id]
    )
    t.match((await linkAt(app, global, rival, { sub: 'new' })).json(), {
      status: 403,
      code: 'reauthentication_required'
    })
  })

  t.test('whoever is disabled stays out, and an agency that is suspended too', async (t) => {
    const { code, code_verifier } = await signInAt(app, global, 'acme', victim)
    await allRows(app.database, 'update users set disabled_at = now() where id = $1', [acme.owner.id])
    t.match((await exchange(app, code, code_verifier)).json(), refusedCode)
    t.equal((await signInAt(app, global, 'acme', victim)).error, 'not_a_member')
    await allRows(app.database, 'update users set disabled_at = null where id = $1', [acme.owner.id])
  })

  t.test('after all of it the identities are the same', async (t) => t.strictSame(await identities(), before))

  t.test('no log line, audit row or stored row has a secret, a code or a token', async (t) => {
    const { code, code_verifier, back } = await signInAt(app, global, 'acme', victim)
    await exchange(app, code, code_verifier)
    const stored = await allRows(
      app.database,
      'select a::text from audit_events a union all select p::text from identity_providers p'
    )
    const text = [...app.logLines, ...stored.map((row) => Object.values(row).join())].join('\n')
    const codeAtProvider = new URL(back).searchParams.get('code') as string
    for (const secret of [clientSecret, code as string, code_verifier, codeAtProvider]) t.notOk(text.includes(secret))
  })
})
