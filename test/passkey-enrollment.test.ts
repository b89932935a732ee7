import t from 'tap'
import { complete, createAuthenticator, demandFactor } from './factors.ts'
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
  type CreationOptions,
  createDevice,
  type Forgery,
  originOf,
  sharedRpId,
  signInWith,
  startPasskey
} from './passkey-device.ts'
import { addProvider } from './providers.ts'
import { me } from './requests.ts'
import { refresh } from './session-requests.ts'
import { sidOf } from './tokens.ts'

/*
 * An agency demands a second factor, and somebody without one adds a passkey in the middle of the sign-in.
 */

const begin = (app: TestApp, mfa_token: string, host = 'localhost'): Promise<Reply> =>
  send(app, host, post('/auth/mfa/passkeys/options', { mfa_token }))
const finish = (app: TestApp, mfa_token: string, passkey: unknown, host = 'localhost'): Promise<Reply> =>
  send(app, host, post('/auth/mfa/passkeys', { mfa_token, name: 'A phone', passkey }))

async function optionsFor(app: TestApp, mfa_token: string): Promise<CreationOptions> {
  const reply = await begin(app, mfa_token)
  if (reply.statusCode !== 200) throw new Error(`options: ${reply.statusCode} ${reply.body}`)
  return reply.json()
}

/** Makes a passkey on the page of an agency for a sign-in, and completes it. */
const enroll = async (app: TestApp, tenant: Tenant, mfa_token: string, forgery: Forgery = {}): Promise<Reply> =>
  finish(app, mfa_token, createDevice(originOf(tenant)).create(await optionsFor(app, mfa_token), forgery))

t.test('a passkey that completes a sign-in', async (t) => {
  const app = await startApp(t, { ...sharedRpId, LOG_LEVEL: 'info' })
  const acme = await createTenant(app, 'acme')
  const rival = await createTenant(app, 'rival')
  await demandFactor(app, acme.id)
  await verifyAll(app)
  /** A new member of both agencies, who has given the right password to the one that demands a factor. */
  let count = 0
  async function arrive() {
    const person = await createTenant(app, `person${++count}`)
    for (const tenant of [acme, rival]) await addMember(app, tenant, person.owner.id, 'member')
    await verifyAll(app)
    const { email, id } = person.owner
    const refusal = (await send(app, acme.host, post('/auth/login', { email, password }))).json()
    t.match(refusal, { status: 401, code: 'mfa_required', enroll: true })
    return { person, email, id, mfa_token: refusal.mfa_token as string }
  }
  const noToken = { status: 401, code: 'invalid_mfa_token' }

  await t.test('is stored, opens the session, and brings recovery codes', async (t) => {
    const { person, email, id, mfa_token } = await arrive()
    const device = createDevice(originOf(acme))
    const options = await optionsFor(app, mfa_token)
    t.match(options, {
      rp: { id: 'localhost' },
      user: { name: email },
      excludeCredentials: [],
      authenticatorSelection: { residentKey: 'required', userVerification: 'required' }
    })
    const reply = await finish(app, mfa_token, device.create(options), acme.host)
    t.equal(reply.statusCode, 200, reply.body)
    const { access_token, refresh_token, recovery_codes } = reply.json()
    t.equal(recovery_codes.length, 10)
    t.match((await acme.with(access_token, me)).json(), { id, tenant_id: acme.id, mfa_enabled: true })
    t.equal((await refresh(app, refresh_token)).statusCode, 200, 'the session counts as one with a factor')
    t.match((await person.send(me)).json(), { code: 'session_revoked' }, 'sessions without it ended')
    const listed = await acme.with(access_token, '/api/v1/users/me/passkeys')
    t.match(listed.json().data, [{ name: 'A phone' }])
    const [event, ...others] = await allRows(
      app.database,
      "select actor_id, detail from audit_events where action = 'user.passkey_added' and tenant_id = $1",
      [rival.id]
    )
    t.strictSame([event, others], [{ actor_id: id, detail: { passkey_id: listed.json().data[0].id } }, []])
    await mailsAreSent(app)
    t.ok(
      mailsTo(app, email).some(({ subject }) => /passkey/i.test(subject)),
      'the person is told'
    )

    t.match((await finish(app, mfa_token, device.create(options))).json(), noToken, 'the token is used up')
    t.match((await begin(app, mfa_token)).json(), noToken)
    t.match((await send(app, 'localhost', post('/auth/mfa/totp', { mfa_token }))).json(), noToken)
    t.equal((await signInWith(app, acme.host, device)).statusCode, 200, 'from now on it signs in')
    const next = (await send(app, rival.host, post('/auth/login', { email, password }))).json()
    t.match(next, { code: 'mfa_required', factors: ['passkey'] }, 'and is asked for in every agency')
    const byCode = await complete(app, next.mfa_token, recovery_codes[0])
    t.equal(byCode.statusCode, 200, 'a recovery code replaces it')
    t.not(sidOf(byCode.json()), sidOf(reply.json()))
  })

  await t.test('that is not what was asked for changes nothing', async (t) => {
    const { id, mfa_token } = await arrive()
    const other = await arrive()
    const forgeries: Record<string, Forgery> = {
      'the page of another agency': { origin: originOf(rival) },
      'a page elsewhere': { origin: 'https://evil.example' },
      'another RP ID': { rpId: 'evil.example' },
      'no verification of the person': { verified: false },
      'nobody present': { present: false }
    }
    for (const [title, forgery] of Object.entries(forgeries)) {
      t.match((await enroll(app, acme, mfa_token, forgery)).json(), { status: 400, code: 'invalid_passkey' }, title)
    }
    const noChallenge = { status: 401, code: 'invalid_challenge' }
    const device = createDevice(originOf(acme))
    const foreign = device.create(await optionsFor(app, other.mfa_token))
    t.match((await finish(app, mfa_token, foreign)).json(), noChallenge, 'made for another sign-in')
    const signedIn = device.create(await startPasskey(other.person))
    t.match((await finish(app, other.mfa_token, signedIn)).json(), noChallenge, 'made for a session of the person')
    const asSession = createDevice(originOf(other.person)).create(await optionsFor(app, other.mfa_token))
    const misused = await other.person.send(post('/users/me/passkeys', { name: 'X', passkey: asSession }))
    t.match(misused.json(), noChallenge, 'and not the other way round')
    t.match((await begin(app, mfa_token, rival.host)).json(), { status: 403, code: 'tenant_mismatch' })
    t.match((await finish(app, mfa_token, foreign, rival.host)).json(), { status: 403, code: 'tenant_mismatch' })
    t.match((await finish(app, `${mfa_token.slice(0, -2)}AA`, foreign)).json(), noToken)
    const signIn = app.mfaTokens.issue('sign_in', { tenant_id: acme.id, user_id: id, password_version: 1 })
    t.match((await begin(app, signIn)).json(), noToken, 'the token of somebody who has a factor')
    t.strictSame(await allRows(app.database, 'select from passkeys where user_id = $1', [id]), [])
    const taken = await finish(app, mfa_token, device.create(await optionsFor(app, mfa_token)))
    t.equal(taken.statusCode, 200, 'and the token is as good as before')
    const again = await finish(app, other.mfa_token, device.create(await optionsFor(app, other.mfa_token)))
    t.match(again.json(), { status: 409, code: 'conflict' }, 'a passkey of somebody else')
  })

  await t.test('is refused where the sign-in is over by then', async (t) => {
    const changed = await arrive()
    const passkey = createDevice(originOf(acme)).create(await optionsFor(app, changed.mfa_token))
    await allRows(app.database, 'update users set password_version = 2 where id = $1', [changed.id])
    t.match((await finish(app, changed.mfa_token, passkey)).json(), noToken, 'the password was changed')

    const removed = await arrive()
    const late = createDevice(originOf(acme)).create(await optionsFor(app, removed.mfa_token))
    await allRows(app.database, 'delete from memberships where user_id = $1 and tenant_id = $2', [removed.id, acme.id])
    t.match((await finish(app, removed.mfa_token, late)).json(), noToken, 'the person was removed')
    t.strictSame(await allRows(app.database, 'select from passkeys where user_id = $1', [removed.id]), [], 'no passkey')

    const suspended = await arrive()
    const waiting = createDevice(originOf(acme)).create(await optionsFor(app, suspended.mfa_token))
    await setStatus(app, acme, 'suspended')
    t.match((await finish(app, suspended.mfa_token, waiting)).json(), { status: 403, code: 'tenant_suspended' })
    await setStatus(app, acme, 'active')
    await app.revocations.readNow()
    t.equal((await finish(app, suspended.mfa_token, waiting)).statusCode, 200)
  })

  await t.test('is stored once, by one of fifty requests', async (t) => {
    const { id, mfa_token } = await arrive()
    const devices = Array.from({ length: 5 }, () => createDevice(originOf(acme)))
    const options = await optionsFor(app, mfa_token)
    const answers = devices.map((device) => device.create(options))
    const replies = await Promise.all(Array.from({ length: 50 }, (_, i) => finish(app, mfa_token, answers[i % 5])))
    t.equal(replies.filter(({ statusCode }) => statusCode === 200).length, 1)
    t.equal(replies.filter((reply) => reply.json().code === 'invalid_mfa_token').length, 49)
    t.equal((await allRows(app.database, 'select from passkeys where user_id = $1', [id])).length, 1)
  })

  await t.test('and an app that is set up at the same moment are one factor', async (t) => {
    for (let round = 0; round < 5; round++) {
      const { id, mfa_token } = await arrive()
      const { secret } = (await send(app, 'localhost', post('/auth/mfa/totp', { mfa_token }))).json()
      const answer = createDevice(originOf(acme)).create(await optionsFor(app, mfa_token))
      const replies = await Promise.all([
        complete(app, mfa_token, createAuthenticator(secret).code()),
        finish(app, mfa_token, answer)
      ])
      t.strictSame(replies.map(({ statusCode }) => statusCode).sort(), [200, 401])
      const [{ factors }] = await allRows(
        app.database,
        `select (select count(*)::int from passkeys where user_id = $1)
          + (select count(*)::int from second_factors where user_id = $1 and confirmed_at is not null) as factors`,
        [id]
      )
      t.equal(factors, 1)
    }
  })

  await t.test('is not added by a sign-in that an agency decides, nor past its demand', async (t) => {
    const { id, mfa_token } = await arrive()
    const provider = await addProvider(acme, 'http://localhost:1')
    const subject = { tenant_id: acme.id, user_id: id, password_version: 1, by: provider, provider_id: provider }
    t.match((await begin(app, app.mfaTokens.issue('enrollment', subject))).json(), noToken)
    const passkey = createDevice(originOf(acme)).create(await optionsFor(app, mfa_token))
    await allRows(app.database, 'update identity_providers set enforced_from = now() where id = $1', [provider])
    t.match((await finish(app, mfa_token, passkey)).json(), { status: 403, code: 'provider_required', provider })
    t.strictSame(await allRows(app.database, 'select from passkeys where user_id = $1', [id]), [])
  })
})
