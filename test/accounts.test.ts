import t from 'tap'
import {
  addMember,
  allRows,
  createTenant,
  eventually,
  mailedTokens,
  password,
  post,
  send,
  startApp,
  startServer,
  type TestApp,
  testEnvironment
} from './harness.ts'
import { me } from './requests.ts'

/*
 * Attacks on a person's account: guesses that would lock its owner out, a registration of its address by somebody else, tokens
 * of a disabled person, and a stolen refresh token within the grace.
 */

const limited = { RATE_LIMIT_AUTH: '10/1m', TRUST_PROXY: '10.0.0.0/8', LOG_LEVEL: 'info' }
const wrong = 'not the right password'
/** A request from this address, as the trusted proxy passes it on. */
const from = (ip: string, agent = 'test') => ({
  remoteAddress: '10.0.0.1',
  headers: { 'x-forwarded-for': ip, 'user-agent': agent }
})
const signIn = (app: TestApp, email: string, word: string, ip: string) =>
  send(app, 'localhost', { ...post('/auth/login', { email, password: word }), ...from(ip) })
const count = async (app: TestApp, email: string) =>
  (await allRows(app.database, `select failures from sign_in_failures where email = '${email}'`))[0]?.failures

t.test('an account that strangers guess at stays open to its owner', async (t) => {
  t.test('from a network of an earlier session, after a restart too', async (t) => {
    const app = await startApp(t, limited)
    const acme = await createTenant(app, 'acme')
    const { email } = acme.owner
    t.equal((await signIn(app, email, password, '203.0.113.5')).statusCode, 200)
    t.equal((await signIn(app, email, password, '2001:db8:7:7::1')).statusCode, 200)
    await app.close()
    const fresh = await startApp(t, limited, app.database)
    for (let host = 1; host <= 11; host++) await signIn(fresh, email, wrong, `198.51.100.${host}`)
    t.equal((await signIn(fresh, email, password, '198.51.100.99')).statusCode, 429, 'not from anywhere')
    t.equal((await signIn(fresh, email, password, '203.0.113.5')).statusCode, 200)
    t.equal((await signIn(fresh, email, password, '::ffff:203.0.113.5')).statusCode, 200, 'the same address')
    t.equal((await signIn(fresh, email, password, '2001:db8:7:7:9::9')).statusCode, 200, 'the same network')
    t.equal((await signIn(fresh, email, password, '::ffff:203.0.113.6')).statusCode, 429)
    t.equal((await signIn(fresh, email, password, '2001:db8:7:8::1')).statusCode, 429)
    await allRows(fresh.database, "update sessions set created_at = created_at - interval '91 days'")
    t.equal((await signIn(fresh, email, password, '203.0.113.5')).statusCode, 429, 'known for 90 days')
  })
  t.test('after a hundred wrong passwords in a row, wherever they were tried', async (t) => {
    const app = await startApp(t, { ...limited, RATE_LIMIT_AUTH: '1000/1m' })
    const acme = await createTenant(app, 'acme')
    const { email } = acme.owner
    t.equal((await signIn(app, email, password, '203.0.113.5')).statusCode, 200)
    const signedIn = (options: object) =>
      acme.send({
        ...from('198.51.100.1'),
        ...options,
        headers: { ...from('198.51.100.1').headers, authorization: `Bearer ${acme.owner.tokens.access_token}` }
      })
    const change = (word: string) =>
      signedIn(post('/users/me/password', { current_password: word, new_password: 'an entirely different one' }))
    t.equal((await signIn(app, email, wrong, '198.51.100.1')).statusCode, 401)
    t.equal((await change(wrong)).statusCode, 401)
    t.equal((await signedIn({ method: 'DELETE', url: me, payload: { password: wrong } })).statusCode, 401)
    const rival = await createTenant(app, 'rival')
    await rival.send(post('/invitations', { email, role: 'member' }))
    await eventually(() => mailedTokens(app, email).length === 1)
    const accept = post('/invitations/accept', { token: mailedTokens(app, email)[0], name: 'Eve', password: wrong })
    await allRows(app.database, `update users set email_verified_at = now() where email = '${email}'`)
    t.equal((await send(app, 'localhost', { ...accept, ...from('198.51.100.1') })).statusCode, 401)
    t.equal(await count(app, email), 4, 'each place counts')

    for (const who of [email, 'nobody@acme.example']) {
      await allRows(
        app.database,
        `insert into sign_in_failures values ('${who}', 99) on conflict (email) do update set failures = 99`
      )
      t.equal((await signIn(app, who, wrong, '198.51.100.2')).statusCode, 401)
      const refused = await signIn(app, who, password, '198.51.100.2')
      t.match(refused.json(), { status: 429, code: 'rate_limited' }, who)
      t.equal(refused.headers['retry-after'], '3600', who)
    }
    t.equal((await change(password)).statusCode, 429)
    t.equal((await send(app, 'localhost', { ...accept, ...from('198.51.100.1') })).statusCode, 429)
    t.equal((await signIn(app, email, wrong, '203.0.113.5')).statusCode, 401, 'a known network is never locked out')
    t.equal((await signIn(app, email, password, '203.0.113.5')).statusCode, 200)
    t.equal(await count(app, email), undefined, 'and starts from none')
    t.equal((await signIn(app, email, password, '198.51.100.2')).statusCode, 200)
  })
  t.test('counts of addresses that nobody has go after a week', async (t) => {
    const app = await startApp(t)
    const acme = await createTenant(app, 'acme')
    await allRows(
      app.database,
      `insert into sign_in_failures (email, failed_at) values ('${acme.owner.email}', now() - interval '8 days'),
        ('nobody@acme.example', now() - interval '8 days'), ('new@acme.example', now())`
    )
    const [swept] = await allRows(app.database, 'select sweep_sign_in_failures(10)::int as removed')
    t.equal(swept?.removed, 1)
    t.equal(await count(app, 'nobody@acme.example'), undefined)
  })
})

t.test('whoever is disabled has no good token, on any process, until they are enabled again', async (t) => {
  const app = await startApp(t)
  const acme = await createTenant(app, 'acme')
  await acme.send(post('/tenants', { name: 'Second', slug: 'second' }))
  const other = (await acme.send(post('/auth/switch', { tenant: 'second' }))).json().access_token
  const server = await startServer(t, testEnvironment(app.database))
  const statuses = async () => [
    (await acme.send(me)).statusCode,
    (await send(app, 'localhost', { url: me, headers: { authorization: `Bearer ${other}` } })).statusCode,
    (await fetch(`${server.url}${me}`, { headers: { authorization: `Bearer ${acme.owner.tokens.access_token}` } }))
      .status
  ]
  t.strictSame(await statuses(), [200, 200, 200])
  await allRows(app.database, 'update users set disabled_at = now()')
  await eventually(async () => (await statuses()).every((status) => status === 401))
  t.match((await acme.send(me)).json(), { code: 'session_revoked' })
  await allRows(app.database, 'update users set disabled_at = null')
  await eventually(async () => (await statuses()).every((status) => status === 200))
  const living = await allRows(app.database, "select state from changes where kind = 'member'")
  t.strictSame(living, [{ state: 'owner' }, { state: 'owner' }], 'nothing is left that could count again later')
})

t.test('a person who is disabled gets no good token by another role', async (t) => {
  const app = await startApp(t)
  const acme = await createTenant(app, 'acme')
  const other = await createTenant(app, 'other')
  await addMember(app, acme, other.owner.id, 'member')
  const { access_token } = (await acme.anonymous(post('/auth/login', { email: other.owner.email, password }))).json()
  const path = `/api/v1/members/${other.owner.id}`
  t.equal((await acme.with(access_token, me)).statusCode, 200)
  await allRows(app.database, `update users set disabled_at = now() where id = '${other.owner.id}'`)
  for (const role of ['viewer', 'member']) {
    t.equal((await acme.send({ method: 'PATCH', url: path, payload: { role } })).statusCode, 200)
  }
  await eventually(async () => (await acme.with(access_token, me)).statusCode === 401)
  t.match((await acme.with(access_token, me)).json(), { code: 'session_revoked' })
})

t.test('an address that was registered and never verified', async (t) => {
  const app = await startApp(t, { LOG_LEVEL: 'info' })
  const acme = await createTenant(app, 'acme')
  const invited = async (email: string) => {
    await acme.send(post('/invitations', { email, role: 'member' }))
    await eventually(() => mailedTokens(app, email).length === 1)
    return mailedTokens(app, email)[0] as string
  }
  const accept = (body: object) => send(app, 'localhost', post('/invitations/accept', body))
  const mine = 'a password of my very own'

  t.test('yields to whoever has the mailbox, and nothing else changes hands', async (t) => {
    const email = 'vera@example.com'
    const squat = await createTenant(app, 'squat', email)
    const token = await invited(email)
    const reply = await accept({ token, name: 'Vera', password: mine })
    t.equal(reply.statusCode, 200, reply.body)
    const headers = { authorization: `Bearer ${reply.json().access_token}` }
    const vera = (await send(app, 'localhost', { url: me, headers })).json()
    t.match(vera, { email, email_verified: true, name: 'Vera' })
    t.not(vera.id, squat.owner.id)
    const tenants = await send(app, 'localhost', { url: `${me}/tenants`, headers })
    t.strictSame(
      tenants.json().data.map(({ slug }: { slug: string }) => slug),
      ['acme']
    )
    t.match((await squat.send(me)).json(), { status: 401, code: 'session_revoked' })
    const refreshed = await squat.anonymous(post('/auth/refresh', { refresh_token: squat.owner.tokens.refresh_token }))
    t.equal(refreshed.statusCode, 401)
    t.equal((await squat.anonymous(post('/auth/login', { email, password }))).statusCode, 401)
    t.equal((await send(app, 'localhost', post('/auth/login', { email, password: mine }))).statusCode, 200)
    const events = await allRows(
      app.database,
      `select tenant_id, actor_id, ip, user_agent from audit_events where action = 'user.address_released'`
    )
    t.strictSame(events, [{ tenant_id: squat.id, actor_id: null, ip: null, user_agent: null }])
    const [accepted] = await allRows(
      app.database,
      `select detail from audit_events where action = 'invitation.accepted' and actor_id = '${vera.id}'`
    )
    t.match(accepted?.detail, { address_released_by: squat.owner.id })
  })
  t.test('stays with its owner, who knows the password or is signed in', async (t) => {
    const honest = await createTenant(app, 'honest', 'hana@example.com')
    const reply = await accept({ token: await invited('hana@example.com'), name: 'Hana', password })
    t.equal(reply.statusCode, 200)
    t.match((await honest.send(me)).json(), { id: honest.owner.id, email_verified: true })
    const signedIn = await createTenant(app, 'signed', 'sina@example.com')
    const withBearer = await signedIn.send(post('/invitations/accept', { token: await invited('sina@example.com') }))
    t.equal(withBearer.statusCode, 404, 'on the host of another agency it is no token')
    const headers = { authorization: `Bearer ${signedIn.owner.tokens.access_token}` }
    const general = post('/invitations/accept', { token: mailedTokens(app, 'sina@example.com')[0] }, headers)
    t.equal((await send(app, 'localhost', general)).statusCode, 200)
  })
  t.test('does not yield without a name, nor when it is verified or disabled', async (t) => {
    const careful = await createTenant(app, 'careful', 'cara@example.com')
    const token = await invited('cara@example.com')
    t.equal((await accept({ token, password: mine })).statusCode, 401, 'a slip at signing in')
    await allRows(app.database, `update users set disabled_at = now() where id = '${careful.owner.id}'`)
    t.equal((await accept({ token, name: 'Cara', password: mine })).statusCode, 401)
    await allRows(
      app.database,
      `update users set disabled_at = null, email_verified_at = now() where id = '${careful.owner.id}'`
    )
    t.equal((await accept({ token, name: 'Cara', password: mine })).statusCode, 401)
    t.equal((await careful.signIn()).token_type, 'Bearer')
  })
  t.test('is released for nobody who has not just used an invitation to it', async (t) => {
    await createTenant(app, 'kept', 'kept@example.com')
    const [row] = await allRows(
      app.database,
      `select release_address('kept@example.com') as id from set_config('app.tenant_id', '${acme.id}', false)`
    )
    t.equal(row?.id, null)
  })
})

t.test('a refresh that is repeated within the grace from elsewhere is recorded', async (t) => {
  const app = await startApp(t, { TRUST_PROXY: '10.0.0.0/8' })
  const acme = await createTenant(app, 'acme')
  const refresh = (refresh_token: string, ip: string, agent?: string) =>
    send(app, 'localhost', { ...post('/auth/refresh', { refresh_token }), ...from(ip, agent) })
  const events = () =>
    allRows(
      app.database,
      `select host(ip) as ip, user_agent from audit_events where action = 'session.refresh_repeated' order by created_at`
    )
  const { refresh_token } = acme.owner.tokens
  t.equal((await refresh(refresh_token, '203.0.113.5')).statusCode, 200)
  t.equal((await refresh(refresh_token, '203.0.113.5')).statusCode, 200)
  t.strictSame(await events(), [], 'a lost reply is nothing to tell')
  t.equal((await refresh(refresh_token, '198.51.100.1')).statusCode, 200)
  t.equal((await refresh(refresh_token, '203.0.113.5', 'another')).statusCode, 200)
  t.strictSame(await events(), [
    { ip: '198.51.100.1', user_agent: 'test' },
    { ip: '203.0.113.5', user_agent: 'another' }
  ])
})
