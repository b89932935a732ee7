import { addMember, allRows, post, send } from './harness.ts'
import { createBrowser, createVerifier, exchange, page, resultOf, signInAt, startUrl } from './providers.ts'
import { bearer, me } from './requests.ts'
import { type Attack, must, type Scene, wicked } from './take-over-world.ts'

/*
 * Attacks on accounts by what passes between a browser, a client and a provider: states, codes and addresses. They are
 * played by test/take-overs.test.ts.
 */

const stateOf = (url: string) => new URL(url).searchParams.get('state') as string
const codeOf = (url: string) => new URL(url).searchParams.get('code') as string
const asPath = (url: string) => url.slice(new URL(url).origin.length)

/** The victim signs in at the provider for everybody: the code that comes to the page, and its verifier. */
async function victimsCode({ app, google, home, account }: Scene) {
  const { code, code_verifier } = await signInAt(app, google, home.slug, account)
  return { code: code as string, code_verifier }
}

const states: Attack[] = [
  {
    title: 'a callback that was stolen on the way',
    async play(scene) {
      const { app, thief, account } = scene
      const { back } = await scene.begin(app, account)
      scene.expect(await createBrowser(thief).get(back), 'invalid_oauth_state')
      return undefined
    }
  },
  {
    title: 'a callback that is replayed, with the cookie of the flow',
    async play(scene) {
      const { app, thief, account } = scene
      const { back, browser } = await scene.begin(app, account)
      const cookies = [...browser.cookies]
      must(await browser.get(back), 302)
      const mine = createBrowser(thief)
      for (const [name, value] of cookies) mine.cookies.set(name, value)
      scene.expect(await mine.get(back), 'invalid_oauth_state')
      return undefined
    }
  },
  {
    title: 'a callback of the attacker, opened in the victim’s browser (login CSRF)',
    async play(scene) {
      const { app, thief } = scene
      const mine = await scene.begin(thief, scene.stranger)
      const victims = createBrowser(app)
      scene.expect(await victims.get(mine.back), 'invalid_oauth_state')
      return undefined
    }
  },
  {
    title: 'the state of another flow of the same browser',
    async play(scene) {
      const { thief, account } = scene
      const theirs = await scene.begin(scene.app, account)
      const mine = await scene.begin(thief, scene.stranger)
      const url = new URL(mine.back)
      url.searchParams.set('state', stateOf(theirs.back))
      scene.expect(await mine.browser.get(url.href), 'invalid_oauth_state')
      url.searchParams.delete('state')
      scene.expect(await mine.browser.get(url.href), 'invalid_oauth_state')
      return undefined
    }
  },
  {
    title: 'a cookie of a flow that the attacker has put under the name of another one',
    async play(scene) {
      const { thief, account, app } = scene
      const theirs = await scene.begin(app, account)
      const mine = await scene.begin(thief, scene.stranger)
      const [name] = [...theirs.browser.cookies.keys()] as [string]
      mine.browser.cookies.set(name, [...mine.browser.cookies.values()][0] as string)
      scene.expect(await mine.browser.get(theirs.back), 'invalid_oauth_state')
      return undefined
    }
  },
  {
    title: 'a link that the attacker has begun, followed by the victim with another identity',
    async play(scene) {
      const { app, rival, google, home, domain } = scene
      const { code_verifier, code_challenge } = createVerifier()
      const payload = { provider: 'google', redirect_to: page(rival.slug), code_challenge }
      const begun = must(await rival.send(post('/users/me/identities', payload)), 200).json()
      const browser = createBrowser(app)
      const started = must(await browser.get(asPath(begun.url)), 302)
      const back = google.at.authorize(String(started.headers.location), { sub: `second of ${domain}` })
      const { code } = resultOf(await browser.get(back))
      const confirm = post('/users/me/identities/confirm', { code, code_verifier })
      scene.expect(await home.send(confirm), 'invalid_sign_in_code')
      const linked = await allRows(app.database, 'select from user_identities where subject = $1', [
        `second of ${domain}`
      ])
      if (linked.length > 0) scene.gain('an identity of the victim')
      return undefined
    }
  },
  {
    title: 'an identity of the attacker, sent into the victim’s session',
    async play(scene) {
      const { thief, google, rival, home } = scene
      // as a page that posts it with the tokens of the victim would
      const { code, code_verifier } = await signInAt(thief, google, home.slug, scene.account)
      scene.expect(
        await home.send(post('/users/me/identities/confirm', { code, code_verifier })),
        'invalid_sign_in_code'
      )
      const verifier = createVerifier()
      const payload = { provider: 'google', redirect_to: page(rival.slug), code_challenge: verifier.code_challenge }
      const { url } = must(await rival.send(post('/users/me/identities', payload)), 200).json()
      const browser = createBrowser(thief)
      const started = must(await browser.get(asPath(url)), 302)
      const back = await browser.get(google.at.authorize(String(started.headers.location), scene.stranger))
      const body = { code: resultOf(back).code, code_verifier: verifier.code_verifier }
      scene.expect(await home.send(post('/users/me/identities/confirm', body)), 'invalid_sign_in_code')
      return undefined
    }
  }
]

const codes: Attack[] = [
  {
    title: 'a stolen sign-in code, without the verifier',
    async play(scene) {
      const { code } = await victimsCode(scene)
      scene.expect(await exchange(scene.thief, code, createVerifier().code_verifier), 'invalid_sign_in_code')
      const bare = post('/auth/oauth/token', { code })
      scene.expect(await send(scene.thief, 'localhost', bare), 'validation_failed')
      return undefined
    }
  },
  {
    title: 'a sign-in code and its verifier, after the victim has used them',
    async play(scene) {
      const { app, thief } = scene
      const { code, code_verifier } = await victimsCode(scene)
      must(await exchange(app, code, code_verifier), 200)
      scene.expect(await exchange(thief, code, code_verifier), 'invalid_sign_in_code')
      return undefined
    }
  },
  {
    title: 'a sign-in code on the host of the attacker’s agency',
    async play(scene) {
      const { app, thief, rival } = scene
      const { code, code_verifier } = await victimsCode(scene)
      const lured = await exchange(thief, code, createVerifier().code_verifier, rival.host)
      scene.expect(lured, 'tenant_mismatch')
      return () => exchange(app, code, code_verifier)
    }
  },
  {
    title: 'a code of the provider, put into the attacker’s own flow',
    async play(scene) {
      const { app, thief, account } = scene
      const theirs = await scene.begin(app, account)
      const mine = await scene.begin(thief, scene.stranger)
      const url = new URL(mine.back)
      url.searchParams.set('code', codeOf(theirs.back))
      scene.expectError(resultOf(await mine.browser.get(url.href)).error, 'provider_error')
      return undefined
    }
  },
  {
    title: 'a sign-in that is begun without PKCE, or with its plain form',
    async play(scene) {
      const { thief, home } = scene
      const browser = createBrowser(thief)
      const url = new URL(startUrl('google', home.slug, createVerifier().code_challenge), 'http://localhost')
      for (const change of [
        (query: URLSearchParams) => query.delete('code_challenge'),
        (query: URLSearchParams) => query.set('code_challenge', ''),
        (query: URLSearchParams) => query.set('code_challenge', 'plain-verifier'),
        (query: URLSearchParams) => query.set('code_challenge_method', 'plain')
      ]) {
        const changed = new URL(url)
        change(changed.searchParams)
        scene.expect(await browser.get(changed.href), 'validation_failed')
      }
      return undefined
    }
  },
  {
    title: 'a sign-in code in the place of every other token',
    async play(scene) {
      const { app, thief } = scene
      const { code, code_verifier } = await victimsCode(scene)
      const tried = async (request: Parameters<typeof send>[2], answer: string) =>
        scene.expect(await send(thief, 'localhost', request), answer)
      await tried({ url: me, headers: bearer(code) }, 'invalid_token')
      await tried(post('/auth/refresh', { refresh_token: code.slice(0, 512) }), 'invalid_refresh_token')
      await tried(post('/auth/mfa', { mfa_token: code.slice(0, 1024), code: '123456' }), 'invalid_mfa_token')
      await tried(post('/auth/password/reset', { token: code.slice(0, 512), password: wicked }), 'link_expired')
      await tried(post('/invitations/accept', { token: code.slice(0, 512) }), 'not_found')
      await tried({ url: `/api/v1/auth/oauth/google/link?ticket=${code}` }, 'invalid_oauth_state')
      return () => exchange(app, code, code_verifier)
    }
  }
]

const redirects: Attack[] = [
  {
    title: 'an open redirect to the attacker’s page',
    async play(scene) {
      const { app, account, home } = scene
      const evil = 'evil.example'
      for (const target of [
        `https://${evil}/`,
        `//${evil}/`,
        `/\\${evil}`,
        `https://desk.example.${evil}/`,
        `https://desk.example@${evil}/`,
        `https://desk.example\\@${evil}/`,
        `https://desk.example%40${evil}/`,
        'https://desk.example:444/',
        'http://desk.example/',
        'https://sub.desk.example/',
        'https://desk.example/#code',
        'https://desk.example//evil.example',
        'javascript:alert(1)',
        'com.example.app:/signed-in',
        page(scene.rival.slug)
      ]) {
        const { code_challenge } = createVerifier()
        const reply = await createBrowser(app).get(startUrl('google', home.slug, code_challenge, target))
        scene.expect(reply, 'validation_failed')
        if (reply.statusCode !== 302) continue
        const browser = createBrowser(app)
        const started = await browser.get(startUrl('google', home.slug, code_challenge, target))
        const back = await browser.get(scene.google.at.authorize(String(started.headers.location), account))
        if (resultOf(back).code) scene.gain(`a sign-in code, at ${target}`)
      }
      return undefined
    }
  },
  {
    title: 'a page that the attacker’s agency allows, for a session that is good in all agencies',
    async play(scene) {
      const { app, rival, victim } = scene
      const settings = { allowed_origins: ['https://evil.example'] }
      must(await rival.send({ method: 'PATCH', url: '/api/v1/tenant', payload: { settings } }), 200)
      await addMember(app, rival, victim.id, 'viewer')
      const { code_challenge } = createVerifier()
      const url = startUrl('google', rival.slug, code_challenge, 'https://evil.example/')
      const reply = await createBrowser(app).get(url)
      scene.expect(reply, 'validation_failed')
      if (reply.statusCode === 302) scene.gain('the page to which the code of the victim comes')
      await allRows(app.database, 'delete from memberships where user_id = $1 and tenant_id = $2', [
        victim.id,
        rival.id
      ])
      return undefined
    }
  }
]

export const attacksOnFlows: Attack[] = [...states, ...codes, ...redirects]
