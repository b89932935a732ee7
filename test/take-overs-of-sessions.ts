import { complete, createAuthenticator, enroll, forgetUsedCodes, totp } from './factors.ts'
import { addMember, allRows, createTenant, password, post, send } from './harness.ts'
import {
  addPasskey,
  createDevice,
  originOf,
  passkeys,
  register,
  signInWith,
  startPasskey,
  startSignIn
} from './passkey-device.ts'
import { createVerifier, page } from './providers.ts'
import { bearer, login, me, unknownId } from './requests.ts'
import { refresh, rotate } from './session-requests.ts'
import { type Attack, must, type Scene, wicked } from './take-over-world.ts'

/*
 * Attacks on accounts by their passwords, second factors, passkeys and sessions. They are played by
 * test/take-overs.test.ts.
 */

const mine = 'the new word of the owner'
const thiefMailbox = 'mallory@rival.example'

/** As if the victim had signed in six minutes ago. */
const sixMinutesPass = ({ app, victim }: Scene) =>
  allRows(app.database, "update sessions set authenticated_at = now() - interval '6 minutes' where user_id = $1", [
    victim.id
  ])

const sessions: Attack[] = [
  {
    title: 'a stolen access token, to get another way in',
    async play(scene) {
      const { thief, victim, home, rival } = scene
      await sixMinutesPass(scene)
      const { access_token } = victim.tokens
      const as = async (method: 'DELETE' | 'POST', url: string, code: string, payload?: object) =>
        scene.expect(
          await send(thief, home.host, {
            ...{ method, url, headers: bearer(access_token) },
            ...(payload && { payload })
          }),
          code
        )
      const fresh = 'reauthentication_required'
      await as('POST', `${me}/password`, 'invalid_credentials', {
        current_password: wicked,
        new_password: `${wicked}!`
      })
      await as('POST', `${me}/email`, 'invalid_credentials', { email: thiefMailbox, password: wicked })
      await as('POST', totp, fresh)
      await as('POST', `${passkeys}/options`, fresh)
      const { code_challenge } = createVerifier()
      await as('POST', `${me}/identities`, fresh, { provider: 'google', redirect_to: page(home.slug), code_challenge })
      await as('DELETE', `${me}/identities/${unknownId}`, fresh)
      await as('POST', '/api/v1/auth/reauthenticate', 'invalid_credentials', { password: wicked })
      await as('POST', '/api/v1/identity-providers', fresh, {
        ...{ name: 'x', issuer: scene.rivals.at.issuer, client_id: 'x', client_secret: 'x' }
      })
      await as('POST', '/api/v1/tenant/transfer', fresh, { user_id: rival.owner.id })
      await as('DELETE', me, 'invalid_credentials', { password: wicked })
      return undefined
    }
  },
  {
    title: 'a stolen refresh token, which the victim uses as well',
    async play(scene) {
      const { app, thief, victim } = scene
      const stolen = victim.tokens.refresh_token
      must(await refresh(thief, stolen), 200)
      await allRows(app.database, "update sessions set rotated_at = now() - interval '2 minutes' where user_id = $1", [
        victim.id
      ])
      scene.expect(await refresh(app, stolen), 'refresh_token_reused')
      return undefined
    }
  },
  {
    title: 'a refresh token from before the last one',
    async play(scene) {
      const { app, thief, victim } = scene
      const next = await rotate(app, victim.tokens.refresh_token)
      await rotate(app, next.refresh_token)
      scene.expect(await refresh(thief, victim.tokens.refresh_token), 'refresh_token_reused')
      return undefined
    }
  },
  {
    title: 'sessions from before a new password, and from before a second factor',
    changes: true,
    async play(scene) {
      const { app, thief, victim, home } = scene
      const stolen = must(await login(thief, victim.email, password), 200).json()
      const authenticator = await enroll(app, home)
      scene.expect(await home.with(stolen.access_token, me), 'session_revoked')
      const begun = (await login(app, victim.email, password)).json()
      must(await complete(thief, begun.mfa_token, authenticator.code()), 200)
      const word = { current_password: password, new_password: mine }
      must(await home.send(post('/users/me/password', word)), 204)
      await forgetUsedCodes(app, victim.id)
      return async () => complete(app, (await login(app, victim.email, mine)).json().mfa_token, authenticator.code())
    }
  },
  {
    title: 'a former member, with everything from before',
    prize: 'agency',
    async play(scene) {
      const { app, thief, rival, home, victim } = scene
      await addMember(app, home, rival.owner.id, 'admin')
      const there = must(
        await send(
          thief,
          'localhost',
          post('/auth/switch', { tenant: home.slug }, bearer(rival.owner.tokens.access_token))
        ),
        200
      ).json()
      must(await home.send({ method: 'DELETE', url: `/api/v1/members/${rival.owner.id}` }), 204)
      scene.expect(await home.with(there.access_token, me), 'session_revoked')
      scene.expect(await refresh(thief, there.refresh_token), 'invalid_refresh_token')
      const again = post('/auth/switch', { tenant: home.slug }, bearer(rival.owner.tokens.access_token))
      scene.expect(await send(thief, 'localhost', again), 'not_found')
      scene.expect(
        await send(thief, home.host, post('/auth/login', { email: thiefMailbox, password })),
        'invalid_credentials'
      )
      return () => login(app, victim.email, password)
    }
  }
]

const factors: Attack[] = [
  {
    title: 'a password that is known, against an authenticator app',
    changes: true,
    async play(scene) {
      const { app, thief, victim, home, rival } = scene
      const theirs = await enroll(app, home)
      const begin = async () => (await login(thief, victim.email, password)).json().mfa_token as string
      const token = await begin()
      const own = createAuthenticator('JBSWY3DPEHPK3PXPJBSWY3DPEHPK3PXP')
      for (const code of [own.code(), '000000', 'abcd-efgh-abcd-efgh', theirs.code(9)]) {
        scene.expect(await complete(thief, token, code), 'invalid_credentials')
      }
      const tried = (path: string, body: object) => send(thief, 'localhost', post(path, body))
      scene.expect(await tried('/auth/mfa/totp', { mfa_token: token }), 'invalid_mfa_token')
      scene.expect(await send(thief, 'localhost', { url: me, headers: bearer(token) }), 'invalid_token')
      scene.expect(await tried('/auth/refresh', { refresh_token: token }), 'invalid_refresh_token')
      scene.expect(await tried('/auth/password/reset', { token, password: wicked }), 'link_expired')
      scene.expect(await complete(thief, token, theirs.code(), rival.host), 'tenant_mismatch')
      const bare = post('/auth/mfa', { mfa_token: token })
      scene.expect(await send(thief, 'localhost', bare), 'validation_failed')
      return async () => complete(app, (await login(app, victim.email, password)).json().mfa_token, theirs.code())
    }
  },
  {
    title: 'a code that was seen, and a recovery code that was used',
    changes: true,
    async play(scene) {
      const { app, thief, victim, home } = scene
      const theirs = await enroll(app, home)
      const begin = async () => (await login(app, victim.email, password)).json().mfa_token as string
      const [seen, used] = [theirs.code(), theirs.recovery_codes[0] as string]
      must(await complete(app, await begin(), seen), 200)
      must(await complete(app, await begin(), used), 200)
      for (const code of [seen, used]) scene.expect(await complete(thief, await begin(), code), 'invalid_credentials')
      return async () => complete(app, await begin(), theirs.recovery_codes[1] as string)
    }
  },
  {
    title: 'the token of a sign-in that was completed',
    changes: true,
    async play(scene) {
      const { app, thief, victim, home } = scene
      const theirs = await enroll(app, home)
      const { mfa_token } = (await login(app, victim.email, password)).json()
      must(await complete(app, mfa_token, theirs.code()), 200)
      await forgetUsedCodes(app, victim.id)
      scene.expect(await complete(thief, mfa_token, theirs.code()), 'invalid_credentials')
      return async () =>
        complete(app, (await login(app, victim.email, password)).json().mfa_token, theirs.recovery_codes[0] as string)
    }
  },
  {
    title: 'codes and devices of the attacker for the sign-in of the victim',
    changes: true,
    async play(scene) {
      const { app, thief, victim, home, name } = scene
      const theirs = await enroll(app, home)
      const second = await createTenant(thief, `second-${name}`)
      const own = await enroll(thief, second)
      const { mfa_token } = (await login(thief, victim.email, password)).json()
      for (const code of [own.code(), own.recovery_codes[0] as string]) {
        scene.expect(await complete(thief, mfa_token, code), 'invalid_credentials')
      }
      return async () => complete(app, (await login(app, victim.email, password)).json().mfa_token, theirs.code())
    }
  }
]

const devices: Attack[] = [
  {
    title: 'a passkey that was used on the attacker’s page',
    changes: true,
    async play(scene) {
      const { app, thief, home, rival } = scene
      const { device } = await register(home)
      for (const origin of [
        'https://evil.example',
        originOf(rival),
        `http://x.${home.host}:8080`,
        `http://evil${home.host}:8080`
      ]) {
        scene.expect(await signInWith(thief, home.host, device, { origin }), 'invalid_credentials')
      }
      scene.expect(await signInWith(thief, home.host, device, { rpId: 'evil.example' }), 'invalid_credentials')
      scene.expect(await signInWith(thief, home.host, device, { crossOrigin: true }), 'invalid_challenge')
      return () => signInWith(app, home.host, device)
    }
  },
  {
    title: 'a signature that is replayed',
    changes: true,
    async play(scene) {
      const { app, thief, home } = scene
      const { device } = await register(home)
      const passkey = device.get(await startSignIn(app, home.host))
      must(await send(app, home.host, post('/auth/passkeys', { passkey })), 200)
      scene.expect(await send(thief, home.host, post('/auth/passkeys', { passkey })), 'invalid_credentials')
      return () => signInWith(app, home.host, device)
    }
  },
  {
    title: 'a device of the attacker that claims to be the victim’s',
    changes: true,
    async play(scene) {
      const { app, thief, home, name } = scene
      const { device } = await register(home)
      const second = await createTenant(thief, `second-${name}`)
      const own = await register(second)
      const handle = device.get(await startSignIn(app, home.host)).response.userHandle
      scene.expect(await signInWith(thief, home.host, own.device, { userHandle: handle }), 'invalid_credentials')
      const sameId = createDevice(originOf(second), { id: Buffer.from(device.id, 'base64url') })
      const added = await addPasskey(second, sameId.create(await startPasskey(second)))
      if (added.statusCode === 201) scene.gain('the id of the victim’s passkey')
      scene.expect(await signInWith(thief, home.host, sameId, { origin: originOf(home) }), 'invalid_credentials')
      return () => signInWith(app, home.host, device)
    }
  },
  {
    title: 'a copy of a passkey that counts',
    changes: true,
    async play(scene) {
      const { app, thief, home } = scene
      const { device } = await register(home)
      must(await signInWith(app, home.host, device), 200)
      must(await signInWith(app, home.host, device), 200)
      scene.expect(await signInWith(thief, home.host, device, { counter: 2 }), 'invalid_credentials')
      return () => signInWith(app, home.host, device)
    }
  }
]

export const attacksOnSessions: Attack[] = [...sessions, ...factors, ...devices]
