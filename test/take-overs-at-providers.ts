import { complete, enroll } from './factors.ts'
import { addMember, allRows, createTenant, password, post, send, type Tenant } from './harness.ts'
import { forgotToken, reset } from './mailed-links.ts'
import {
  addProvider,
  clientId,
  clientSecret,
  createBrowser,
  createVerifier,
  exchange,
  linkAt,
  page,
  resultOf,
  signInAt,
  signToken,
  startUrl
} from './providers.ts'
import { bearer, login } from './requests.ts'
import { refresh } from './session-requests.ts'
import { type Attack, addOwnProvider, must, type ProviderAt, type Scene, wicked } from './take-over-world.ts'

/*
 * Attacks on accounts by a sign-in at a provider. They are played by test/take-overs.test.ts.
 */

const codeOf = (url: string) => new URL(url).searchParams.get('code') as string

/** The attacker's agency proves a domain, by the DNS that is the attacker's now. */
async function proveForRival({ rival, dns }: Scene, name: string): Promise<void> {
  const { record } = must(await rival.send(post('/domains', { name })), 201).json()
  dns.answers.set(record.name, [record.value])
  must(await rival.send({ method: 'POST', url: `/api/v1/domains/${name}/verify` }), 200)
}

/** Tries to come in through the attacker's provider, with what it says, and to go on to the victim's agency. */
async function comeThroughRival(scene: Scene, account: { sub: string; email: string }): Promise<string | undefined> {
  const { thief, rivals, rival, home } = scene
  const { code, code_verifier, error } = await signInAt(thief, rivals, rival.slug, { email_verified: true, ...account })
  if (!code) return error
  const { access_token } = must(await exchange(thief, code, code_verifier), 200).json()
  await send(thief, 'localhost', post('/auth/switch', { tenant: home.slug }, bearer(access_token)))
  return undefined
}

const addresses: Attack[] = [
  {
    title: 'an address at the provider that is changed to the victim’s',
    async play(scene) {
      const { error } = await signInAt(scene.thief, scene.google, scene.home.slug, scene.stranger)
      scene.expectError(error, 'identity_not_linked')
      return undefined
    }
  },
  {
    title: 'an address at the provider that nobody has verified',
    async play(scene) {
      const unverified = { ...scene.stranger, email_verified: false }
      const { error } = await signInAt(scene.thief, scene.google, scene.home.slug, unverified)
      scene.expectError(error, 'not_a_member')
      return undefined
    }
  },
  {
    title: 'a second address at GitHub, and an unverified first one',
    async play(scene) {
      const { thief, github, home, victim } = scene
      const mine = { email: 'mallory@rival.example', primary: true, verified: true }
      const theirs = { email: victim.email, primary: false, verified: true }
      for (const list of [[mine, theirs], [{ ...theirs, primary: true, verified: false }]]) {
        github.state.emails = list
        const { error } = await signInAt(thief, { key: 'github', at: github as never }, home.slug, { sub: 'x' })
        scene.expectError(error, list.length === 2 ? 'identity_not_linked' : 'not_a_member')
      }
      return undefined
    }
  },
  {
    title: 'a name at GitHub that its owner gave up',
    changes: true,
    async play(scene) {
      const { app, thief, github, home, victim } = scene
      const at: ProviderAt = { key: 'github', at: github as never }
      github.state.account = { id: Date.now(), login: `victim-${home.slug}`, name: null }
      github.state.emails = [{ email: victim.email, primary: true, verified: true }]
      must(await linkAt(app, at, home, { sub: 'x' }), 201)
      const id = github.state.account.id
      github.state.account.id = id + 1
      scene.expectError((await signInAt(thief, at, home.slug, { sub: 'x' })).error, 'identity_not_linked')
      github.state.account.id = id
      const { code, code_verifier } = await signInAt(app, at, home.slug, { sub: 'x' })
      return () => exchange(app, code, code_verifier)
    }
  },
  {
    title: 'a provider of the attacker that vouches for the victim’s address',
    async play(scene) {
      scene.expectError(
        await comeThroughRival(scene, { ...scene.account, sub: 'm', email: scene.victim.email }),
        'identity_not_linked'
      )
      return undefined
    }
  },
  {
    title: 'a provider of the attacker that names the victim’s subject',
    async play(scene) {
      scene.expectError(
        await comeThroughRival(scene, { sub: scene.account.sub, email: scene.victim.email }),
        'identity_not_linked'
      )
      return undefined
    }
  },
  {
    title: 'addresses of the attacker’s domain that are spelled to be read as the victim’s',
    async play(scene) {
      const { victim, domain } = scene
      const spellings = [
        `"${victim.email}"@rival.example`,
        `${victim.email},x@rival.example`,
        `${victim.email}\u0000@rival.example`,
        `x@rival.example <${victim.email}>`,
        `victim@${domain}@rival.example`,
        `victim@${domain.toUpperCase()}`,
        `ｖictim@${domain}`,
        `victim＠${domain}`,
        `victim@${domain}.`,
        `victim@rival.example\n${victim.email}`
      ]
      for (const [index, email] of spellings.entries())
        await comeThroughRival(scene, { sub: `s${index}${domain}`, email })
      return undefined
    }
  },
  {
    title: 'a domain that looks like the victim’s, or is below it',
    async play(scene) {
      const { domain } = scene
      await proveForRival(scene, `x${domain}`)
      await proveForRival(scene, `sub.${domain}`)
      scene.expectError(
        await comeThroughRival(scene, { sub: `l${domain}`, email: scene.victim.email }),
        'identity_not_linked'
      )
      return undefined
    }
  }
]

/** A day passes for the domains. */
async function nextDay({ app }: Scene): Promise<void> {
  await allRows(app.database, "update tenant_domains set due_at = now() - interval '1 second'")
  await app.domainChecks.run()
}

const domains: Attack[] = [
  {
    title: 'a lost domain that the attacker has bought, for the address of an account',
    async play(scene) {
      await proveForRival(scene, scene.domain)
      scene.expectError(
        await comeThroughRival(scene, { sub: `b${scene.domain}`, email: scene.victim.email }),
        'identity_not_linked'
      )
      return undefined
    }
  },
  {
    title: 'a lost domain, for a victim who is also a member of the attacker’s agency',
    prize: 'agency',
    changes: true,
    async play(scene) {
      const { app, thief, rival, rivals, victim, domain } = scene
      await addMember(app, rival, victim.id, 'viewer')
      await proveForRival(scene, domain)
      const account = { sub: `v${domain}`, email: victim.email, email_verified: true }
      const { code, code_verifier } = await signInAt(thief, rivals, rival.slug, account)
      const { access_token } = must(await exchange(thief, code, code_verifier), 200).json()
      const as = async (method: 'POST' | 'DELETE', path: string, payload?: object) =>
        scene.expect(
          await send(thief, 'localhost', {
            ...{ method, url: `/api/v1${path}`, headers: bearer(access_token) },
            ...(payload && { payload })
          }),
          'forbidden'
        )
      await as('POST', '/auth/switch', { tenant: scene.home.slug })
      await as('POST', '/users/me/password', { current_password: password, new_password: wicked })
      await as('POST', '/users/me/email', { email: 'mallory@rival.example', password })
      await as('POST', '/users/me/mfa/totp')
      await as('POST', '/users/me/passkeys/options')
      const { code_challenge } = createVerifier()
      await as('POST', '/users/me/identities', { provider: 'google', redirect_to: page('rival'), code_challenge })
      await as('DELETE', '/users/me', { password })
      return undefined
    }
  },
  {
    title: 'the mailbox of a lost domain, against a second factor',
    changes: true,
    async play(scene) {
      const { app, thief, home, victim, google, account } = scene
      const authenticator = await enroll(app, home)
      must(await reset(thief, await forgotToken(thief, victim.email), wicked), 204)
      const begun = await login(thief, victim.email, wicked)
      scene.expect(begun, 'mfa_required')
      scene.expect(await complete(thief, begun.json().mfa_token, '000000'), 'invalid_credentials')
      return async () => {
        const { code, code_verifier } = await signInAt(app, google, home.slug, account)
        const { mfa_token } = (await exchange(app, code, code_verifier)).json()
        return complete(app, mfa_token, authenticator.code())
      }
    }
  },
  {
    title: 'a newcomer of a domain that the agency has lost',
    async play(scene) {
      const { app, thief, home, dns, domain, google } = scene
      const { record } = must(await home.send(post('/domains', { name: domain })), 201).json()
      dns.answers.set(record.name, [record.value])
      must(await home.send({ method: 'POST', url: `/api/v1/domains/${domain}/verify` }), 200)
      const own = await addOwnProvider(scene, { newcomer_role: 'admin' })
      const newcomer = (name: string) => ({ sub: name, email: `${name}@${domain}`, email_verified: true })
      const welcome = await signInAt(app, own, home.slug, newcomer('early'))
      must(await exchange(app, welcome.code, welcome.code_verifier), 200)
      dns.answers.delete(record.name)
      for (let day = 0; day < 3; day++) await nextDay(scene)
      scene.expectError((await signInAt(thief, own, home.slug, newcomer('late'))).error, 'identity_not_linked')
      scene.expectError((await signInAt(thief, google, home.slug, newcomer('late'))).error, 'not_a_member')
      return undefined
    }
  },
  {
    title: 'the record of the victim’s agency, copied to prove the domain for the attacker’s',
    async play(scene) {
      const { home, rival, dns, domain } = scene
      const { record } = must(await home.send(post('/domains', { name: domain })), 201).json()
      dns.answers.set(record.name, [record.value])
      must(await rival.send(post('/domains', { name: domain })), 201)
      const proof = await rival.send({ method: 'POST', url: `/api/v1/domains/${domain}/verify` })
      scene.expect(proof, 'domain_not_proven')
      scene.expectError(
        await comeThroughRival(scene, { sub: `c${domain}`, email: `new@${domain}` }),
        'identity_not_linked'
      )
      return undefined
    }
  },
  {
    title: 'a password that is known, where the agency demands its provider',
    changes: true,
    async play(scene) {
      const { app, thief, home, victim, account } = scene
      const own = await addOwnProvider(scene)
      must(await linkAt(app, own, home, account), 201)
      await allRows(app.database, 'update identity_providers set enforced_from = now() where id = $1', [own.key])
      scene.words.push(password)
      scene.expect(await login(thief, victim.email, password), 'provider_required')
      scene.expect(await refresh(thief, victim.tokens.refresh_token), 'session_revoked')
      return async () => {
        const { code, code_verifier } = await signInAt(app, own, home.slug, account)
        return exchange(app, code, code_verifier)
      }
    }
  }
]

/** Adds the provider that everybody has to the attacker's agency, or to another one, as its own. */
const addIssuer = async (tenant: Tenant, { at }: ProviderAt): Promise<ProviderAt> => ({
  key: await addProvider(tenant, at.issuer, { newcomer_role: 'admin', trust_email: true }),
  at
})
const removeProvider = (tenant: Tenant, { key }: ProviderAt) =>
  tenant.send({ method: 'DELETE', url: `/api/v1/identity-providers/${key}` })

const issuers: Attack[] = [
  {
    title: 'the issuer of everybody, configured as the attacker’s own',
    async play(scene) {
      const same = await addIssuer(scene.rival, scene.google)
      const { error } = await signInAt(scene.thief, same, scene.rival.slug, scene.account)
      scene.expectError(error, 'identity_not_linked')
      must(await removeProvider(scene.rival, same), 204)
      return undefined
    }
  },
  {
    title: 'an id_token of the attacker that names the issuer of everybody',
    async play(scene) {
      const { thief, rivals, rival, google, account } = scene
      rivals.at.script.token = (claims) => ({ ...claims, iss: google.at.issuer })
      const { error } = await signInAt(thief, rivals, rival.slug, account)
      delete rivals.at.script.token
      scene.expectError(error, 'provider_error')
      return undefined
    }
  },
  {
    title: 'an id_token that the provider of everybody gave to somebody else',
    async play(scene) {
      const { thief, google, home, account } = scene
      const now = Math.floor(Date.now() / 1000)
      const stolen = signToken({
        ...account,
        iss: google.at.issuer,
        aud: clientId,
        iat: now,
        exp: now + 300,
        nonce: 'theirs'
      })
      google.at.script.token = () => stolen
      const { error } = await signInAt(thief, google, home.slug, scene.stranger)
      delete google.at.script.token
      scene.expectError(error, 'provider_error')
      return undefined
    }
  },
  {
    title: 'a provider that publishes the issuer of everybody as its own',
    async play(scene) {
      const { thief, rival, rivals, google } = scene
      rivals.at.script.metadata = { issuer: google.at.issuer }
      // another client: what a provider publishes is remembered for an hour
      const payload = {
        name: 'x',
        issuer: `${rivals.at.url}/${scene.name}`,
        client_id: 'other',
        client_secret: clientSecret
      }
      const key = must(await rival.send(post('/identity-providers', payload)), 201).json().id
      const { code_challenge } = createVerifier()
      scene.expect(await createBrowser(thief).get(startUrl(key, rival.slug, code_challenge)), 'provider_error')
      rivals.at.script.metadata = {}
      must(await removeProvider(rival, { key, at: rivals.at }), 204)
      return undefined
    }
  },
  {
    title: 'a mix-up: the attacker’s provider sends the victim on to that of everybody',
    async play(scene) {
      const { app, thief, rivals, rival, google, account } = scene
      const begun = await scene.begin(app, account, rivals, rival.slug)
      const asked = new URL(begun.location)
      // the victim comes to the attacker's page, which leads to the other provider with the state of this flow
      asked.searchParams.set(
        'redirect_uri',
        asked.searchParams.get('redirect_uri')?.replace(rivals.key, 'google') ?? ''
      )
      const back = google.at.authorize(asked.href, account)
      const before = rivals.at.requests.length
      scene.expect(await begun.browser.get(back), 'invalid_oauth_state')
      // and the code of the other provider, at the callback of the attacker's
      const mine = await scene.begin(app, account, rivals, rival.slug)
      const mixed = new URL(mine.back)
      mixed.searchParams.set('code', codeOf(back))
      mixed.searchParams.set('iss', google.at.issuer)
      scene.expectError(resultOf(await mine.browser.get(mixed.href)).error, 'provider_error')
      if (rivals.at.requests.slice(before).includes('/token')) scene.gain('the code of the victim at the provider')
      await signInAt(thief, rivals, rival.slug, scene.stranger)
      return undefined
    }
  },
  {
    title: 'an answer at the address of another provider',
    async play(scene) {
      const { thief, rivals } = scene
      for (const other of ['github', rivals.key]) {
        const { browser, back } = await scene.begin(thief, scene.stranger)
        scene.expect(await browser.get(back.replace('/google/', `/${other}/`)), 'invalid_oauth_state')
      }
      return undefined
    }
  },
  {
    title: 'the attacker’s provider, begun at the victim’s agency',
    async play(scene) {
      const { thief, rivals, home } = scene
      const url = startUrl(rivals.key, home.slug, createVerifier().code_challenge)
      scene.expect(await createBrowser(thief).get(url), 'not_found')
      return undefined
    }
  },
  {
    title: 'a provider of the victim’s agency that an admin there lets say who the owner is',
    prize: 'person',
    changes: true,
    async play(scene) {
      const { app, thief, victim, domain } = scene
      // an agency decides what its provider says: the other agency of the person must not depend on it
      const other = await createTenant(app, `other-${scene.name}`, `boss@other-${domain}`)
      await addMember(app, other, victim.id, 'owner')
      const own = await addOwnProvider(scene)
      must(await linkAt(app, own, scene.home, { sub: `own ${domain}` }), 201)
      const { code, code_verifier } = await signInAt(app, own, scene.home.slug, { sub: `own ${domain}` })
      const { access_token } = must(await exchange(app, code, code_verifier), 200).json()
      const to = post('/auth/switch', { tenant: other.slug }, bearer(access_token))
      scene.expect(await send(thief, 'localhost', to), 'forbidden')
      const word = { current_password: password, new_password: wicked }
      scene.expect(await send(thief, 'localhost', post('/users/me/password', word, bearer(access_token))), 'forbidden')
      return undefined
    }
  }
]

export const attacksAtProviders: Attack[] = [...addresses, ...domains, ...issuers]
