import { generateKeyPairSync } from 'node:crypto'
import { createServer } from 'node:http'
import t from 'tap'
import {
  addMember,
  allRows,
  createTenant,
  eventually,
  mailsTo,
  password,
  post,
  send,
  startApp,
  type Tenant
} from './harness.ts'
import { verifyAll } from './mailed-links.ts'
import {
  addPasskey,
  createDevice,
  type Forgery,
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
import { singleSecret } from './tokens.ts'

/*
 * What nobody may do with a passkey, or without one.
 */

const env = { ...sharedRpId, JWT_SECRET: singleSecret, LOG_LEVEL: 'info' }
const invalid = { status: 401, code: 'invalid_credentials' }
const noChallenge = { status: 401, code: 'invalid_challenge' }

t.test('a passkey', async (t) => {
  const app = await startApp(t, env)
  const acme = await createTenant(app, 'acme')
  const rival = await createTenant(app, 'rival')
  await addMember(app, rival, acme.owner.id, 'viewer')
  const { device } = await register(acme)
  const sendSignIn = (host: string, passkey: unknown, tenant?: string) =>
    send(app, host, post('/auth/passkeys', { passkey, ...(tenant !== undefined && { tenant }) }))

  await t.test('that answers something else is refused, and everything gets one answer', async (t) => {
    const foreign = generateKeyPairSync('ec', { namedCurve: 'P-256' }).privateKey
    const forgeries: Record<string, Forgery> = {
      'another key': { key: foreign },
      'another RP ID': { rpId: 'evil.example' },
      'an origin elsewhere': { origin: 'https://evil.example' },
      'an origin that ends alike': { origin: 'http://evilacme.localhost:8080' },
      'a name below that of the agency': { origin: 'http://x.acme.localhost:8080' },
      'no verification of the person': { verified: false },
      'nobody present': { present: false },
      'a registration': { type: 'webauthn.create' },
      'the handle of somebody else': { userHandle: Buffer.alloc(16, 7).toString('base64url') }
    }
    for (const [title, forgery] of Object.entries(forgeries)) {
      t.match((await signInWith(app, acme.host, device, forgery)).json(), invalid, title)
    }
    const framed = await signInWith(app, acme.host, device, { crossOrigin: true })
    t.match(framed.json(), noChallenge, 'in the frame of another site')
    const unknown = await signInWith(app, acme.host, createDevice(originOf(acme)))
    const wrong = await signInWith(app, acme.host, device, { key: foreign })
    const plain = (body: object) => ({ ...body, request_id: '' })
    t.strictSame(plain(unknown.json()), plain(wrong.json()), 'an unknown passkey and a wrong signature')
    t.equal((await signInWith(app, acme.host, device)).statusCode, 200)
  })

  await t.test('that was used on the page of another agency signs in to that one only', async (t) => {
    const lured = device.get(await startSignIn(app, acme.host), { origin: originOf(rival) })
    t.match((await sendSignIn(acme.host, lured)).json(), invalid, 'on the host of the agency')
    const byName = device.get(await startSignIn(app, 'localhost'), { origin: originOf(rival) })
    t.match((await sendSignIn('localhost', byName, 'acme')).json(), invalid, 'on the general host')
    t.equal((await signInWith(app, acme.host, device)).statusCode, 200, 'the one used last is acme')
    const byUse = device.get(await startSignIn(app, 'localhost'), { origin: originOf(rival) })
    t.match((await sendSignIn('localhost', byUse)).json(), invalid, 'to the agency used last')
    const own = await signInWith(app, 'localhost', device, { origin: originOf(rival) }, 'rival')
    t.equal(own.statusCode, 200, 'and the agency of the page may have a session')
    const { mfa_token } = (
      await send(app, acme.host, post('/auth/login', { email: acme.owner.email, password }))
    ).json()
    const passkey = device.get(await startFactor(app, mfa_token, acme.host), { origin: originOf(rival) })
    t.match((await send(app, acme.host, post('/auth/mfa', { mfa_token, passkey }))).json(), invalid, 'as a factor')
    const options = await startPasskey(acme)
    const made = createDevice(originOf(acme)).create(options, { origin: originOf(rival) })
    t.match((await addPasskey(acme, made)).json(), { status: 400, code: 'invalid_passkey' }, 'and none is added there')
  })

  await t.test('may be used on pages that the agency has listed, and on no others', async (t) => {
    const page = 'https://console.localhost'
    const used = () => signInWith(app, acme.host, device, { origin: page })
    t.match((await used()).json(), invalid)
    const settings = { allowed_origins: [page, 'https://acme.example'] }
    t.equal((await acme.send({ method: 'PATCH', url: '/api/v1/tenant', payload: { settings } })).statusCode, 200)
    t.equal((await used()).statusCode, 200)
    t.match((await signInWith(app, rival.host, device, { origin: page })).json(), invalid, 'for this agency only')
    const elsewhere = await signInWith(app, acme.host, device, { origin: 'https://acme.example' })
    t.match(elsewhere.json(), invalid, 'not outside the RP ID')
  })

  await t.test('answers a challenge of this server, for its purpose and its person', async (t) => {
    const own = await startSignIn(app, acme.host)
    const challenges: Record<string, string> = {
      nothing: '',
      'invented bytes': Buffer.alloc(96, 1).toString('base64url'),
      'one other bit': `${own.challenge[0] === 'A' ? 'B' : 'A'}${own.challenge.slice(1)}`,
      'of a registration': (await startPasskey(acme)).challenge,
      'of a proof': (await startProof(acme)).challenge
    }
    for (const [title, challenge] of Object.entries(challenges)) {
      t.match((await sendSignIn(acme.host, device.get({ ...own, challenge }))).json(), noChallenge, title)
    }
    const { now } = Date
    const late = device.get(await startSignIn(app, acme.host))
    Date.now = () => now() + 301_000
    t.match((await sendSignIn(acme.host, late)).json(), noChallenge, 'five minutes later')
    Date.now = now

    const begin = async () => (await login(app, acme.owner.email, password)).json().mfa_token as string
    const [one, two] = [await begin(), await begin()]
    const passkey = device.get(await startFactor(app, one))
    const swapped = await send(app, 'localhost', post('/auth/mfa', { mfa_token: two, passkey }))
    t.match(swapped.json(), noChallenge, 'of another sign-in')

    const third = await createTenant(app, 'third')
    const foreign = createDevice(originOf(third)).create(await startPasskey(acme), { origin: originOf(third) })
    t.match((await addPasskey(third, foreign)).json(), noChallenge, 'of another person')
    const other = (await signInWith(app, acme.host, device)).json()
    const ofSession = createDevice(originOf(acme)).create(await startPasskey(acme, other))
    t.match((await addPasskey(acme, ofSession)).json(), noChallenge, 'of another session')
  })

  await t.test('of somebody proves nothing for somebody else', async (t) => {
    const stranger = await createTenant(app, 'stranger')
    const theirs = await register(stranger)
    const passkey = theirs.device.get(await startProof(acme), { origin: originOf(acme) })
    t.match((await acme.send(post('/auth/reauthenticate', { passkey }))).json(), invalid)
    const again = createDevice(originOf(acme), { id: Buffer.from(theirs.device.id, 'base64url') })
    const taken = await addPasskey(acme, again.create(await startPasskey(acme)))
    t.match(taken.json(), { status: 409, code: 'conflict' }, 'an id that somebody has')
  })

  await t.test('whose counter does not grow is a copy: refused, audited in each agency, and told', async (t) => {
    await verifyAll(app)
    t.equal((await signInWith(app, acme.host, device, { counter: 1000 })).statusCode, 200)
    for (const counter of [1000, 999, 0]) {
      t.match((await signInWith(app, acme.host, device, { counter })).json(), invalid, `${counter}`)
    }
    for (const { id } of [acme, rival]) {
      const text = "select detail from audit_events where tenant_id = $1 and action = 'user.passkey_refused'"
      t.match(await allRows(app.database, text, [id]), [{ detail: { reason: 'counter' } }, {}, {}])
    }
    app.mail.wake()
    const subject = 'A passkey of your account may have been copied'
    await eventually(() => mailsTo(app, acme.owner.email).some((mail) => mail.subject === subject))
    t.equal((await signInWith(app, acme.host, device, { counter: 1001 })).statusCode, 200)
  })

  await t.test('that is no passkey at all is refused without an error of the server', async (t) => {
    const good = device.get(await startSignIn(app, acme.host))
    const bytes = (size: number) => Buffer.alloc(size, 0xff).toString('base64url')
    const responses: [title: string, changed: object, status: number][] = [
      ['no authenticator data', { authenticatorData: '' }, 400],
      ['too short data', { authenticatorData: bytes(10) }, 401],
      ['bytes that are no data', { authenticatorData: bytes(200) }, 401],
      ['no signature', { signature: bytes(1) }, 401],
      ['no base64', { signature: '%%%' }, 400],
      ['client data that are no JSON', { clientDataJSON: bytes(40) }, 401],
      ['client data that are no object', { clientDataJSON: Buffer.from('7').toString('base64url') }, 401],
      ['a long signature', { signature: bytes(40_000) }, 400]
    ]
    for (const [title, changed, status] of responses) {
      const reply = await sendSignIn(acme.host, { ...good, response: { ...good.response, ...changed } })
      t.equal(reply.statusCode, status, `${title}: ${reply.body}`)
    }
    t.equal((await sendSignIn(acme.host, { ...good, id: bytes(100_000) })).statusCode, 413)
    t.equal((await sendSignIn(acme.host, { ...good, extra: 1 })).statusCode, 400)
    const made = createDevice(originOf(acme)).create(await startPasskey(acme))
    const objects = [bytes(1), bytes(300), Buffer.from('a163666d74646e6f6e65', 'hex').toString('base64url')]
    for (const attestationObject of objects) {
      const reply = await addPasskey(acme, { ...made, response: { ...made.response, attestationObject } })
      t.match(reply.json(), { status: 400, code: 'invalid_passkey' })
    }
    const unverified = createDevice(originOf(acme)).create(await startPasskey(acme), { verified: false })
    t.match((await addPasskey(acme, unverified)).json(), { code: 'invalid_passkey' }, 'nobody was verified')
    t.notOk(app.logLines.some((line) => JSON.parse(line).level >= 50))
    t.notOk(app.logLines.some((line) => line.includes(good.response.signature)))
  })

  await t.test('that brings certificates is refused before anybody looks at them', async (t) => {
    let asked = 0
    const server = createServer((_, reply) => {
      asked++
      reply.end()
    }).listen(0, '127.0.0.1')
    t.teardown(() => server.close())
    for (const fmt of ['packed', 'apple', 'android-key', 'tpm', 'fido-u2f', 'android-safetynet', 'invented']) {
      const attStmt = new Map<unknown, unknown>([['x5c', [Buffer.from('3000', 'hex')]]])
      const made = createDevice(originOf(acme)).create(await startPasskey(acme), { fmt, attStmt })
      t.match((await addPasskey(acme, made)).json(), { status: 400, code: 'invalid_passkey' }, fmt)
    }
    t.equal(asked, 0)
  })

  await t.test('is not added twice with one challenge', async (t) => {
    const options = await startPasskey(acme)
    t.equal((await addPasskey(acme, createDevice(originOf(acme)).create(options))).statusCode, 201)
    t.match((await addPasskey(acme, createDevice(originOf(acme)).create(options))).json(), noChallenge)
  })
})

t.test('the functions of the version before let nobody in who has passkeys only', async (t) => {
  const app = await startApp(t, env)
  const acme = await createTenant(app, 'acme')
  await register(acme)
  const asked = (text: string, tenant: Tenant = acme) =>
    allRows(
      app.database,
      `select ${text} from set_config('app.tenant_id', '${tenant.id}', false) as t,
        set_config('app.user_id', '${tenant.owner.id}', false) as u`
    )
  // it takes a person without a confirmed secret for one without a factor, and sign-in asks this person for one
  const [factor] = await asked('(select confirmed from my_factor())')
  t.equal(factor.confirmed, false)
  t.match((await login(app, acme.owner.email, password)).json(), { code: 'mfa_required' })
  const [session] = await asked(`open_session('${acme.owner.id}', '1 day', '1 day') as id`)
  t.equal(session.id, null)
  // an operator, and a reset, of that version
  const [removed] = await asked('remove_my_factor() as done')
  t.equal(removed.done, true)
  t.strictSame((await acme.send(passkeys)).json(), { data: [] })
  t.match((await acme.send(me)).json(), { mfa_enabled: false })
})

t.test('attempts are limited by address', async (t) => {
  const app = await startApp(t, { ...env, RATE_LIMIT_AUTH: '5/1m' })
  const acme = await createTenant(app, 'acme')
  const statuses: number[] = []
  for (let i = 0; i < 6; i++) {
    const passkey = createDevice(originOf(acme)).get({ challenge: 'AA', rpId: 'localhost', allowCredentials: [] })
    statuses.push((await send(app, acme.host, post('/auth/passkeys', { passkey }))).statusCode)
  }
  t.ok(statuses.includes(401) && statuses.at(-1) === 429, statuses.join())
})
