import t from 'tap'
import { createDevice } from './dpop.ts'
import {
  createTenant,
  eventually,
  password,
  post,
  send,
  setStatus,
  startApp,
  type TestApp,
  type Tokens
} from './harness.ts'
import { me } from './requests.ts'

/*
 * Proofs of keys (DPoP, RFC 9449) beside what else may refuse a request: limits, and the suspension of an agency.
 */

const live = '/api/v1/health/live'

async function sampleOf(app: TestApp, name: string): Promise<number> {
  const family = (await app.metrics.collect()).find((each) => each.name === name)
  return (family?.samples ?? []).reduce((sum, { value }) => sum + value, 0)
}
/** The proofs that the process remembers. */
const remembered = (app: TestApp) => sampleOf(app, 'aggios_dpop_proofs')

async function signInOn(app: TestApp) {
  const acme = await createTenant(app, 'acme')
  const phone = createDevice(app)
  const login = () => phone.send(acme.host, post('/auth/login', { email: acme.owner.email, password }))
  const tokens: Tokens = (await login()).json()
  return { acme, phone, tokens, login }
}

t.test('whoever sends more than the limits allow', async (t) => {
  const app = await startApp(t, { RATE_LIMIT: '5/1m' })
  const { acme, phone, tokens } = await signInOn(app)
  const before = await remembered(app)
  const statuses: number[] = []
  for (let n = 0; n < 20; n++) statuses.push((await phone.send(acme.host, me, tokens)).statusCode)
  t.strictSame(
    statuses,
    Array.from({ length: 20 }, (_, n) => (n < 5 ? 200 : 429))
  )
  t.equal((await remembered(app)) - before, 5, 'fills no memory with proofs')
})

t.test('a route that anybody may call looks at no proof', async (t) => {
  const app = await startApp(t)
  const { acme, phone, tokens } = await signInOn(app)
  const before = await remembered(app)
  const checked = await sampleOf(app, 'aggios_dpop_proofs_total')
  const documented = '/api/v1/problems/not_found'
  for (const url of [live, documented, documented]) {
    t.equal((await phone.send(acme.host, url, tokens)).statusCode, 200, url)
  }
  t.equal(await remembered(app), before)
  t.equal(await sampleOf(app, 'aggios_dpop_proofs_total'), checked)
})

t.test('whoever has stolen a token and a proof does not count for the person', async (t) => {
  const app = await startApp(t, { RATE_LIMIT: '5/1m' })
  const { acme, phone, tokens } = await signInOn(app)
  const headers = phone.headers('GET', `http://${acme.host}${me}`, tokens)
  t.equal((await send(app, acme.host, { url: me, headers })).statusCode, 200)
  for (let n = 0; n < 10; n++) {
    const thief = { remoteAddress: '192.0.2.9', url: me }
    const again = await send(app, acme.host, { ...thief, headers })
    t.match(again.json(), n < 5 ? { detail: 'the proof was used before' } : { code: 'rate_limited' })
    // nor at a route that needs no proof
    const { authorization = '' } = headers
    await send(app, acme.host, { ...thief, url: '/api/v1/problems/not_found', headers: { authorization } })
  }
  for (let n = 0; n < 4; n++) t.equal((await phone.send(acme.host, me, tokens)).statusCode, 200)
})

t.test("a bound session on a suspended agency's host", async (t) => {
  const app = await startApp(t)
  const { acme, phone, tokens, login } = await signInOn(app)
  const another: Tokens = (await login()).json()
  await setStatus(app, acme, 'suspended')
  const isSuspended = async () => (await phone.send(acme.host, me, tokens)).json().code === 'tenant_suspended'
  await eventually(isSuspended)
  const refresh = ({ refresh_token }: Tokens) => post('/auth/refresh', { refresh_token })
  const member = { status: 403, code: 'tenant_suspended' }
  const stranger = { status: 404, code: 'tenant_not_found' }

  await t.test('is told so like any other, and so asked for a nonce', async (t) => {
    phone.nonce = undefined
    t.match((await phone.send(acme.host, refresh(tokens))).json(), member)
    t.equal(phone.repeats, 2)
  })
  await t.test('can be ended, by either token', async (t) => {
    phone.nonce = undefined
    const { refresh_token } = tokens
    const out = await phone.send(acme.host, post('/auth/logout', { refresh_token }))
    t.equal(out.statusCode, 204, out.body)
    phone.nonce = undefined
    const byAccess = await phone.send(acme.host, post('/auth/logout', undefined), another)
    t.equal(byAccess.statusCode, 204, byAccess.body)
  })
  await t.test('says nothing to strangers, who get no nonce either', async (t) => {
    const stolen = { refresh_token: `${tokens.refresh_token.slice(0, -4)}AAAA` }
    const thief = createDevice(app)
    for (const path of ['/auth/refresh', '/auth/logout']) {
      const reply = await thief.send(acme.host, post(path, stolen))
      t.match(reply.json(), stranger)
      t.notHas(reply.headers, 'dpop-nonce')
    }
    const rival = createDevice(app)
    const rivals = await createTenant(app, 'rival')
    const theirs: Tokens = (
      await rival.send(rivals.host, post('/auth/login', { email: rivals.owner.email, password }))
    ).json()
    t.match((await rival.send(acme.host, refresh(theirs))).json(), stranger)
    t.match((await rival.send(acme.host, post('/auth/logout', undefined), theirs)).json(), stranger)
    t.match((await rival.send(acme.host, me, theirs)).json(), stranger)
  })
})
