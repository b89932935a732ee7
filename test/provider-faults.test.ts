import { createServer } from 'node:net'
import t from 'tap'
import { createOutboundFetch, isPublicAddress } from '../src/http/outbound-requests.ts'
import { asProvider, startGithub } from './github.ts'
import { allRows, createTenant, startApp } from './harness.ts'
import {
  clientId,
  clientSecret,
  createBrowser,
  createVerifier,
  exchange,
  linkAt,
  type ScriptedProvider,
  serve,
  signInAt,
  startScriptedProvider,
  startUrl
} from './providers.ts'

/** The scripted answer was given. */
const done = (_: unknown) => true

t.test('a provider that does not do its part', async (t) => {
  const google = await startScriptedProvider(t)
  const app = await startApp(t, {
    ...{ GOOGLE_CLIENT_ID: clientId, GOOGLE_CLIENT_SECRET: clientSecret, GOOGLE_ISSUER: google.issuer },
    LOG_LEVEL: 'info'
  })
  const acme = await createTenant(app, 'acme')
  const person = { sub: 'ada' }
  const provider = { key: 'google', at: google }
  t.equal((await linkAt(app, provider, acme, person)).statusCode, 201)
  let elsewhere = 0
  const other = await serve(t, (_, response) => {
    elsewhere++
    response.end('{}')
  })

  const faults: Record<string, NonNullable<ScriptedProvider['script']['answer']>> = {
    'answers 500': (_, response) => done(response.writeHead(500).end('a stack of the provider')),
    'answers with no JSON': (_, response) =>
      done(response.writeHead(200, { 'content-type': 'application/json' }).end('{"access_token": ')),
    'answers with a page': (_, response) =>
      done(response.writeHead(200, { 'content-type': 'text/html' }).end('<p>Hello')),
    'answers with another kind of JSON': (_, response) =>
      done(response.writeHead(200, { 'content-type': 'application/json' }).end('[null]')),
    'leads elsewhere': (_, response) => done(response.writeHead(307, { location: other }).end()),
    'closes the connection': (_, response) => done(response.destroy()),
    'refuses the code': (_, response) =>
      done(response.writeHead(400, { 'content-type': 'application/json' }).end('{"error": "invalid_grant"}')),
    'sends ten megabytes': (_, response) => {
      response.writeHead(200, { 'content-type': 'application/json' })
      response.on('error', () => {})
      response.end(`{"x": "${'x'.repeat(10 * 1024 * 1024)}"}`)
      return true
    }
  }
  for (const [title, answer] of Object.entries(faults)) {
    t.test(`a provider that ${title} signs nobody in`, async (t) => {
      google.script.answer = (path, response) => path === '/token' && answer(path, response)
      t.teardown(() => delete google.script.answer)
      t.equal((await signInAt(app, provider, 'acme', person)).error, 'provider_error')
    })
  }
  t.equal(elsewhere, 0, 'no redirect is followed')

  t.test('a provider that hangs is given up within ten seconds', async (t) => {
    google.script.answer = (path) => path === '/token'
    t.teardown(() => delete google.script.answer)
    const before = performance.now()
    t.equal((await signInAt(app, provider, 'acme', person)).error, 'provider_timeout')
    t.ok(performance.now() - before < 10_000)
  })

  t.test('a discovery that fails is a problem at the start, and is tried again', async (t) => {
    const closed = await startApp(
      t,
      {
        ...{ GOOGLE_CLIENT_ID: clientId, GOOGLE_CLIENT_SECRET: clientSecret, GOOGLE_ISSUER: google.issuer }
      },
      app.database
    )
    const start = () => createBrowser(closed).get(startUrl('google', 'acme', createVerifier().code_challenge))
    google.script.answer = (_, response) => done(response.writeHead(503).end())
    t.match((await start()).json(), { status: 502, code: 'provider_error' })
    google.script.metadata = { issuer: 'https://accounts.google.com' }
    delete google.script.answer
    t.match((await start()).json(), { status: 502, code: 'provider_error' }, 'another issuer')
    google.script.metadata = { id_token_signing_alg_values_supported: ['HS256', 'none'] }
    t.match((await start()).json(), { status: 502, code: 'provider_error' }, 'no signature that is accepted')
    google.script.metadata = {}
    t.equal((await start()).statusCode, 302)
  })

  t.test('a person who cancels comes back with a word for it', async (t) => {
    for (const [error, code] of [
      ['access_denied', 'sign_in_cancelled'],
      ['server_error', 'provider_error']
    ] as const) {
      const browser = createBrowser(app)
      const started = await browser.get(startUrl('google', 'acme', createVerifier().code_challenge))
      const asked = new URL(String(started.headers.location)).searchParams
      const back = new URL(String(asked.get('redirect_uri')))
      back.search = String(
        new URLSearchParams({ error, error_description: 'a text', state: String(asked.get('state')) })
      )
      const reply = await browser.get(back.href)
      t.equal(reply.headers.location, `http://acme.localhost:8080/signed-in?error=${code}`)
    }
  })

  t.test('a password still signs in, and no log line has what the provider has sent', async (t) => {
    t.ok((await acme.signIn()).access_token)
    t.ok(app.logLines.some((line) => line.includes('an identity provider gave no usable answer')))
    for (const text of ['a stack of the provider', clientSecret, 'an access token', 'invalid_grant"']) {
      t.notOk(
        app.logLines.some((line) => line.includes(text)),
        text
      )
    }
  })
})

t.test('sign-in at GitHub', async (t) => {
  const server = await startGithub(t)
  const { url, state } = server
  const app = await startApp(t, { GITHUB_CLIENT_ID: clientId, GITHUB_CLIENT_SECRET: clientSecret, GITHUB_URL: url })
  const acme = await createTenant(app, 'acme')
  const github = asProvider(server)
  const person = { sub: 'not used' }

  t.test('asks for the addresses, with PKCE', async (t) => {
    const started = await createBrowser(app).get(startUrl('github', 'acme', createVerifier().code_challenge))
    const asked = new URL(String(started.headers.location))
    t.match(asked.href, `${url}/login/oauth/authorize?`)
    t.match(Object.fromEntries(asked.searchParams), {
      scope: 'read:user user:email',
      code_challenge_method: 'S256'
    })
  })

  t.test('only a verified primary address says that there is an account', async (t) => {
    const primary = { email: acme.owner.email, primary: true, verified: true }
    for (const [list, error] of [
      [[primary], 'identity_not_linked'],
      [[{ ...primary, verified: false }], 'not_a_member'],
      [
        [
          { ...primary, primary: false },
          { ...primary, email: 'x@y.example' }
        ],
        'not_a_member'
      ],
      [[], 'not_a_member'],
      [{ message: 'x' }, 'not_a_member']
    ] as const) {
      state.emails = list
      t.equal((await signInAt(app, github, 'acme', person)).error, error)
    }
  })

  t.test('the number of the account is who it is, and not its login', async (t) => {
    t.match((await linkAt(app, github, acme, person)).json(), { provider: 'github' })
    state.account.login = 'renamed'
    const { code, code_verifier } = await signInAt(app, github, 'acme', person)
    t.equal((await exchange(app, code, code_verifier)).statusCode, 200)
    t.match(await allRows(app.database, 'select issuer, subject from user_identities'), [
      { issuer: url, subject: '583231' }
    ])
    state.account.id = 1
    t.equal((await signInAt(app, github, 'acme', person)).error, 'not_a_member', 'a new account with an old login')
    state.account.id = 583_231
  })

  t.test('a permission that was taken back, and a code that GitHub refuses, sign nobody in', async (t) => {
    state.revoked = true
    t.equal((await signInAt(app, github, 'acme', person)).error, 'provider_error')
    state.revoked = false
    const browser = createBrowser(app)
    const started = await browser.get(startUrl('github', 'acme', createVerifier().code_challenge))
    const back = server.authorize(String(started.headers.location))
    server.forgetCodes()
    t.match(String((await browser.get(back)).headers.location), /error=provider_error$/)
  })
})

t.test('requests to what a customer has configured', async (t) => {
  const outside = createOutboundFetch({ development: false })

  t.test('reach no network but the public one, however it is written', async (t) => {
    let connections = 0
    const server = createServer((socket) => {
      connections++
      socket.destroy()
    })
    await new Promise<void>((done) => server.listen(0, '127.0.0.1', done))
    t.teardown(() => server.close())
    const { port } = server.address() as { port: number }
    const hosts = [
      '127.0.0.1',
      'localhost',
      '2130706433',
      '0x7f.1',
      '017700000001',
      '[::1]',
      '[::ffff:127.0.0.1]',
      '0.0.0.0',
      '[::]'
    ]
    for (const host of [...hosts, '169.254.169.254', '10.0.0.1', '[fd00:ec2::254]', '[64:ff9b::7f00:1]']) {
      await t.rejects(outside(`https://${host}:${port}/`), { message: /(?:not|no) public/ }, host)
    }
    t.equal(connections, 0)

    const ours = createOutboundFetch({ development: false, privateNetworks: true })
    await t.rejects(ours(`https://127.0.0.1:${port}/`), { message: 'the request failed' })
    t.equal(connections, 1, 'but for a server of the settings')
    await t.rejects(ours(`http://127.0.0.1:${port}/`), { message: /only https/ })
  })

  t.test('go by https only, and carry no password of an address', async (t) => {
    for (const url of ['http://example.com/', 'file:///etc/passwd', 'https://user:secret@example.com/']) {
      await t.rejects(outside(url), { message: /only https|has a password/ }, url)
    }
  })

  t.test('know which addresses are public', async (t) => {
    for (const address of ['8.8.8.8', '1.1.1.1', '2606:4700::1111', '2001:4860:4860::8888'])
      t.ok(isPublicAddress(address), address)
    const others = [
      '100.64.0.1',
      '172.31.255.255',
      '192.168.1.1',
      '198.19.0.1',
      '224.0.0.1',
      '255.255.255.255',
      'fe80::1',
      'fc00::1'
    ]
    for (const address of [...others, '2002:7f00:1::', '2001:db8::1', '::ffff:8.8.8.8', 'ff02::1', 'no address']) {
      t.notOk(isPublicAddress(address), address)
    }
  })
})
