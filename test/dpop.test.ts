import t from 'tap'
import { maxProofUses } from '../plugins/auth/proof-uses.ts'
import { rememberedKeys } from '../plugins/auth/proofs.ts'
import { nonceRenewalSeconds, nonceSeconds } from '../src/auth/dpop/nonces.ts'
import { maxIdLength, proofAlgorithm } from '../src/auth/dpop/proofs.ts'
import { createDevice, createProofKey } from './dpop.ts'
import { createTenant, password, post, readText, send, startApp, type Tokens } from './harness.ts'
import { bearer, me } from './requests.ts'
import { sessions } from './session-requests.ts'
import { decode } from './tokens.ts'

/*
 * Sessions that are bound to a key of the client (DPoP, RFC 9449), as an honest client sees them.
 */

t.test('a session that was opened with a proof', async (t) => {
  const app = await startApp(t)
  const acme = await createTenant(app, 'acme')
  const phone = createDevice(app)
  const reply = await phone.send(acme.host, post('/auth/login', { email: acme.owner.email, password }))
  t.equal(reply.statusCode, 200, reply.body)
  const tokens: Tokens = reply.json()

  t.test('says so in its tokens, and is listed as bound', async (t) => {
    t.equal(tokens.token_type, 'DPoP')
    t.match(decode(tokens.access_token).claims, { cnf: { jkt: phone.key.thumbprint } })
    const listed = await phone.send(acme.host, sessions, tokens)
    t.equal(listed.statusCode, 200, listed.body)
    t.match(listed.json().data, [
      { bound: true, current: true },
      { bound: false, current: false }
    ])
  })
  t.test('is of use with proofs only', async (t) => {
    t.equal((await phone.send(acme.host, me, tokens)).statusCode, 200)
    t.equal(
      (await phone.send(acme.host, `${sessions}?limit=1`, tokens)).statusCode,
      200,
      'the query is no part of the address'
    )
    t.equal((await phone.send(acme.host, '/api/users/me', tokens)).statusCode, 200, 'an alias, by its own address')
    t.equal((await phone.send(acme.host, { method: 'HEAD', url: me }, tokens)).statusCode, 200)
    t.equal((await phone.send('localhost', me, tokens)).statusCode, 200, 'on the general host')
    const alone = await send(app, acme.host, { url: me, headers: bearer(tokens.access_token) })
    t.match(alone.json(), { status: 401, code: 'invalid_token' })
    t.match(alone.headers['www-authenticate'], /^DPoP .*error="invalid_token".*algs="ES256"$/)
    const unproven = await send(app, acme.host, { url: me, headers: { authorization: `DPoP ${tokens.access_token}` } })
    t.match(unproven.json(), { status: 401, code: 'invalid_dpop_proof' })
    t.match(unproven.headers['www-authenticate'], /^DPoP .*error="invalid_dpop_proof", algs="ES256"$/)
  })
  t.test('needs one more request for its first nonce, and no other', async (t) => {
    t.equal(phone.repeats, 1)
    const other = createDevice(app, phone.key)
    const headers = other.headers('GET', `http://${acme.host}${me}`, tokens)
    const asked = await send(app, acme.host, { url: me, headers })
    t.match(asked.json(), { status: 401, code: 'use_dpop_nonce' })
    t.match(asked.headers['www-authenticate'], /^DPoP .*error="use_dpop_nonce", algs="ES256"$/)
    t.type(asked.headers['dpop-nonce'], 'string')
  })
  t.test('is renewed with the same key, and switches with it', async (t) => {
    const again = await phone.send(acme.host, post('/auth/refresh', { refresh_token: tokens.refresh_token }))
    t.match(again.json(), { token_type: 'DPoP' })
    const renewed: Tokens = again.json()
    t.equal((await phone.send(acme.host, me, renewed)).statusCode, 200)

    const founded = await phone.send('localhost', post('/tenants', { name: 'Second', slug: 'second' }), renewed)
    t.equal(founded.statusCode, 201, founded.body)
    const switched = await phone.send('localhost', post('/auth/switch', { tenant: 'second' }), renewed)
    t.match(switched.json(), { token_type: 'DPoP' })
    t.match(decode(switched.json().access_token).claims, { cnf: { jkt: phone.key.thumbprint } })

    const out = await phone.send(acme.host, post('/auth/logout', undefined), renewed)
    t.equal(out.statusCode, 204, out.body)
    t.match((await phone.send(acme.host, me, renewed)).json(), { status: 401, code: 'session_revoked' })
  })
})

t.test('a session without a key stays as it is', async (t) => {
  const app = await startApp(t)
  const acme = await createTenant(app, 'acme')
  const phone = createDevice(app)
  const { access_token, refresh_token } = acme.owner.tokens
  const asked = await send(app, acme.host, { url: me, headers: { ...bearer(access_token), dpop: 'nonsense' } })
  t.equal(asked.statusCode, 200, 'a proof that nobody needs is not looked at')
  const proven = await phone.send(acme.host, me, acme.owner.tokens)
  t.match(proven.json(), { status: 401, code: 'invalid_token' })
  t.match(proven.headers['www-authenticate'], /^Bearer .*error="invalid_token"/)
  const renewed = await phone.send(acme.host, post('/auth/refresh', { refresh_token }))
  t.match(renewed.json(), { token_type: 'Bearer' })
  t.notHas(decode(renewed.json().access_token).claims, 'cnf')
  const switched = await phone.send(
    acme.host,
    post('/auth/switch', { tenant: 'acme' }, bearer(renewed.json().access_token))
  )
  t.match(switched.json(), { token_type: 'DPoP' }, 'but it may open one with a key')
})

t.test('a nonce that gets old is replaced in time', async (t) => {
  const app = await startApp(t)
  const acme = await createTenant(app, 'acme')
  const phone = createDevice(app, createProofKey())
  const login = await phone.send(acme.host, post('/auth/login', { email: acme.owner.email, password }))
  const tokens: Tokens = login.json()
  const first = phone.nonce
  t.equal((await phone.send(acme.host, me, tokens)).headers['dpop-nonce'], undefined, 'the nonce is new')

  const now = Date.now
  t.teardown(() => {
    Date.now = now
  })
  Date.now = () => now() + (nonceSeconds / 2) * 1000
  t.equal((await phone.send(acme.host, me, tokens)).statusCode, 200)
  t.not(phone.nonce, first, 'a newer one comes with the reply')
  t.equal(phone.repeats, 1)
  Date.now = () => now() + nonceSeconds * 1500 + 1000
  t.equal((await phone.send(acme.host, me, tokens)).statusCode, 200)
  t.equal(phone.repeats, 2, 'after a pause the client is asked')
})

t.test('the page about it says what the server does', async (t) => {
  const page = readText('docs/dpop.md').replaceAll(/\s+/g, ' ')
  t.match(
    page,
    `It is good for ${nonceSeconds} seconds; after ${nonceRenewalSeconds} seconds a reply brings the next one`
  )
  t.match(page, `up to ${maxProofUses.toLocaleString('en')}`)
  t.match(page, `random, up to ${maxIdLength} characters`)
  t.match(page, `\`dpop+jwt\`, \`${proofAlgorithm}\``)
  t.match(page, `the ${rememberedKeys.toLocaleString('en')} keys used last`)
})
