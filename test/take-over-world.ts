import type { FastifyInstance, InjectOptions } from 'fastify'
import type { Test } from 'tap'
import { type Github, startGithub } from './github.ts'
import { allRows, createTenant, type Reply, send, startApp, type Tenant, type TestApp, type Tokens } from './harness.ts'
import { type NameServer, startNameServer } from './name-server.ts'
import { sharedRpId } from './passkey-device.ts'
import {
  type Account,
  addProvider,
  type Browser,
  clientId,
  clientSecret,
  createBrowser,
  createVerifier,
  exchange,
  linkAt,
  type ScriptedProvider,
  signInAt,
  startScriptedProvider,
  startUrl
} from './providers.ts'
import { bearer, login, me } from './requests.ts'
import { refresh } from './session-requests.ts'
import { decode } from './tokens.ts'

/*
 * The world in which accounts are attacked: two agencies, a provider for everybody, GitHub, a provider of the attacker,
 * and a name server. Whatever the attacker receives is kept, and afterwards every token is tried.
 */

export type ProviderAt = { key: string; at: ScriptedProvider }

export type Victim = { id: string; email: string; tokens: Tokens }

export type Scene = {
  app: TestApp
  /** The same application. What it answers is seen by the attacker. */
  thief: TestApp
  /** The provider for everybody. The victim is linked there as `account`. */
  google: ProviderAt
  github: Github
  /** The attacker's provider, which says whatever the attacker wants, and belongs to the agency `rival`. */
  rivals: ProviderAt
  dns: NameServer
  /** The agency of the attacker. */
  rival: Tenant
  /** The agency of the victim, new for each attack. The victim is its owner, unless the attack says otherwise. */
  home: Tenant
  /** The domain of the victim's address, and what the attacker calls whatever is new. Different for each attack. */
  domain: string
  name: string
  victim: Victim
  /** The victim at the provider for everybody. */
  account: Account
  /** The attacker there. */
  stranger: Account
  /** Passwords that the attacker knows or has tried to set. */
  words: string[]
  /** Begins a sign-in in a new browser, and lets the account in at the provider. */
  begin(who: TestApp, account: Account, provider?: ProviderAt, slug?: string): Promise<Begun>
  /** Notes a reply that is not the expected refusal. */
  expect(reply: Reply, code: string): void
  /** Notes a refusal that came back from a provider. */
  expectError(error: string | undefined, code: string): void
  /** Notes a success of the attacker that is no token. */
  gain(what: string): void
}

export type Begun = { code_verifier: string; browser: Browser; location: string; back: string }

export type HonestFlow = () => Promise<Reply>

export type Attack = {
  title: string
  /** What a success would be. Default: a session of the victim anywhere, and of anybody in the victim's agency. */
  prize?: 'person' | 'agency'
  /** Something of the account changes on purpose: the attacker has a mailbox, or the victim sets a password. */
  changes?: true
  /** Plays the attack. Resolves to how the victim comes in afterwards. Default: at the provider for everybody. */
  play(scene: Scene): Promise<HonestFlow | undefined>
}

/** What an attack came to. `gains` is empty when it failed. */
export type Outcome = { gains: string[]; surprises: string[]; control: string }

/** A hole that is made on purpose: see test/mutants.ts. */
export type TakeOverHole = {
  plant?: string
  before?: (app: FastifyInstance) => void
  after?: (app: TestApp) => void
}

/** A password that the attacker would like to set. */
export const wicked = 'a wicked word of the attacker'

/** Throws unless a step that is no attack has worked: without it a refusal would prove nothing. */
export function must(reply: Reply, status: number): Reply {
  if (reply.statusCode !== status) throw new Error(`${reply.statusCode} instead of ${status}: ${reply.body}`)
  return reply
}

export async function createTakeOverWorld(t: Test, hole: TakeOverHole = {}) {
  const [google, rivalIdp, github, dns] = await Promise.all([
    startScriptedProvider(t),
    startScriptedProvider(t),
    startGithub(t),
    startNameServer(t)
  ])
  const env = {
    ...{ GOOGLE_CLIENT_ID: clientId, GOOGLE_CLIENT_SECRET: clientSecret, GOOGLE_ISSUER: google.issuer },
    ...{ GITHUB_CLIENT_ID: clientId, GITHUB_CLIENT_SECRET: clientSecret, GITHUB_URL: github.url },
    ...{ DNS_SERVERS: dns.address, CORS_ORIGINS: 'https://desk.example', LOG_LEVEL: 'info' },
    ...sharedRpId
  }
  const app = await startApp(t, env, undefined, hole.before)
  if (hole.plant) await allRows(app.database, hole.plant)
  hole.after?.(app)
  let loot: Tokens[] = []
  const thief: TestApp = Object.assign(Object.create(app), {
    inject: async (options: InjectOptions) => {
      const reply = await app.inject(options)
      if (reply.body.includes('"access_token"')) loot.push(reply.json())
      return reply
    }
  })
  const rival = await createTenant(app, 'rival', 'mallory@rival.example')
  const more = { newcomer_role: 'admin', trust_email: true }
  const rivals = { key: await addProvider(rival, rivalIdp.issuer, more), at: rivalIdp }
  await allRows(app.database, 'update users set email_verified_at = now()')
  await allRows(app.database, 'insert into tenant_domains (tenant_id, name, verified_at) values ($1, $2, now())', [
    ...[rival.id, 'rival.example']
  ])
  let count = 0

  async function createScene(surprises: string[], gains: string[]): Promise<Scene> {
    const name = `n${++count}`
    const domain = `${name}.example`
    const home = await createTenant(app, `home-${name}`, `victim@${domain}`)
    const account = { sub: `victim ${name}`, email: home.owner.email, email_verified: true }
    const everybody = { key: 'google', at: google }
    must(await linkAt(app, everybody, home, account), 201)
    return {
      ...{ app, thief, google: everybody, github, rivals, dns, rival, home, domain, name },
      ...{ victim: home.owner, account, stranger: { ...account, sub: `stranger ${name}` }, words: [wicked] },
      async begin(who, as, provider = everybody, slug = home.slug) {
        const { code_verifier, code_challenge } = createVerifier()
        const browser = createBrowser(who)
        const started = must(await browser.get(startUrl(provider.key, slug, code_challenge)), 302)
        const location = String(started.headers.location)
        return { code_verifier, browser, location, back: provider.at.authorize(location, as) }
      },
      expect(reply, code) {
        const answer = reply.body.startsWith('{') ? reply.json().code : undefined
        if (answer !== code) surprises.push(`${reply.statusCode} ${answer} instead of ${code}`)
      },
      expectError(error, code) {
        if (error !== code) surprises.push(`${error} instead of ${code}`)
      },
      gain: (what) => void gains.push(what)
    }
  }

  /** The ways of the victim into the account. An attacker who can change one has another way in. */
  const waysIn = async ({ victim }: Scene) =>
    JSON.stringify(
      await allRows(
        app.database,
        `select u.email, encode(u.password_hash::text::bytea, 'hex') as word, u.mfa_enabled_at,
          (select array_agg(i.id order by i.id) from user_identities i where i.user_id = u.id) as identities,
          (select array_agg(p.id order by p.id) from passkeys p where p.user_id = u.id) as passkeys,
          (select array_agg(m.tenant_id::text || m.role order by m.tenant_id) from memberships m where m.user_id = u.id) as roles
        from users u where u.id = $1`,
        [victim.id]
      )
    )

  /** Tries everything that the attacker has, and names what leads to the prize. */
  async function findGains({ victim, home }: Scene, prize: Attack['prize']): Promise<string[]> {
    const wanted = ({ user_id, tenant_id }: { user_id: unknown; tenant_id: unknown }) =>
      (prize !== 'agency' && user_id === victim.id) || (prize !== 'person' && tenant_id === home.id)
    // a revocation takes effect within a second, and at once where this process has read it
    await app.revocations.readNow()
    const found: string[] = []
    for (const tokens of loot) {
      const shown = await send(app, 'localhost', { url: me, headers: bearer(tokens.access_token) })
      if (shown.statusCode === 200 && wanted({ ...shown.json(), user_id: shown.json().id }))
        found.push('an access token')
      const renewed = await refresh(app, tokens.refresh_token)
      if (renewed.statusCode === 200 && wanted(decode(renewed.json().access_token).claims as never)) {
        found.push('a refresh token')
      }
    }
    return found
  }

  return {
    app,
    /** Plays one attack in an agency of its own, then lets the attacker try every way in, and the victim theirs. */
    async play({ play, prize, changes }: Attack): Promise<Outcome> {
      const [gains, surprises]: [string[], string[]] = [[], []]
      const scene = await createScene(surprises, gains)
      loot = []
      const before = await waysIn(scene)
      const honest = await play(scene)
      if (!changes && (await waysIn(scene)) !== before) gains.push('another way into the account')
      for (const word of scene.words) await login(thief, scene.victim.email, word)
      for (const slug of [scene.home.slug, scene.rival.slug]) {
        const { code, code_verifier } = await signInAt(thief, scene.google, slug, scene.stranger)
        if (code) await exchange(thief, code, code_verifier)
      }
      gains.push(...(await findGains(scene, prize)))
      const own = async () => {
        const { code, code_verifier } = await signInAt(app, scene.google, scene.home.slug, scene.account)
        return exchange(app, code, code_verifier)
      }
      const reply = await (honest ?? own)()
      const person = reply.statusCode === 200 && decode(reply.json().access_token).claims.user_id
      const control = person === scene.victim.id ? 'the victim comes in' : `${reply.statusCode} ${reply.body}`
      return { gains, surprises, control }
    }
  }
}
export type TakeOverWorld = Awaited<ReturnType<typeof createTakeOverWorld>>

/** Adds a provider of its own to the victim's agency, which stands at the same server as the one for everybody. */
export async function addOwnProvider(scene: Scene, more: object = {}): Promise<ProviderAt> {
  return { key: await addProvider(scene.home, scene.google.at.issuer, more), at: scene.google.at }
}
