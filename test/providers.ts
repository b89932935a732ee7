import { createHash, createPublicKey, generateKeyPairSync, randomBytes, sign } from 'node:crypto'
import { createServer, type IncomingMessage, type ServerResponse } from 'node:http'
import type { AddressInfo } from 'node:net'
import { Provider } from 'oidc-provider'
import { type Owner, type Reply, send, type Tenant, type TestApp, type Tokens } from './harness.ts'
import { verifyAll } from './mailed-links.ts'

/*
 * Identity providers on this machine, and people with a browser and a client.
 */

export type Account = { sub: string; email?: string; email_verified?: boolean; name?: string; [claim: string]: unknown }

/** A server on a free port of this machine, closed when the test ends. */
export async function serve(
  t: Owner,
  handle: (request: IncomingMessage, response: ServerResponse) => unknown
): Promise<string> {
  const server = createServer((request, response) => void handle(request, response))
  await new Promise<void>((done) => server.listen(0, '127.0.0.1', done))
  t.teardown(() => {
    server.closeAllConnections()
    server.close()
  })
  return `http://127.0.0.1:${(server.address() as AddressInfo).port}`
}

export const clientId = 'aggios'
export const clientSecret = 'the secret of the client at the provider'

/**
 * A real OpenID provider (oidc-provider). It signs in whoever is in `person`, without asking. `redirects` are the
 * registered addresses. With an `issuer` of its own it stands behind a proxy.
 */
export async function startOpenIdProvider(t: Owner, redirects: string[], ownIssuer?: string) {
  const person: { account: Account } = { account: { sub: 'nobody' } }
  let provider: Provider | undefined
  const handle = async (request: IncomingMessage, response: ServerResponse) => {
    if (!provider) throw new Error('the provider is not ready')
    if (!request.url?.startsWith('/interaction/')) return provider.callback()(request, response)
    const login = { accountId: person.account.sub }
    await provider.interactionFinished(request, response, { login }, { mergeWithLastSubmission: false })
  }
  const url = await serve(t, handle)
  const issuer = ownIssuer ?? url
  const accounts = new Map<string, Account>()
  provider = new Provider(issuer, {
    clients: [{ client_id: clientId, client_secret: clientSecret, redirect_uris: redirects }],
    claims: { openid: ['sub'], email: ['email', 'email_verified'], profile: ['name'] },
    cookies: { keys: ['a key of the tests'] },
    features: { devInteractions: { enabled: false } },
    interactions: { url: (_, { uid }) => `/interaction/${uid}` },
    findAccount: (_, sub) => {
      const account = sub === person.account.sub ? person.account : (accounts.get(sub) ?? { sub })
      accounts.set(sub, account)
      return { accountId: sub, claims: () => account }
    },
    async loadExistingGrant(ctx) {
      const { client, session } = ctx.oidc
      const grant = new ctx.oidc.provider.Grant({
        ...(client && { clientId: client.clientId }),
        ...(session?.accountId && { accountId: session.accountId })
      })
      grant.addOIDCScope('openid email profile')
      await grant.save()
      return grant
    }
  })
  provider.proxy = ownIssuer !== undefined
  return {
    issuer,
    url,
    /** The next browser that comes is that of this person. */
    be(account: Account): void {
      person.account = account
    }
  }
}

const rsa = generateKeyPairSync('rsa', { modulusLength: 2048 })
const base64 = (value: unknown) => Buffer.from(JSON.stringify(value)).toString('base64url')

/** Signs a JWT as the scripted provider does. */
export function signToken(claims: object, header: object = { alg: 'RS256', kid: 'one' }, key = rsa.privateKey): string {
  const content = `${base64(header)}.${base64(claims)}`
  return `${content}.${sign('sha256', Buffer.from(content), key).toString('base64url')}`
}

export type Script = {
  /** Changes the claims of the next id_token, or makes the whole token. */
  token?: (claims: Record<string, unknown>) => Record<string, unknown> | string
  /** Answers a request instead of the provider. Undefined: the provider answers. */
  answer?: (path: string, response: ServerResponse) => boolean
  metadata?: Record<string, unknown>
}

/**
 * A provider that does what the test says. It asks nobody and has no page: `authorize` is what its page would do with
 * the address that a browser comes to.
 */
export async function startScriptedProvider(t: Owner, issuerOf: (url: string) => string = (url) => url) {
  const script: Script = {}
  const codes = new Map<string, { nonce: string; challenge: string; account: Account }>()
  const requests: string[] = []
  const handle = async (request: IncomingMessage, response: ServerResponse) => {
    const path = (request.url ?? '').split('?', 1)[0] as string
    requests.push(path)
    let body = ''
    for await (const chunk of request) body += chunk
    if (script.answer?.(path, response)) return
    const reply = (value: unknown, status = 200) => {
      response.writeHead(status, { 'content-type': 'application/json' }).end(JSON.stringify(value))
    }
    if (path.endsWith('/.well-known/openid-configuration')) {
      return reply({
        ...{ issuer, authorization_endpoint: `${url}/authorize`, token_endpoint: `${url}/token` },
        ...{ jwks_uri: `${url}/jwks`, response_types_supported: ['code'], subject_types_supported: ['public'] },
        ...{ id_token_signing_alg_values_supported: ['RS256', 'HS256', 'none'], ...script.metadata }
      })
    }
    if (path === '/jwks') {
      const jwk = createPublicKey(rsa.privateKey).export({ format: 'jwk' })
      return reply({ keys: [{ ...jwk, kid: 'one', use: 'sig', alg: 'RS256' }] })
    }
    if (path !== '/token') return reply({ error: 'not_found' }, 404)
    const form = new URLSearchParams(body)
    const code = codes.get(form.get('code') ?? '')
    codes.delete(form.get('code') ?? '')
    const hash = createHash('sha256')
      .update(form.get('code_verifier') ?? '')
      .digest('base64url')
    if (!code || code.challenge !== hash) return reply({ error: 'invalid_grant' }, 400)
    const now = Math.floor(Date.now() / 1000)
    const claims = { iss: issuer, aud: clientId, iat: now, exp: now + 300, nonce: code.nonce, ...code.account }
    const made = script.token?.(claims) ?? claims
    const id_token = typeof made === 'string' ? made : signToken(made)
    reply({ access_token: 'an access token', token_type: 'Bearer', expires_in: 300, id_token })
  }
  const url = await serve(t, handle)
  const issuer = issuerOf(url)
  return {
    issuer,
    url,
    script,
    requests,
    /** Lets the person in who comes to the address, and returns the one that the browser is sent back to. */
    authorize(location: string, account: Account): string {
      const asked = new URL(location).searchParams
      const code = randomBytes(16).toString('base64url')
      codes.set(code, { nonce: asked.get('nonce') ?? '', challenge: asked.get('code_challenge') ?? '', account })
      const back = new URL(asked.get('redirect_uri') ?? '')
      back.searchParams.set('code', code)
      back.searchParams.set('state', asked.get('state') ?? '')
      return back.href
    }
  }
}
export type ScriptedProvider = Awaited<ReturnType<typeof startScriptedProvider>>

/** PKCE of a client. */
export function createVerifier() {
  const code_verifier = randomBytes(32).toString('base64url')
  return { code_verifier, code_challenge: createHash('sha256').update(code_verifier).digest('base64url') }
}

/** The cookies that a browser keeps for this server. */
export function createBrowser(app: Pick<TestApp, 'inject'>) {
  const cookies = new Map<string, string>()
  return {
    cookies,
    async get(url: string, host = 'localhost'): Promise<Reply> {
      const { pathname, search } = new URL(url, 'http://localhost')
      const cookie = [...cookies].map(([name, value]) => `${name}=${value}`).join('; ')
      const headers = { host, ...(cookie && { cookie }) }
      const reply = await app.inject({ url: pathname + search, headers })
      for (const line of [reply.headers['set-cookie'] ?? []].flat()) {
        const [, name = '', value = ''] = /^([^=]+)=([^;]*)/.exec(line) ?? []
        if (/; Max-Age=0;/.test(line)) cookies.delete(name)
        else cookies.set(name, value)
      }
      return reply
    }
  }
}
export type Browser = ReturnType<typeof createBrowser>

export const page = (slug: string) => `http://${slug}.localhost:8080/signed-in`

/** The address at which a client sends its person to a provider. */
export function startUrl(
  provider: string,
  tenant: string,
  code_challenge: string,
  redirect_to = page(tenant),
  invitation?: string
): string {
  const query = { redirect_to, code_challenge, tenant, ...(invitation !== undefined && { invitation }) }
  return `/api/v1/auth/oauth/${provider}?${new URLSearchParams(query)}`
}

export const exchange = (app: TestApp, code: unknown, code_verifier: string, host = 'localhost'): Promise<Reply> =>
  send(app, host, { method: 'POST', url: '/api/v1/auth/oauth/token', payload: { code, code_verifier } })

/** Walks a browser through a real provider until it comes back to this server. */
export async function walk(location: string): Promise<string> {
  const jar = new Map<string, string>()
  let url = location
  for (let step = 0; step < 10; step++) {
    const cookie = [...jar].map(([name, value]) => `${name}=${value}`).join('; ')
    const reply = await fetch(url, { redirect: 'manual', headers: { cookie } })
    for (const line of reply.headers.getSetCookie()) {
      const [, name = '', value = ''] = /^([^=]+)=([^;]*)/.exec(line) ?? []
      jar.set(name, value)
    }
    const next = reply.headers.get('location')
    if (next === null) throw new Error(`the provider shows a page: ${reply.status} ${await reply.text()}`)
    url = new URL(next, url).href
    if (url.includes('/callback?')) return url
  }
  throw new Error('the provider goes round in circles')
}

/** What came back to the client's page. */
export const resultOf = (reply: Reply) => Object.fromEntries(new URL(String(reply.headers.location)).searchParams)

/** Signs a person in at a scripted provider, as far as the client's page, with an invitation or without. */
export async function signInAt(
  app: TestApp,
  provider: { key: string; at: ScriptedProvider },
  tenant: string,
  account: Account,
  browser = createBrowser(app),
  invitation?: string
) {
  const { code_verifier, code_challenge } = createVerifier()
  const started = await browser.get(startUrl(provider.key, tenant, code_challenge, page(tenant), invitation))
  if (started.statusCode !== 302) throw new Error(`start: ${started.statusCode} ${started.body}`)
  const back = provider.at.authorize(String(started.headers.location), account)
  const reply = await browser.get(back)
  return { code_verifier, back, browser, reply, ...(reply.statusCode === 302 ? resultOf(reply) : {}) } as {
    code_verifier: string
    back: string
    browser: Browser
    reply: Reply
    code?: string
    error?: string
  }
}

/** Links an identity at a scripted provider to the person of the tokens, whose address is verified for it. */
export async function linkAt(
  app: TestApp,
  provider: { key: string; at: ScriptedProvider },
  tenant: Tenant,
  account: Account,
  tokens: Tokens = tenant.owner.tokens
): Promise<Reply> {
  await verifyAll(app)
  const { code_verifier, code_challenge } = createVerifier()
  const as = (options: object) => tenant.with(tokens.access_token, { method: 'POST', ...options })
  const payload = { provider: provider.key, redirect_to: page(tenant.slug), code_challenge }
  const begun = await as({ url: '/api/v1/users/me/identities', payload })
  if (begun.statusCode !== 200) return begun
  const browser = createBrowser(app)
  const started = await browser.get(begun.json().url)
  const back = await browser.get(provider.at.authorize(String(started.headers.location), account))
  const { code } = resultOf(back)
  return as({ url: '/api/v1/users/me/identities/confirm', payload: { code, code_verifier } })
}

/** Adds a provider of its own to an agency, and resolves to its id. */
export async function addProvider(tenant: Tenant, issuer: string, more: object = {}): Promise<string> {
  const payload = { name: `${tenant.slug} login`, issuer, client_id: clientId, client_secret: clientSecret, ...more }
  const reply = await tenant.send({ method: 'POST', url: '/api/v1/identity-providers', payload })
  if (reply.statusCode !== 201) throw new Error(`identity-providers: ${reply.statusCode} ${reply.body}`)
  return reply.json().id
}
