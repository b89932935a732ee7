import { enroll } from './factors.ts'
import {
  allRows,
  createTenant,
  eventually,
  mailedTokens,
  mailsTo,
  password,
  post,
  send,
  type Tenant
} from './harness.ts'
import { forgot, forgotToken, linkMailedBy, mailsAreSent, paths, reset, verify } from './mailed-links.ts'
import { register, signInWith } from './passkey-device.ts'
import { createVerifier, page } from './providers.ts'
import { bearer, login, me } from './requests.ts'
import { type Attack, must, type Scene, wicked } from './take-over-world.ts'

/*
 * Attacks on accounts by their addresses and by mailed links. They are played by test/take-overs.test.ts.
 */

const mine = 'the new word of the owner'
const thiefMailbox = 'mallory@rival.example'

/** The attacker registers an address before its owner does. From now on the account is the victim's, by right. */
async function squat(scene: Scene): Promise<Tenant> {
  const squatted = await createTenant(scene.thief, `fake-${scene.name}`, `late@${scene.domain}`)
  scene.victim = squatted.owner
  scene.words.push(password)
  return squatted
}

/** The owner of the address takes the account by the mailbox, and comes in with a password. */
async function recover({ app, victim }: Scene) {
  must(await reset(app, await forgotToken(app, victim.email), mine), 204)
  return () => login(app, victim.email, mine)
}

const squatters: Attack[] = [
  {
    title: 'an address that the attacker has registered first: the password and the sessions',
    changes: true,
    async play(scene) {
      await squat(scene)
      return recover(scene)
    }
  },
  {
    title: 'an address that the attacker has registered first: an authenticator app',
    changes: true,
    async play(scene) {
      const squatted = await squat(scene)
      const { recovery_codes } = await enroll(scene.thief, squatted)
      const honest = await recover(scene)
      scene.expect(await login(scene.thief, scene.victim.email, recovery_codes[0]), 'invalid_credentials')
      return honest
    }
  },
  {
    title: 'an address that the attacker has registered first: a passkey',
    changes: true,
    async play(scene) {
      const squatted = await squat(scene)
      const { device } = await register(squatted)
      const honest = await recover(scene)
      scene.expect(await signInWith(scene.thief, squatted.host, device), 'invalid_credentials')
      return honest
    }
  },
  {
    title: 'an address that the attacker has registered first: an identity at a provider',
    changes: true,
    async play(scene) {
      const squatted = await squat(scene)
      const { code_challenge } = createVerifier()
      const payload = { provider: 'google', redirect_to: page(squatted.slug), code_challenge }
      const reply = await squatted.send(post('/users/me/identities', payload))
      if (reply.statusCode === 200) scene.gain('a link to an identity of the attacker')
      return recover(scene)
    }
  },
  {
    title: 'an address that the attacker has registered first: a change of the address that waits',
    changes: true,
    async play(scene) {
      const { app, thief, name } = scene
      const squatted = await squat(scene)
      await mailsAreSent(app)
      const elsewhere = `box-${name}@rival.example`
      must(await squatted.send(post('/users/me/email', { email: elsewhere, password })), 202)
      await mailsAreSent(app)
      const [before] = mailedTokens(app, elsewhere, paths.verify)
      const atTheOwner = mailedTokens(app, scene.victim.email, paths.verify).at(-1)
      const honest = await recover(scene)
      scene.expect(await verify(thief, before), 'link_expired')
      scene.expect(await verify(app, atTheOwner), 'link_expired')
      return honest
    }
  },
  {
    title: 'an address that the attacker has registered first, when its owner is invited',
    changes: true,
    async play(scene) {
      const { app, home } = scene
      const squatted = await squat(scene)
      const { email } = scene.victim
      must(await home.send(post('/invitations', { email, role: 'member' })), 201)
      app.mail.wake()
      await eventually(() => mailedTokens(app, email).length > 0)
      const [token] = mailedTokens(app, email)
      const accept = post('/invitations/accept', { token, name: 'The owner', password: mine })
      const tokens = must(await send(app, home.host, accept), 200).json()
      const id = (await home.with(tokens.access_token, me)).json().id
      if (id === squatted.owner.id) scene.gain('the account of the owner')
      scene.victim = { id, email, tokens }
      return () => login(app, email, mine)
    }
  }
]

const links: Attack[] = [
  {
    title: 'a mail for a new password that leads to the attacker’s host',
    async play(scene) {
      const { app, thief, victim } = scene
      for (const headers of [
        { host: 'evil.example' },
        { 'x-forwarded-host': 'evil.example' },
        { 'x-forwarded-proto': 'ftp', 'x-forwarded-port': '666', 'x-forwarded-prefix': '/evil' },
        { forwarded: 'host=evil.example;proto=http' },
        { origin: 'https://evil.example', referer: 'https://evil.example/' }
      ]) {
        await thief.inject({
          ...post('/auth/password/forgot', { email: victim.email }),
          headers: { host: 'localhost', ...headers }
        })
        await mailsAreSent(app)
      }
      const texts = mailsTo(app, victim.email).map(({ text }) => text)
      if (!texts.some((text) => text.includes(paths.reset))) scene.expectError('no mail', 'a mail')
      if (texts.some((text) => /evil|666|ftp:/.test(text))) scene.gain('a link to the attacker’s host')
      return undefined
    }
  },
  {
    title: 'a mail for a new password that goes to two addresses',
    async play(scene) {
      const { app, thief, victim } = scene
      await mailsAreSent(app)
      const before = mailsTo(app, thiefMailbox).length
      for (const email of [
        [victim.email, thiefMailbox],
        `${victim.email},${thiefMailbox}`,
        `${victim.email}\r\nBcc: ${thiefMailbox}`,
        `${victim.email} <${thiefMailbox}>`,
        `"${thiefMailbox} x"@${scene.domain}`,
        { email: victim.email }
      ]) {
        scene.expect(await send(thief, 'localhost', post('/auth/password/forgot', { email })), 'validation_failed')
      }
      await mailsAreSent(app)
      if (mailsTo(app, thiefMailbox).length > before) scene.gain('a mail for the victim')
      return undefined
    }
  },
  {
    title: 'the token of a mail to the attacker, changed to be one for the victim',
    async play(scene) {
      const { app, thief, victim } = scene
      const theirs = Buffer.from(await forgotToken(app, victim.email), 'base64url')
      const own = Buffer.from(await forgotToken(thief, thiefMailbox), 'base64url')
      const [row] = await allRows(app.database, 'select id from account_links where user_id = $1 and purpose = $2', [
        ...[victim.id, 'reset']
      ])
      const id = Buffer.from(row.id.replaceAll('-', ''), 'hex')
      // the id of the victim's link in the attacker's token, each half of one with the other of the other, and other ends
      const forged = [
        Buffer.concat([own.subarray(0, 27), id, own.subarray(43)]),
        Buffer.concat([theirs.subarray(0, 47), own.subarray(47)]),
        Buffer.concat([theirs.subarray(0, 47), Buffer.alloc(32)]),
        theirs.subarray(0, 47)
      ]
      for (const each of forged) scene.expect(await reset(thief, each.toString('base64url'), wicked), 'link_expired')
      return undefined
    }
  },
  {
    title: 'the token of a mail for another purpose',
    async play(scene) {
      const { app, thief, victim, home } = scene
      const token = await linkMailedBy(app, victim.email, 'verify', async () => {
        await allRows(app.database, 'update users set email_verified_at = null where id = $1', [victim.id])
        must(await home.send(post('/auth/email/resend', {})), 202)
      })
      scene.expect(await reset(thief, token, wicked), 'link_expired')
      scene.expect(await send(thief, 'localhost', post('/invitations/accept', { token })), 'not_found')
      must(await verify(app, token), 204)
      return undefined
    }
  },
  {
    title: 'the token of an older mail, of a used one, and of one from before a new password',
    changes: true,
    async play(scene) {
      const { app, thief, victim, home } = scene
      const older = await forgotToken(app, victim.email)
      const newer = await forgotToken(app, victim.email)
      scene.expect(await reset(thief, older, wicked), 'link_expired')
      must(await reset(app, newer, mine), 204)
      scene.expect(await reset(thief, newer, wicked), 'link_expired')
      const last = await forgotToken(app, victim.email)
      const { access_token } = must(await login(app, victim.email, mine), 200).json()
      const word = { current_password: mine, new_password: `${mine} again` }
      must(await home.with(access_token, post('/users/me/password', word)), 204)
      scene.expect(await reset(thief, last, wicked), 'link_expired')
      return () => login(app, victim.email, `${mine} again`)
    }
  },
  {
    title: 'the token of the victim’s mail on the host of the attacker’s agency',
    async play(scene) {
      const { app, thief, victim, home, rival } = scene
      const token = await linkMailedBy(app, victim.email, 'reset', () =>
        forgot(app, victim.email, { headers: { host: home.host } })
      )
      const reply = await reset(thief, token, wicked, rival.host)
      scene.expect(reply, reply.json().code === 'tenant_mismatch' ? 'tenant_mismatch' : 'link_expired')
      return undefined
    }
  },
  {
    title: 'an invitation of somebody else, and one that names another address',
    async play(scene) {
      const { app, thief, home, rival, name } = scene
      const email = `guest-${name}@mail.example`
      const { id } = must(await home.send(post('/invitations', { email, role: 'admin' })), 201).json()
      const { id: own } = must(
        await rival.send(post('/invitations', { email: `x-${name}@mail.example`, role: 'viewer' })),
        201
      ).json()
      const token = app.oneTimeTokens.issue('invitation', { tenant_id: home.id, id, generation: 1 })
      const accept = (body: object, headers = {}) =>
        send(thief, 'localhost', post('/invitations/accept', body, headers))
      // the attacker's session does not accept what was sent to another address
      scene.expect(await accept({ token }, bearer(rival.owner.tokens.access_token)), 'forbidden')
      const mixed = Buffer.from(
        app.oneTimeTokens.issue('invitation', { tenant_id: rival.id, id: own, generation: 1 }),
        'base64url'
      )
      Buffer.from(home.id.replaceAll('-', ''), 'hex').copy(mixed, 11)
      const person = { name: 'Mallory', password: wicked }
      scene.expect(await accept({ token: mixed.toString('base64url'), ...person }), 'not_found')
      scene.expect(
        await accept({ token: mixed.toString('base64url'), ...person, email: 'x@y.example' }),
        'validation_failed'
      )
      return undefined
    }
  }
]

export const attacksOnAddresses: Attack[] = [...squatters, ...links]
