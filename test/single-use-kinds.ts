import type { LinkPurpose } from '../src/auth/one-time-tokens.ts'
import { type Authenticator, createAuthenticator, enroll, totp } from './factors.ts'
import { allRows, createTenant, eventually, password, post, type Tenant, type TestApp } from './harness.ts'
import { verify } from './mailed-links.ts'
import {
  createDevice,
  originOf,
  passkeys,
  register,
  startFactor,
  startPasskey,
  startProof,
  startSignIn
} from './passkey-device.ts'
import { createBrowser, createVerifier, linkAt, page, resultOf, type ScriptedProvider, startUrl } from './providers.ts'
import { bearer, me } from './requests.ts'

/*
 * Every kind of token, code and challenge that is good once. Each is made for somebody of its own, and comes with the
 * request that redeems it.
 */

export type Redemption = { method?: 'GET' | 'POST'; path: string; headers?: Record<string, string>; body?: object }

/** Something that is good once, and how often it has had its effect by now. */
export type Single = { redeem: (index: number) => Redemption; effects: () => Promise<number> }

export type Kind = {
  title: string
  /** The status of the one success, and that of all others. */
  statuses: [success: number, refusal: number]
  /** It is marked as used before a provider is asked. So it may be used up without an effect when a process is killed. */
  lossy?: true
  /** A second use takes back what the first one gave: the effect may be gone, and is never there twice. */
  undone?: true
  make(world: SingleUseWorld, tenant: Tenant): Promise<Single>
}

export type SingleUseWorld = { app: TestApp; google: ScriptedProvider }

const count = async ({ app }: SingleUseWorld, from: string, values: unknown[]): Promise<number> =>
  (await allRows(app.database, `select count(*)::int as n from ${from}`, values))[0]?.n

const sessionsOf = (world: SingleUseWorld, { owner }: Tenant, condition = 'true') => {
  const all = () => count(world, `sessions where user_id = $1 and ${condition}`, [owner.id])
  const before = all()
  return async () => (await all()) - (await before)
}
const eventsOf =
  (world: SingleUseWorld, { owner }: Tenant, action: string) =>
  () =>
    count(world, 'audit_events where coalesce(target_id, actor_id) = $1 and action = $2', [owner.id, action])

const redeemBy =
  (path: string, body: object, headers = {}) =>
  (): Redemption => ({ path, body, headers })

/** The token of a sign-in whose password was right, without the hash of one. */
const mfaToken = ({ app }: SingleUseWorld, { id, owner }: Tenant) =>
  app.mfaTokens.issue('sign_in', { tenant_id: id, user_id: owner.id, password_version: 1 })

/** A link as it is mailed to the owner, without the mail. Resolves to the token. */
async function plantLink(
  { app }: SingleUseWorld,
  { id: tenant_id, owner }: Tenant,
  purpose: LinkPurpose,
  next: string | null = null
): Promise<string> {
  // the mail after signing up makes a link as well, when it is sent
  const waiting = 'select from account_mails where user_id = $1 and sent_at is null and dropped_at is null'
  app.mail.wake()
  await eventually(async () => (await allRows(app.database, waiting, [owner.id])).length === 0)
  const [link] = await allRows(
    app.database,
    `insert into account_links (user_id, purpose, email, password_version, new_email, expires_at)
     select id, $2, email, password_version, $3, now() + interval '1 hour' from users where id = $1
     on conflict (user_id, purpose) do update set id = excluded.id returning id`,
    [owner.id, purpose, next]
  )
  return app.oneTimeTokens.issue(purpose, { tenant_id, id: link.id, generation: 1 })
}

const mailed: Kind[] = [
  {
    title: 'an invitation',
    statuses: [200, 410],
    async make(world, tenant) {
      const invited = await tenant.send(post('/invitations', { email: `ada@${tenant.slug}.example`, role: 'member' }))
      const { id } = invited.json()
      const token = world.app.oneTimeTokens.issue('invitation', { tenant_id: tenant.id, id, generation: 1 })
      return {
        redeem: redeemBy('/invitations/accept', { token, name: 'Ada', password }),
        effects: () => count(world, "memberships where tenant_id = $1 and role = 'member'", [tenant.id])
      }
    }
  },
  {
    title: 'a link for a new password',
    statuses: [204, 410],
    async make(world, tenant) {
      const token = await plantLink(world, tenant, 'reset')
      return {
        redeem: (index) => ({ path: '/auth/password/reset', body: { token, password: `a new word, number ${index}` } }),
        effects: eventsOf(world, tenant, 'user.password_reset')
      }
    }
  },
  {
    title: 'a link that confirms an address',
    statuses: [204, 410],
    async make(world, tenant) {
      const token = await plantLink(world, tenant, 'verification')
      return {
        redeem: redeemBy('/auth/email/verify', { token }),
        effects: eventsOf(world, tenant, 'user.email_verified')
      }
    }
  },
  {
    title: 'the first link that changes an address',
    statuses: [204, 410],
    async make(world, tenant) {
      const token = await plantLink(world, tenant, 'change_from', `next@${tenant.slug}.example`)
      await plantLink(world, tenant, 'change_to', `next@${tenant.slug}.example`)
      const used = "account_links where user_id = $1 and purpose = 'change_from' and used_at is not null"
      return {
        redeem: redeemBy('/auth/email/verify', { token }),
        effects: () => count(world, used, [tenant.owner.id])
      }
    }
  },
  {
    title: 'the second link that changes an address',
    statuses: [204, 410],
    async make(world, tenant) {
      const next = `next@${tenant.slug}.example`
      const token = await plantLink(world, tenant, 'change_from', next)
      await verify(world.app, await plantLink(world, tenant, 'change_to', next))
      return {
        redeem: redeemBy('/auth/email/verify', { token }),
        effects: eventsOf(world, tenant, 'user.email_changed')
      }
    }
  }
]

/** The code that the app shows when it is first asked for: it is good for a minute, and making the others takes a while. */
function firstOf(authenticator: Authenticator): () => string {
  let code: string | undefined
  return () => {
    code ??= authenticator.code()
    return code
  }
}

const factors: Kind[] = [
  {
    title: 'the first code of an authenticator app',
    statuses: [200, 409],
    async make(world, tenant) {
      const { secret } = (await tenant.send({ method: 'POST', url: totp })).json()
      const authorization = bearer(tenant.owner.tokens.access_token)
      const code = firstOf(createAuthenticator(secret))
      return {
        redeem: () => ({ path: '/users/me/mfa/totp/confirm', body: { code: code() }, headers: authorization }),
        effects: eventsOf(world, tenant, 'user.mfa_enabled')
      }
    }
  },
  {
    title: 'a code of an authenticator app',
    statuses: [200, 401],
    async make(world, tenant) {
      const code = firstOf(await enroll(world.app, tenant))
      return {
        redeem: () => ({ path: '/auth/mfa', body: { mfa_token: mfaToken(world, tenant), code: code() } }),
        effects: sessionsOf(world, tenant)
      }
    }
  },
  {
    title: 'a recovery code',
    statuses: [200, 401],
    async make(world, tenant) {
      const [code] = (await enroll(world.app, tenant)).recovery_codes
      return {
        redeem: () => ({ path: '/auth/mfa', body: { mfa_token: mfaToken(world, tenant), code } }),
        effects: sessionsOf(world, tenant)
      }
    }
  },
  {
    title: 'the token of a sign-in that waits for a factor, with codes that are all good',
    statuses: [200, 401],
    async make(world, tenant) {
      const codes = (await enroll(world.app, tenant)).recovery_codes
      const mfa_token = mfaToken(world, tenant)
      return {
        redeem: (index) => ({ path: '/auth/mfa', body: { mfa_token, code: codes[index % codes.length] } }),
        effects: sessionsOf(world, tenant)
      }
    }
  },
  {
    title: 'the token of a sign-in that enrolls a factor',
    statuses: [200, 401],
    async make(world, tenant) {
      const { app } = world
      const subject = { tenant_id: tenant.id, user_id: tenant.owner.id, password_version: 1 }
      const mfa_token = app.mfaTokens.issue('enrollment', subject)
      const { secret } = (await tenant.anonymous(post('/auth/mfa/totp', { mfa_token }))).json()
      const code = firstOf(createAuthenticator(secret))
      return {
        redeem: () => ({ path: '/auth/mfa', body: { mfa_token, code: code() } }),
        effects: eventsOf(world, tenant, 'user.mfa_enabled')
      }
    }
  }
]

const challenges: Kind[] = [
  {
    title: 'the challenge of a sign-in with a passkey',
    statuses: [200, 401],
    async make(world, tenant) {
      const { device } = await register(tenant)
      const passkey = device.get(await startSignIn(world.app, 'localhost'))
      return {
        redeem: redeemBy('/auth/passkeys', { passkey, tenant: tenant.slug }),
        effects: sessionsOf(world, tenant)
      }
    }
  },
  {
    title: 'the challenge of a passkey as a second factor',
    statuses: [200, 401],
    async make(world, tenant) {
      const { device } = await register(tenant)
      const mfa_token = mfaToken(world, tenant)
      const passkey = device.get(await startFactor(world.app, mfa_token))
      return { redeem: redeemBy('/auth/mfa', { mfa_token, passkey }), effects: sessionsOf(world, tenant) }
    }
  },
  {
    title: 'the challenge of a passkey that proves who is signed in',
    statuses: [204, 401],
    async make(world, tenant) {
      const { device } = await register(tenant)
      const passkey = device.get(await startProof(tenant))
      const authorization = bearer(tenant.owner.tokens.access_token)
      return {
        redeem: redeemBy('/auth/reauthenticate', { passkey }, authorization),
        effects: eventsOf(world, tenant, 'session.reauthenticated')
      }
    }
  },
  {
    title: 'the challenge of a passkey that is added',
    statuses: [201, 401],
    async make(world, tenant) {
      const options = await startPasskey(tenant)
      const made = () => ({ name: 'A device', passkey: createDevice(originOf(tenant)).create(options) })
      const headers = bearer(tenant.owner.tokens.access_token)
      return {
        redeem: () => ({ path: passkeys.replace('/api/v1', ''), body: made(), headers }),
        effects: () => count(world, 'passkeys where user_id = $1', [tenant.owner.id])
      }
    }
  },
  {
    title: 'the token of a sign-in that adds the first passkey',
    statuses: [200, 401],
    async make(world, tenant) {
      const subject = { tenant_id: tenant.id, user_id: tenant.owner.id, password_version: 1 }
      const mfa_token = world.app.mfaTokens.issue('enrollment', subject)
      const options = (await tenant.anonymous(post('/auth/mfa/passkeys/options', { mfa_token }))).json()
      const made = () => ({ mfa_token, name: 'A device', passkey: createDevice(originOf(tenant)).create(options) })
      return {
        redeem: () => ({ path: '/auth/mfa/passkeys', body: made() }),
        effects: () => count(world, 'passkeys where user_id = $1', [tenant.owner.id])
      }
    }
  }
]

/** Begins a sign-in of the owner, whose identity is linked: the address to which the browser comes back, and its cookie. */
async function begin({ app, google }: SingleUseWorld, tenant: Tenant) {
  const account = { sub: tenant.slug }
  await linkAt(app, { key: 'google', at: google }, tenant, account)
  const { code_verifier, code_challenge } = createVerifier()
  const browser = createBrowser(app)
  const started = await browser.get(startUrl('google', tenant.slug, code_challenge))
  const back = google.authorize(String(started.headers.location), account)
  return { browser, back, code_verifier }
}

const ofApi = (url: string) => url.slice(url.indexOf('/api/v1') + '/api/v1'.length)

const flows: Kind[] = [
  {
    title: 'an answer of a provider',
    statuses: [302, 400],
    lossy: true,
    async make(world, tenant) {
      const { browser, back } = await begin(world, tenant)
      const [[name, value] = ['', '']] = browser.cookies
      const before = world.google.requests.filter((path) => path === '/token').length
      return {
        redeem: () => ({ method: 'GET', path: ofApi(back), headers: { cookie: `${name}=${value}` } }),
        effects: async () => world.google.requests.filter((path) => path === '/token').length - before
      }
    }
  },
  {
    title: 'a sign-in code',
    statuses: [200, 401],
    undone: true,
    async make(world, tenant) {
      const { browser, back, code_verifier } = await begin(world, tenant)
      const { code } = resultOf(await browser.get(back))
      return {
        redeem: redeemBy('/auth/oauth/token', { code, code_verifier }),
        effects: sessionsOf(world, tenant, 'revoked_at is null')
      }
    }
  },
  {
    title: 'a sign-in code of somebody who is invited',
    statuses: [200, 401],
    async make(world, tenant) {
      const email = `grace@${tenant.slug}.example`
      const { id } = (await tenant.send(post('/invitations', { email, role: 'member' }))).json()
      const token = world.app.oneTimeTokens.issue('invitation', { tenant_id: tenant.id, id, generation: 1 })
      const { code_verifier, code_challenge } = createVerifier()
      const browser = createBrowser(world.app)
      const started = await browser.get(startUrl('google', tenant.slug, code_challenge, page(tenant.slug), token))
      const account = { sub: email, email, email_verified: true }
      const { code } = resultOf(await browser.get(world.google.authorize(String(started.headers.location), account)))
      return {
        redeem: redeemBy('/auth/oauth/token', { code, code_verifier }),
        effects: () => count(world, "memberships where tenant_id = $1 and role = 'member'", [tenant.id])
      }
    }
  },
  {
    title: 'the address at which a link to an identity begins',
    statuses: [302, 400],
    lossy: true,
    async make(world, tenant) {
      await allRows(world.app.database, 'update users set email_verified_at = now() where id = $1', [tenant.owner.id])
      const payload = {
        provider: 'google',
        redirect_to: page(tenant.slug),
        ...createVerifier(),
        code_verifier: undefined
      }
      const { url } = (await tenant.send(post('/users/me/identities', payload))).json()
      // nothing has changed when it was followed
      return { redeem: () => ({ method: 'GET', path: ofApi(url) }), effects: async () => 0 }
    }
  },
  {
    title: 'the code that links an identity',
    statuses: [201, 401],
    async make(world, tenant) {
      await allRows(world.app.database, 'update users set email_verified_at = now() where id = $1', [tenant.owner.id])
      const { code_verifier, code_challenge } = createVerifier()
      const payload = { provider: 'google', redirect_to: page(tenant.slug), code_challenge }
      const begun = (await tenant.send(post('/users/me/identities', payload))).json()
      const browser = createBrowser(world.app)
      const started = await browser.get(begun.url)
      const back = world.google.authorize(String(started.headers.location), { sub: `link ${tenant.slug}` })
      const { code } = resultOf(await browser.get(back))
      const authorization = bearer(tenant.owner.tokens.access_token)
      return {
        redeem: redeemBy(`${me}/identities/confirm`.replace('/api/v1', ''), { code, code_verifier }, authorization),
        effects: () => count(world, 'user_identities where user_id = $1', [tenant.owner.id])
      }
    }
  }
]

export const kinds: Kind[] = [...mailed, ...factors, ...challenges, ...flows]

/** Makes one of a kind, for the owner of a new agency. */
export async function makeSingle(world: SingleUseWorld, kind: Kind, slug: string): Promise<Single> {
  return kind.make(world, await createTenant(world.app, slug))
}
