import type { InjectOptions } from 'fastify'
import t, { type Test } from 'tap'
import { createDevice as createClient, type Device } from './dpop.ts'
import { createAuthenticator, demandFactor, enroll, forgetUsedCodes, totp } from './factors.ts'
import {
  addMember,
  allRows,
  createTenant,
  password,
  post,
  type Reply,
  send,
  startApp,
  type Tenant,
  type Tokens
} from './harness.ts'
import { verifyAll } from './mailed-links.ts'
import { createDevice, originOf, register, sharedRpId } from './passkey-device.ts'
import { clientId, clientSecret, linkAt, signInAt, startScriptedProvider } from './providers.ts'
import { me } from './requests.ts'
import { decode } from './tokens.ts'

/*
 * Every operation that opens a session or renews one binds it to the key of the request (DPoP, RFC 9449), and a sign-in in
 * several steps keeps the key of the first.
 */

t.test('a session is bound, whichever door it was opened by', async (t) => {
  const google = await startScriptedProvider(t)
  const env = { GOOGLE_CLIENT_ID: clientId, GOOGLE_CLIENT_SECRET: clientSecret, GOOGLE_ISSUER: google.issuer }
  const app = await startApp(t, { ...sharedRpId, ...env, RATE_LIMIT_AUTH: '1000/1m' })
  const acme = await createTenant(app, 'acme')
  const strict = await createTenant(app, 'strict')
  await verifyAll(app)
  await demandFactor(app, strict.id)
  let count = 0

  const newcomer = async (): Promise<Tenant> => {
    const person = await createTenant(app, `person${++count}`)
    await addMember(app, acme, person.owner.id, 'member')
    return person
  }
  const signIn = (phone: Device, { owner }: Tenant, host = acme.host) =>
    phone.send(host, post('/auth/login', { email: owner.email, password }))
  /** Gives the right password to the agency that demands a factor. */
  async function arrive(phone: Device): Promise<{ person: Tenant; mfa_token: string }> {
    const person = await newcomer()
    await addMember(app, strict, person.owner.id, 'member')
    return { person, mfa_token: (await signIn(phone, person, strict.host)).json().mfa_token }
  }
  async function withFactor(phone: Device) {
    const person = await newcomer()
    const { code } = await enroll(app, person)
    await forgetUsedCodes(app, person.owner.id)
    const { mfa_token } = (await signIn(phone, person)).json()
    return { mfa_token: mfa_token as string, code: code() }
  }
  async function invite(email: string): Promise<string> {
    const { id } = (await acme.send(post('/invitations', { email, role: 'member' }))).json()
    return app.oneTimeTokens.issue('invitation', { tenant_id: acme.id, id, generation: 1 })
  }

  /** Opens or renews a session by one operation. Each resolves to its reply. */
  const doors: Record<string, (phone: Device) => Promise<Reply>> = {
    register: (phone) => {
      const tenant = { name: 'New', slug: `new${++count}` }
      const email = `ada@new${count}.example`
      return phone.send('localhost', post('/auth/register', { tenant, name: 'Ada', email, password }))
    },
    login: async (phone) => signIn(phone, await newcomer()),
    refresh: async (phone) => {
      const { refresh_token }: Tokens = (await signIn(phone, acme)).json()
      return phone.send(acme.host, post('/auth/refresh', { refresh_token }))
    },
    switchTenant: async (phone) => {
      const person = await newcomer()
      const tokens: Tokens = (await signIn(phone, person)).json()
      return phone.send('localhost', post('/auth/switch', { tenant: person.slug }), tokens)
    },
    signInWithPasskey: async (phone) => {
      const person = await newcomer()
      const { device } = await register(person)
      const options = (await person.anonymous(post('/auth/passkeys/options', undefined))).json()
      return phone.send(person.host, post('/auth/passkeys', { passkey: device.get(options) }))
    },
    completeSignIn: async (phone) => phone.send(acme.host, post('/auth/mfa', await withFactor(phone))),
    completeSignInWithNewPasskey: async (phone) => {
      const { mfa_token } = await arrive(phone)
      const options = (await phone.send(strict.host, post('/auth/mfa/passkeys/options', { mfa_token }))).json()
      const passkey = createDevice(originOf(strict)).create(options)
      return phone.send(strict.host, post('/auth/mfa/passkeys', { mfa_token, name: 'A phone', passkey }))
    },
    exchangeSignInCode: async (phone) => {
      const account = { sub: `google ${++count}` }
      await linkAt(app, { key: 'google', at: google }, await newcomer(), account)
      const { code, code_verifier } = await signInAt(app, { key: 'google', at: google }, 'acme', account)
      return phone.send(acme.host, post('/auth/oauth/token', { code, code_verifier }))
    },
    acceptInvitation: async (phone) => {
      const email = `invited${++count}@acme.example`
      const body = { token: await invite(email), name: 'Grace', password: 'another correct horse' }
      return phone.send(acme.host, post('/invitations/accept', body))
    }
  }

  /** Other ways through the same operations. */
  const variants: typeof doors = {
    'a second factor that is set up in the middle of the sign-in': async (phone) => {
      const { mfa_token } = await arrive(phone)
      const { secret } = (await phone.send(strict.host, post('/auth/mfa/totp', { mfa_token }))).json()
      return phone.send(strict.host, post('/auth/mfa', { mfa_token, code: createAuthenticator(secret).code() }))
    },
    'an invitation that a signed-in person accepts': async (phone) => {
      const person = await createTenant(app, `guest${++count}`)
      const tokens: Tokens = (await signIn(phone, person, person.host)).json()
      return phone.send('localhost', post('/invitations/accept', { token: await invite(person.owner.email) }), tokens)
    },
    'an invitation through a provider': async (phone) => {
      const email = `grace${++count}@gmail.example`
      const account = { sub: email, email, email_verified: true, name: 'Grace' }
      const at = { key: 'google', at: google }
      const { code, code_verifier } = await signInAt(app, at, 'acme', account, undefined, await invite(email))
      return phone.send(acme.host, post('/auth/oauth/token', { code, code_verifier }))
    },
    'a refresh at an alias': async (phone) => {
      const { refresh_token }: Tokens = (await signIn(phone, acme)).json()
      return phone.send(acme.host, { method: 'POST', url: '/api/auth/refresh', payload: { refresh_token } })
    }
  }

  t.test('and the doors are those of the OpenAPI document', async (t) => {
    const document = (await send(app, 'localhost', '/api/v1/openapi.json')).json()
    const tokenSchemas = Object.entries<{ properties?: object }>(document.components.schemas)
      // the token of an API key comes without one, and opens no session
      .filter(([, { properties }]) => properties && 'refresh_token' in properties && 'token_type' in properties)
      .map(([name]) => `#/components/schemas/${name}`)
    t.strictSame(tokenSchemas.length, 3)
    type Operation = { operationId: string; responses: object; parameters?: { name: string; in: string }[] }
    const operations = Object.values<Record<string, Operation>>(document.paths).flatMap((path) => Object.values(path))
    const opening = operations.filter(({ responses }) => {
      const { 200: ok, 201: created } = responses as Record<string, unknown>
      return tokenSchemas.some((name) => JSON.stringify([ok, created]).includes(name))
    })
    t.strictSame(opening.map(({ operationId }) => operationId).sort(), Object.keys(doors).sort())
    for (const { operationId, parameters = [] } of opening) {
      t.ok(
        parameters.some(({ name, in: place }) => name === 'dpop' && place === 'header'),
        `${operationId} documents the proof`
      )
    }
  })

  for (const [name, open] of Object.entries({ ...doors, ...variants })) {
    t.test(name, async (t) => {
      const phone = createClient(app)
      const reply = await open(phone)
      t.match(reply.statusCode, /^20[01]$/, reply.body)
      const tokens: Tokens = reply.json()
      t.equal(tokens.token_type, 'DPoP')
      t.match(decode(tokens.access_token).claims, { cnf: { jkt: phone.key.thumbprint } })
      t.equal((await phone.send('localhost', me, tokens)).statusCode, 200)
      const alone = await send(app, 'localhost', {
        url: me,
        headers: { authorization: `Bearer ${tokens.access_token}` }
      })
      t.match(alone.json(), { status: 401, code: 'invalid_token' })
      const { refresh_token } = tokens
      const renewed = await send(app, 'localhost', post('/auth/refresh', { refresh_token }))
      t.match(renewed.json(), { status: 401, code: 'invalid_dpop_proof' })
    })
  }

  t.test('a proof that is wrong opens nothing', async (t) => {
    const sessions = () => allRows(app.database, 'select count(*)::int as n from sessions')
    const before = await sessions()
    for (const dpop of ['nonsense', '']) {
      const login = post('/auth/login', { email: acme.owner.email, password }, { dpop })
      t.match((await send(app, acme.host, login)).json(), { status: 401, code: 'invalid_dpop_proof' })
    }
    t.strictSame(await sessions(), before)
  })

  t.test('whoever steals the token of a sign-in in several steps', async (t) => {
    const phone = createClient(app)
    const thief = createClient(app)
    const refused = { status: 401, code: 'invalid_dpop_proof' }
    const both = async (t: Test, host: string, request: InjectOptions) => {
      t.match((await send(app, host, request)).json(), refused, 'without a key')
      t.match((await thief.send(host, request)).json(), refused, 'with another key')
    }
    await t.test('can not complete it without the key of the first step', async (t) => {
      const { mfa_token, code } = await withFactor(phone)
      await both(t, acme.host, post('/auth/mfa', { mfa_token, code }))
      const completed = await phone.send(acme.host, post('/auth/mfa', { mfa_token, code }))
      t.match(completed.json(), { token_type: 'DPoP' }, 'and has used up no code')
    })
    await t.test('can not set up a factor', async (t) => {
      const { mfa_token } = await arrive(phone)
      await both(t, strict.host, post('/auth/mfa/totp', { mfa_token }))
      await both(t, strict.host, post('/auth/mfa/passkeys/options', { mfa_token }))
      await both(t, strict.host, post('/auth/mfa/passkeys', { mfa_token, name: 'A phone', passkey: emptyPasskey }))
    })
    await t.test('can not ask for a passkey', async (t) => {
      const person = await newcomer()
      await register(person)
      const { mfa_token } = (await signIn(phone, person)).json()
      await both(t, acme.host, post('/auth/mfa/passkey/options', { mfa_token }))
    })
  })

  t.test('a sign-in that began without a key may end with one', async (t) => {
    const person = await newcomer()
    const { code } = await enroll(app, person)
    await forgetUsedCodes(app, person.owner.id)
    const begun = await send(app, acme.host, post('/auth/login', { email: person.owner.email, password }))
    const { mfa_token } = begun.json()
    const phone = createClient(app)
    t.match((await phone.send(acme.host, post('/auth/mfa', { mfa_token, code: code() }))).json(), {
      token_type: 'DPoP'
    })
  })

  t.test('dangerous operations ask for a proof of the last minutes as in any session', async (t) => {
    const phone = createClient(app)
    const person = await newcomer()
    const tokens: Tokens = (await signIn(phone, person, person.host)).json()
    await allRows(app.database, "update sessions set authenticated_at = now() - interval '6 minutes'")
    const start = { method: 'POST', url: totp } as const
    t.match((await phone.send(person.host, start, tokens)).json(), { code: 'reauthentication_required' })
    const proved = await phone.send(person.host, post('/auth/reauthenticate', { password }), tokens)
    t.equal(proved.statusCode, 204, proved.body)
    t.equal((await phone.send(person.host, start, tokens)).statusCode, 200)
  })
})

const emptyPasskey = {
  ...{ id: 'AAAA', rawId: 'AAAA', type: 'public-key', clientExtensionResults: {} },
  response: { clientDataJSON: 'AAAA', attestationObject: 'AAAA', transports: [] }
}
