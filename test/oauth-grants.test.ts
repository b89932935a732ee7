import t, { type Test } from 'tap'
import { complete, enroll, forgetUsedCodes } from './factors.ts'
import { asProvider, startGithub } from './github.ts'
import { allRows, createTenant, eventually, post, type Reply, send, startApp, type Tenant } from './harness.ts'
import { verifyAll } from './mailed-links.ts'
import {
  clientId,
  clientSecret,
  createBrowser,
  createVerifier,
  exchange,
  linkAt,
  page,
  signInAt,
  startScriptedProvider,
  startUrl
} from './providers.ts'
import { bearer, me } from './requests.ts'
import { refresh } from './session-requests.ts'
import { sidOf } from './tokens.ts'

/*
 * What the doors of OAuth give, and to whom: RFC 9700 and chapter 10 of ASVS 5.0, for the points that no other test shows.
 * docs/oauth-requirements.md has all of them.
 */

async function start(t: Test) {
  const [google, github] = await Promise.all([startScriptedProvider(t), startGithub(t)])
  const app = await startApp(t, {
    ...{ GOOGLE_CLIENT_ID: clientId, GOOGLE_CLIENT_SECRET: clientSecret, GOOGLE_ISSUER: google.issuer },
    ...{ GITHUB_CLIENT_ID: clientId, GITHUB_CLIENT_SECRET: clientSecret, GITHUB_URL: github.url },
    CORS_ORIGINS: 'https://desk.example'
  })
  const acme = await createTenant(app, 'acme')
  await verifyAll(app)
  const provider = { key: 'google', at: google }
  const ada = { sub: 'ada' }
  const linked = await linkAt(app, provider, acme, ada)
  if (linked.statusCode !== 201) throw new Error(linked.body)
  /** A new code of the owner, and its verifier. */
  const codeOf = async ({ slug }: Tenant = acme) => {
    const { code, code_verifier } = await signInAt(app, provider, slug, ada)
    return { code: code as string, code_verifier }
  }
  return { app, acme, google, github, provider, ada, codeOf }
}

const refused = { status: 401, code: 'invalid_sign_in_code' }

t.test('a sign-in code that is used twice', async (t) => {
  const { app, acme, codeOf } = await start(t)
  const redeem = ({ code, code_verifier }: { code: string; code_verifier: string }) =>
    exchange(app, code, code_verifier)
  const replays = async (sid: string) =>
    (
      await allRows(
        app.database,
        "select actor_id from audit_events where action = 'session.code_reused' and session_id = $1",
        [sid]
      )
    ).map(({ actor_id }) => actor_id)

  await t.test('ends the session that its first use has opened, and no other one', async (t) => {
    const code = await codeOf()
    const tokens = (await redeem(code)).json()
    t.equal((await acme.with(tokens.access_token, me)).statusCode, 200)
    t.match((await redeem(code)).json(), refused)
    t.match((await acme.with(tokens.access_token, me)).json(), { status: 401, code: 'session_revoked' })
    t.match((await refresh(app, tokens.refresh_token)).json(), { status: 401, code: 'session_revoked' })
    t.strictSame(await replays(sidOf(tokens)), [acme.owner.id])
    t.match((await redeem(code)).json(), refused, 'a third time')
    t.strictSame(await replays(sidOf(tokens)), [acme.owner.id], 'is no other end')
    t.equal((await acme.send(me)).statusCode, 200, 'the session of the password goes on')
  })

  await t.test('ends nothing without the verifier, so that a thief of the code can sign nobody out', async (t) => {
    const code = await codeOf()
    const tokens = (await redeem(code)).json()
    t.match((await redeem({ ...code, code_verifier: createVerifier().code_verifier })).json(), refused)
    t.equal((await acme.with(tokens.access_token, me)).statusCode, 200)
  })

  await t.test('leaves one session or none, when it is used many times at once', async (t) => {
    const code = await codeOf()
    const replies = await Promise.all(Array.from({ length: 20 }, () => redeem(code)))
    t.strictSame(replies.map(({ statusCode }) => statusCode).sort(), [200, ...Array(19).fill(401)])
    const tokens = replies.find(({ statusCode }) => statusCode === 200)?.json()
    t.match((await acme.with(tokens.access_token, me)).json(), { code: 'session_revoked' })
  })

  await t.test('ends the session that a second factor has completed, or keeps it from being opened', async (t) => {
    const authenticator = await enroll(app, acme)
    const first = await codeOf()
    const { mfa_token } = (await redeem(first)).json()
    const tokens = (await complete(app, mfa_token, authenticator.code())).json()
    t.equal((await acme.with(tokens.access_token, me)).statusCode, 200)
    t.match((await redeem(first)).json(), refused)
    t.match((await acme.with(tokens.access_token, me)).json(), { code: 'session_revoked' })

    await forgetUsedCodes(app, acme.owner.id)
    const second = await codeOf()
    const waiting = (await redeem(second)).json()
    t.match((await redeem(second)).json(), refused)
    const late = await complete(app, waiting.mfa_token, authenticator.code())
    t.match(late.json(), { status: 401, code: 'invalid_mfa_token' })
  })
})

t.test('the doors of OAuth', async (t) => {
  const { app, acme, google, github, provider, ada, codeOf } = await start(t)
  const { code_challenge } = createVerifier()
  const begin = (more: object = {}, key = 'google') =>
    send(
      app,
      'localhost',
      `${startUrl(key, 'acme', code_challenge)}&${new URLSearchParams(more as Record<string, string>)}`
    )
  const token = (payload: object) => send(app, 'localhost', post('/auth/oauth/token', payload))
  const unknown = { status: 400, code: 'validation_failed' }

  await t.test('know no other grant than the code', async (t) => {
    for (const [grant_type, more] of Object.entries({
      password: { username: acme.owner.email, password: 'x' },
      client_credentials: { client_id: clientId, client_secret: clientSecret },
      refresh_token: { refresh_token: acme.owner.tokens.refresh_token },
      'urn:ietf:params:oauth:grant-type:token-exchange': { subject_token: acme.owner.tokens.access_token },
      'urn:ietf:params:oauth:grant-type:device_code': { device_code: 'x' }
    })) {
      t.match((await token({ grant_type, ...more })).json(), unknown, grant_type)
      t.match((await token({ grant_type, ...more, ...(await codeOf()) })).json(), unknown, `${grant_type}, with a code`)
    }
    const form = { 'content-type': 'application/x-www-form-urlencoded' }
    const asForm = {
      method: 'POST',
      url: '/api/v1/auth/oauth/token',
      headers: form,
      payload: 'grant_type=password'
    } as const
    t.equal((await send(app, 'localhost', asForm)).statusCode, 415)
  })

  await t.test('are asked for a code in the query, and nothing else', async (t) => {
    for (const more of [
      { response_type: 'token' },
      { response_type: 'code id_token' },
      { response_mode: 'fragment' },
      { response_mode: 'form_post' },
      { response_mode: 'web_message' },
      { prompt: 'none' },
      { scope: 'openid admin' },
      { request: 'eyJhbGciOiJub25lIn0.e30.' },
      { request_uri: 'https://evil.example/request' },
      { nonce: 'x' },
      { state: 'x' },
      { code_challenge_method: 'plain' },
      { client_id: 'x' }
    ]) {
      t.match((await begin(more)).json(), unknown, JSON.stringify(more))
    }
    t.equal((await begin()).statusCode, 302)
  })

  await t.test('ask a provider for a code, with the scopes that are needed and no others', async (t) => {
    for (const [key, scope] of [
      ['google', 'openid email profile'],
      ['github', 'read:user user:email']
    ] as const) {
      const asked = new URL(String((await begin({}, key)).headers.location)).searchParams
      t.match(Object.fromEntries(asked), { response_type: 'code', scope, code_challenge_method: 'S256' })
      t.notOk(
        asked.has('response_mode') || asked.has('prompt') || asked.has('client_secret') || asked.has('code_verifier')
      )
    }
  })

  await t.test('begin each flow with other secrets, of 256 bits', async (t) => {
    const seen = new Set<string>()
    for (let i = 0; i < 20; i++) {
      const asked = new URL(String((await begin()).headers.location)).searchParams
      for (const name of ['state', 'nonce', 'code_challenge']) {
        const value = asked.get(name) ?? ''
        t.ok(Buffer.from(value, 'base64url').length >= 32, name)
        seen.add(value)
      }
    }
    t.equal(seen.size, 60)
  })

  await t.test('give codes and errors in the query of the page, and never a token', async (t) => {
    const done = await signInAt(app, provider, 'acme', ada)
    const failed = await signInAt(app, provider, 'acme', { sub: 'a stranger' })
    for (const { reply } of [done, failed]) {
      const url = new URL(String(reply.headers.location))
      t.equal(url.hash, '')
      t.strictSame([...url.searchParams.keys()], [url.searchParams.has('code') ? 'code' : 'error'])
      t.equal(reply.body, '')
      t.notMatch(url.href, /token|eyJ/)
    }
    const tokens = await exchange(app, done.code, done.code_verifier)
    t.notMatch(tokens.body, 'an access token', 'what the provider gave stays here')
    t.equal(tokens.headers['cache-control'], 'no-store')
  })

  /** The replies of all doors that a browser goes to as to a page. */
  async function pages(headers: Record<string, string> = {}): Promise<Record<string, Reply>> {
    const location = String((await begin()).headers.location)
    const at = (url: string, more: object = {}) =>
      app.inject({ url, headers: { host: 'localhost', ...headers, ...more } })
    const payload = { provider: 'google', redirect_to: page('acme'), code_challenge }
    const { url } = (await acme.send(post('/users/me/identities', payload))).json()
    const browser = createBrowser(app)
    const started = await browser.get(startUrl('google', 'acme', code_challenge))
    const back = new URL(google.authorize(String(started.headers.location), ada))
    const cookie = [...browser.cookies].map(([name, value]) => `${name}=${value}`).join('; ')
    const evil = startUrl('google', 'acme', code_challenge, 'https://evil.example/')
    return {
      begin: await at(startUrl('google', 'acme', code_challenge)),
      link: await at(new URL(url).pathname + new URL(url).search),
      'come back': await at(back.pathname + back.search, { cookie }),
      'come back without a flow': await at(
        new URL(google.authorize(location, ada)).href.replace(/^https?:\/\/[^/]+/, '')
      ),
      'an address that is not allowed': await at(evil)
    }
  }

  await t.test('redirect by 302, which repeats no body, and only a GET', async (t) => {
    for (const [title, reply] of Object.entries(await pages())) {
      t.ok([302, 400].includes(reply.statusCode), `${title}: ${reply.statusCode}`)
      t.equal(reply.statusCode === 302, reply.headers.location !== undefined)
    }
    for (const path of ['google', 'google/link', 'google/callback']) {
      const reply = await send(app, 'localhost', post(`/auth/oauth/${path}`, {}))
      t.equal(reply.statusCode, 405, path)
    }
  })

  await t.test('are in no frame, no cache and no Referer', async (t) => {
    for (const [title, { headers }] of Object.entries(await pages())) {
      t.equal(headers['referrer-policy'], 'no-referrer', title)
      t.equal(headers['cache-control'], 'no-store', title)
      t.match(headers['content-security-policy'], "frame-ancestors 'none'", title)
      t.equal(headers['x-content-type-options'], 'nosniff', title)
    }
  })

  await t.test('are read by no script of a page, but for the exchange of a code', async (t) => {
    const origin = 'https://desk.example'
    for (const [title, { headers }] of Object.entries(await pages({ origin }))) {
      t.equal(headers['access-control-allow-origin'], undefined, title)
    }
    const { code, code_verifier } = await codeOf()
    const request = post('/auth/oauth/token', { code, code_verifier }, { origin })
    const exchanged = await send(app, 'localhost', request)
    t.equal(exchanged.statusCode, 200)
    t.equal(exchanged.headers['access-control-allow-origin'], origin)
    t.equal(exchanged.headers['access-control-allow-credentials'], undefined)
  })

  await t.test('take no access token in the query or in a body', async (t) => {
    const { access_token } = acme.owner.tokens
    t.equal((await acme.anonymous(`${me}?access_token=${access_token}`)).json().status >= 400, true)
    const inBody = { method: 'PATCH', url: me, payload: { access_token } } as const
    t.match((await acme.anonymous(inBody)).json(), { status: 401, code: 'unauthenticated' })
  })

  await t.test('register no clients, publish no keys and log nobody out for a provider', async (t) => {
    for (const path of ['register', 'par', 'authorize', 'introspect', 'device', 'backchannel-logout', 'logout']) {
      const reply = await send(app, 'localhost', post(`/auth/oauth/${path}`, { logout_token: 'x' }))
      t.ok([404, 405].includes(reply.statusCode), `${path}: ${reply.statusCode}`)
    }
    t.equal((await send(app, 'localhost', '/.well-known/openid-configuration')).statusCode, 404)
    // API keys get tokens there, and that is all
    const metadata = (await send(app, 'localhost', '/.well-known/oauth-authorization-server')).json()
    t.strictSame(
      Object.keys(metadata).filter((name) => name.endsWith('_endpoint') || name === 'jwks_uri'),
      ['token_endpoint']
    )
    t.strictSame([metadata.grant_types_supported, metadata.response_types_supported], [['client_credentials'], []])
  })

  await t.test('take what a provider says about a person from that person only', async (t) => {
    // the address comes from userinfo, for somebody else than the id_token is about
    google.script.metadata = { userinfo_endpoint: `${google.url}/userinfo` }
    google.script.answer = (path, response) => {
      if (path !== '/userinfo') return false
      const claims = { sub: 'somebody else', email: acme.owner.email, email_verified: true }
      response.writeHead(200, { 'content-type': 'application/json' }).end(JSON.stringify(claims))
      return true
    }
    const other = await startApp(
      t,
      { GOOGLE_CLIENT_ID: clientId, GOOGLE_CLIENT_SECRET: clientSecret, GOOGLE_ISSUER: google.issuer },
      app.database
    )
    t.equal((await signInAt(other, provider, 'acme', { sub: 'ada' })).error, 'provider_error')
    google.script.metadata = {}
    delete google.script.answer
  })

  await t.test('send the verifier and the secret to the token endpoint of the flow’s provider only', async (t) => {
    const before = google.requests.length
    const { code } = await signInAt(app, asProvider(github), 'acme', ada)
    t.equal(code, undefined)
    t.equal(google.requests.length, before, 'a sign-in at one provider asks nothing of another')
  })
})

t.test('a session of a person is ended by that person', async (t) => {
  const { app, acme, codeOf } = await start(t)
  const { code, code_verifier } = await codeOf()
  const tokens = (await exchange(app, code, code_verifier)).json()
  const removal = { method: 'DELETE', url: `/api/v1/users/me/sessions/${sidOf(tokens)}` } as const
  t.equal((await acme.send(removal)).statusCode, 204)
  const reply = async () => send(app, acme.host, { url: me, headers: bearer(tokens.access_token) })
  await eventually(async () => (await reply()).statusCode === 401, 2000)
  t.match((await refresh(app, tokens.refresh_token)).json(), { status: 401, code: 'session_revoked' })
})
