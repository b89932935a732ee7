import t, { type Test } from 'tap'
import { complete, createAuthenticator, demandFactor, enroll } from './factors.ts'
import {
  addMember,
  allRows,
  createTenant,
  mailsTo,
  password,
  post,
  type Reply,
  send,
  setStatus,
  startApp,
  type Tenant,
  type TestApp
} from './harness.ts'
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
  type ScriptedProvider,
  signInAt,
  startScriptedProvider,
  startUrl
} from './providers.ts'
import { bearer, me } from './requests.ts'
import { decode } from './tokens.ts'

/*
 * Somebody who holds an invitation comes in through a provider.
 */

async function invite(app: TestApp, tenant: Tenant, email: string, role = 'member') {
  const invited = await tenant.send(post('/invitations', { email, role }))
  if (invited.statusCode !== 201) throw new Error(invited.body)
  const { id } = invited.json()
  return { id, token: app.oneTimeTokens.issue('invitation', { tenant_id: tenant.id, id, generation: 1 }) }
}

const verified = (email: string, sub = email) => ({ sub, email, email_verified: true, name: 'Grace Hopper' })
const accept = (app: TestApp, body: object, headers = {}): Promise<Reply> =>
  send(app, 'localhost', post('/invitations/accept', body, headers))

/** What a refused acceptance must leave as it was: memberships, accounts, linked identities. */
const people = (app: TestApp) =>
  allRows(
    app.database,
    `select (select count(*)::int from memberships) as members, (select count(*)::int from users) as accounts,
      (select count(*)::int from user_identities) as identities`
  )

async function start(t: Test, env: Record<string, string> = {}) {
  const google = await startScriptedProvider(t)
  const settings = { GOOGLE_CLIENT_ID: clientId, GOOGLE_CLIENT_SECRET: clientSecret, GOOGLE_ISSUER: google.issuer }
  const app = await startApp(t, { LOG_LEVEL: 'info', ...settings, ...env })
  const acme = await createTenant(app, 'acme')
  const rival = await createTenant(app, 'rival')
  await verifyAll(app)
  /** Signs somebody in with an invitation, as far as the client's page. */
  const come = (token: string, account: ReturnType<typeof verified>, at: Provider = { key: 'google', at: google }) =>
    signInAt(app, at, 'acme', account, createBrowser(app), token)
  return { app, acme, rival, google, come }
}
type Provider = { key: string; at: ScriptedProvider }
type Came = Awaited<ReturnType<typeof signInAt>>
const finish = (app: TestApp, { code, code_verifier }: Came, host?: string) => exchange(app, code, code_verifier, host)

t.test('an invitation is accepted by a sign-in at a provider for everybody', async (t) => {
  const { app, acme, rival, google, come } = await start(t)
  const grace = verified('grace@gmail.example')
  const { id, token } = await invite(app, acme, grace.email)

  await t.test('a newcomer becomes a member, with an account that has no password', async (t) => {
    const { code_verifier, code_challenge } = createVerifier()
    const browser = createBrowser(app)
    const url = startUrl('google', 'acme', code_challenge, page('acme'), token)
    const started = await browser.get(url.replace('&tenant=acme', ''))
    t.equal(started.statusCode, 302, 'the invitation names the agency')
    t.notMatch(String(started.headers.location), token, 'and its token stays here')
    const back = await browser.get(google.authorize(String(started.headers.location), grace))
    const { searchParams } = new URL(String(back.headers.location))
    t.strictSame([...searchParams.keys()], ['code'])
    t.match(await people(app), [{ members: 2, identities: 0 }], 'nothing is accepted before the client asks')

    const reply = await exchange(app, searchParams.get('code'), code_verifier, acme.host)
    t.equal(reply.statusCode, 200, reply.body)
    const { claims } = decode(reply.json().access_token)
    t.match(claims, { tenant_id: acme.id, role: 'member', email: grace.email })
    const person = (await acme.with(reply.json().access_token, me)).json()
    t.match(person, { email: grace.email, name: 'Grace Hopper', email_verified: true })
    t.match(await allRows(app.database, 'select password_hash from users where email = $1', [grace.email]), [
      { password_hash: null }
    ])
    const events = await allRows(
      app.database,
      "select actor_id, target_id, session_id, detail from audit_events where action = 'invitation.accepted'"
    )
    t.strictSame(events, [
      { actor_id: claims.user_id, target_id: id, session_id: claims.sid, detail: { role: 'member', by: 'google' } }
    ])
    const again = await exchange(app, searchParams.get('code'), code_verifier)
    t.match(again.json(), { status: 401, code: 'invalid_sign_in_code' }, 'once')
    t.match(
      (await acme.with(reply.json().access_token, me)).json(),
      { code: 'session_revoked' },
      'somebody else may have the code'
    )
  })

  await t.test('who can sign in there from now on, and the invitation is used up', async (t) => {
    const back = await signInAt(app, { key: 'google', at: google }, 'acme', grace)
    t.equal((await finish(app, back)).statusCode, 200)
    const url = startUrl('google', 'acme', createVerifier().code_challenge, page('acme'), token)
    t.match((await createBrowser(app).get(url)).json(), { status: 410, code: 'invitation_expired' })
  })

  await t.test('a start on the host of the agency goes on at the general host, with the invitation', async (t) => {
    const other = await invite(app, acme, 'host@gmail.example')
    const url = startUrl('google', 'acme', createVerifier().code_challenge, page('acme'), other.token)
    const reply = await createBrowser(app).get(url, acme.host)
    t.equal(new URL(String(reply.headers.location)).searchParams.get('invitation'), other.token)
    const account = verified('host@gmail.example')
    t.equal((await finish(app, await come(other.token, account))).statusCode, 200)
  })

  await t.test('nobody else can use it, and it stays as it was', async (t) => {
    const mine = await invite(app, acme, 'mine@gmail.example')
    const before = await people(app)
    const others = {
      'another address': verified('other@gmail.example'),
      'an address that is not verified there': { ...verified('mine@gmail.example'), email_verified: false },
      'an address that only looks alike': verified('mine+1@gmail.example'),
      'the identity of another account': { ...verified('mine@gmail.example'), sub: grace.sub }
    }
    for (const [title, account] of Object.entries(others)) {
      t.match(await come(mine.token, account), { error: 'invitation_for_another' }, title)
    }
    const back = await come(mine.token, verified('mine@gmail.example'))
    const stolen = await exchange(app, back.code, createVerifier().code_verifier)
    t.match(stolen.json(), { status: 401, code: 'invalid_sign_in_code' }, 'a code without its verifier')
    t.match((await finish(app, back)).json(), { code: 'invalid_sign_in_code' }, 'which uses the code up')
    const elsewhere = await come(mine.token, verified('mine@gmail.example'))
    t.match((await finish(app, elsewhere, rival.host)).json(), { status: 403, code: 'tenant_mismatch' })
    t.strictSame(await people(app), before)
    t.equal((await finish(app, elsewhere)).statusCode, 200)
  })

  await t.test('it is no invitation to another agency, and no other token is one', async (t) => {
    const mine = await invite(app, acme, 'agency@gmail.example')
    const notFound = { status: 404, code: 'not_found' }
    const link = app.oneTimeTokens.issue('reset', { tenant_id: acme.id, id: mine.id, generation: 1 })
    const unknown = app.oneTimeTokens.issue('invitation', { tenant_id: rival.id, id: mine.id, generation: 1 })
    const tokens = { rival: mine.token, acme: `${mine.token.slice(0, -2)}AA` }
    for (const [slug, each] of [...Object.entries(tokens), ['acme', link], ['acme', 'x']]) {
      const url = startUrl('google', slug as string, createVerifier().code_challenge, page('acme'), each)
      t.match((await createBrowser(app).get(url)).json(), notFound)
    }
    const onHost = startUrl('google', 'rival', createVerifier().code_challenge, page('rival'), mine.token)
    t.match((await createBrowser(app).get(onHost, rival.host)).json(), notFound)
    const foreign = startUrl('google', 'rival', createVerifier().code_challenge, page('rival'), unknown)
    t.match((await createBrowser(app).get(foreign)).json(), { code: 'invitation_expired' })
    const page2 = startUrl('google', 'acme', createVerifier().code_challenge, page('rival'), mine.token)
    t.match((await createBrowser(app).get(page2)).json(), { code: 'validation_failed' }, 'it leads to its own agency')
  })
})

t.test('an account that has the invited address', async (t) => {
  const { app, acme, rival, google, come } = await start(t)
  const at = { key: 'google', at: google }
  const fresh = await createTenant(app, 'fresh')
  for (const [title, tenant] of [
    ['of a verified address', rival],
    ['of an address that was never verified', fresh]
  ] as const) {
    const { email } = tenant.owner
    const { token } = await invite(app, acme, email)
    const before = await people(app)
    t.match(await come(token, verified(email)), { error: 'identity_not_linked' }, title)
    t.strictSame(await people(app), before)
    t.equal((await accept(app, { token, password })).statusCode, 200, 'accepts by its password')
  }

  const linked = await createTenant(app, 'linked')
  await linkAt(app, at, linked, { sub: 'linked', email: 'private@gmail.example', email_verified: true })
  const { token } = await invite(app, acme, linked.owner.email, 'viewer')
  const reply = await finish(app, await come(token, verified('private@gmail.example', 'linked')))
  t.match(decode(reply.json().access_token).claims, { user_id: linked.owner.id, tenant_id: acme.id, role: 'viewer' })

  const careful = await createTenant(app, 'careful')
  await linkAt(app, at, careful, verified(careful.owner.email))
  const authenticator = await enroll(app, careful)
  const second = await invite(app, acme, careful.owner.email)
  const asked = (await finish(app, await come(second.token, verified(careful.owner.email)))).json()
  t.match(asked, { status: 401, code: 'mfa_required', factors: ['totp'] }, 'is asked for its second factor')
  const opened = (await complete(app, asked.mfa_token, authenticator.code())).json()
  t.match(decode(opened.access_token).claims, { user_id: careful.owner.id, tenant_id: acme.id })

  const member = await createTenant(app, 'member')
  await linkAt(app, at, member, verified(member.owner.email))
  const third = await invite(app, acme, member.owner.email)
  await addMember(app, acme, member.owner.id, 'viewer')
  const already = await finish(app, await come(third.token, verified(member.owner.email)))
  t.match(already.json(), { status: 409, code: 'already_a_member' })
  await allRows(app.database, 'update users set disabled_at = now() where id = $1', [member.owner.id])
  t.match(await come(third.token, verified(member.owner.email)), { error: 'not_a_member' }, 'not who is disabled')

  await demandFactor(app, acme.id)
  const last = await invite(app, acme, 'late@gmail.example')
  const enrolls = (await finish(app, await come(last.token, verified('late@gmail.example')))).json()
  t.match(enrolls, { status: 401, code: 'mfa_required', enroll: true }, 'an agency may demand one')
  const { mfa_token } = enrolls
  const { secret } = (await send(app, 'localhost', post('/auth/mfa/totp', { mfa_token }))).json()
  const enrolled = await complete(app, mfa_token, createAuthenticator(secret).code())
  t.match(decode(enrolled.json().access_token).claims, { tenant_id: acme.id, role: 'member' })
})

t.test('an invitation that ends at any step lets nobody in', async (t) => {
  const { app, acme, come } = await start(t)
  const admin = await createTenant(app, 'author')
  await addMember(app, acme, admin.owner.id, 'admin')
  const ofAdmin = (await send(app, acme.host, post('/auth/login', { email: admin.owner.email, password }))).json()
  const set = (change: string) => (id: string) =>
    allRows(app.database, `update invitations set ${change} where id = $1`, [id])
  const role = (name: string) => () =>
    allRows(app.database, 'update memberships set role = $1 where user_id = $2 and tenant_id = $3', [
      ...[name, admin.owner.id, acme.id]
    ])
  const ends: Record<string, (id: string) => Promise<unknown>> = {
    expired: set("expires_at = now() - interval '1 second'"),
    'sent again': set('generation = generation + 1'),
    accepted: set('accepted_at = now()'),
    revoked: (id) => acme.send({ method: 'DELETE', url: `/api/v1/invitations/${id}` }),
    'its author was demoted': role('member')
  }
  const before = await people(app)
  for (const [title, end] of Object.entries(ends)) {
    await role('admin')()
    const account = verified(`${title.replaceAll(' ', '.')}@gmail.example`)
    const reply = await acme.with(ofAdmin.access_token, post('/invitations', { email: account.email, role: 'member' }))
    const { id } = reply.json()
    const token = app.oneTimeTokens.issue('invitation', { tenant_id: acme.id, id, generation: 1 })
    const back = await come(token, account)
    t.type(back.code, 'string', back.reply.body)
    await end(id)
    t.match((await finish(app, back)).json(), { status: 410, code: 'invitation_expired' }, title)
    const url = startUrl('google', 'acme', createVerifier().code_challenge, page('acme'), token)
    t.match((await createBrowser(app).get(url)).json(), { status: 410, code: 'invitation_expired' }, title)
  }
  t.strictSame(await people(app), before)

  const { token } = await invite(app, acme, 'suspended@gmail.example')
  const back = await come(token, verified('suspended@gmail.example'))
  await setStatus(app, acme, 'suspended')
  t.match((await finish(app, back)).json(), { status: 403, code: 'tenant_suspended' })
})

t.test('of fifty at the same moment one is let in', async (t) => {
  const { app, acme, come } = await start(t)
  const account = verified('many@gmail.example')
  const { token } = await invite(app, acme, account.email)
  const flows = await Promise.all(Array.from({ length: 5 }, () => come(token, account)))
  const before = await people(app)
  const replies = await Promise.all(Array.from({ length: 50 }, (_, i) => finish(app, flows[i % 5] as Came)))
  t.equal(replies.filter(({ statusCode }) => statusCode === 200).length, 1)
  t.strictSame(
    [...new Set(replies.map((reply) => reply.statusCode))].sort().filter((status) => status >= 500),
    [],
    'and no other one fails'
  )
  const [{ members, accounts, identities }] = before
  t.strictSame(await people(app), [{ members: members + 1, accounts: accounts + 1, identities: identities + 1 }])
})

t.test("an invitation is accepted through the agency's own provider", async (t) => {
  const { app, acme, rival, google, come } = await start(t)
  const own = await startScriptedProvider(t)
  const key = await addProvider(acme, own.issuer)
  const at = { key, at: own }

  await t.test('by a newcomer of any domain, whose session stays in the agency', async (t) => {
    const { token } = await invite(app, acme, 'guest@elsewhere.example')
    const reply = await finish(app, await come(token, verified('guest@elsewhere.example'), at))
    t.match(decode(reply.json().access_token).claims, { tenant_id: acme.id, role: 'member' })
    const confined = await acme.with(reply.json().access_token, '/api/v1/users/me/identities')
    t.match(confined.json(), { status: 403, code: 'forbidden' })
  })

  await t.test('by an account of a proven domain, and by no other account', async (t) => {
    const { token } = await invite(app, acme, rival.owner.email)
    const before = await people(app)
    t.match(await come(token, verified(rival.owner.email), at), { error: 'identity_not_linked' })
    await allRows(
      app.database,
      "insert into tenant_domains (tenant_id, name, verified_at) values ($1, 'rival.example', now())",
      [acme.id]
    )
    await allRows(app.database, 'update users set email_verified_at = null where id = $1', [rival.owner.id])
    t.match(await come(token, verified(rival.owner.email), at), { error: 'identity_not_linked' }, 'never verified')
    t.strictSame(await people(app), before)
    await verifyAll(app)
    const reply = await finish(app, await come(token, verified(rival.owner.email), at))
    t.match(decode(reply.json().access_token).claims, { user_id: rival.owner.id, tenant_id: acme.id })
    await mailsAreSent(app)
    t.match(mailsTo(app, rival.owner.email).at(-1), { subject: 'Another way to sign in to your account' })
  })

  await t.test('not when the provider is removed meanwhile', async (t) => {
    const gone = await startScriptedProvider(t)
    const provider = await addProvider(acme, gone.issuer)
    const { token } = await invite(app, acme, 'gone@elsewhere.example')
    const back = await come(token, verified('gone@elsewhere.example'), { key: provider, at: gone })
    const before = await people(app)
    const removed = await acme.send({ method: 'DELETE', url: `/api/v1/identity-providers/${provider}` })
    t.equal(removed.statusCode, 204)
    t.match((await finish(app, back)).json(), { status: 401, code: 'invalid_sign_in_code' })
    t.strictSame(await people(app), before)
  })

  await t.test('where it is demanded every other way is refused, and the invitation stays usable', async (t) => {
    const guest = await createTenant(app, 'guest')
    await verifyAll(app)
    const newcomer = await invite(app, acme, 'demanded@elsewhere.example')
    const account = await invite(app, acme, guest.owner.email)
    await allRows(app.database, 'update identity_providers set enforced_from = now() where id = $1', [key])
    const before = await people(app)
    const refused = (reply: Reply) => t.match(reply.json(), { status: 403, code: 'provider_required', provider: key })
    const back = await come(newcomer.token, verified('demanded@elsewhere.example'), { key: 'google', at: google })
    refused(await finish(app, back))
    refused(await accept(app, { token: newcomer.token, name: 'New', password }))
    refused(await accept(app, { token: account.token, password }))
    refused(await accept(app, { token: account.token }, bearer(guest.owner.tokens.access_token)))
    t.strictSame(await people(app), before)
    const events = "select from audit_events where tenant_id = $1 and action = 'session.challenged'"
    t.strictSame(await allRows(app.database, events, [acme.id]), [], 'nothing is left of what was refused')
    for (const [invitation, email] of [
      [newcomer, 'demanded@elsewhere.example'],
      [account, guest.owner.email]
    ] as const) {
      t.equal((await finish(app, await come(invitation.token, verified(email), at))).statusCode, 200)
    }
  })
})
