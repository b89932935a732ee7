import { existsSync } from 'node:fs'
import { join } from 'node:path'
import t from 'tap'
import { createOneTimeTokens, type LinkPurpose } from '../src/auth/one-time-tokens.ts'
import { createKeyRing } from '../src/keys.ts'
import { nilUuid } from '../src/uuids.ts'
import { allRows, clientFolder, createTestDatabase, password, startServer, testEnvironment } from './harness.ts'
import { singleSecret } from './tokens.ts'

/*
 * The TypeScript client sets a forgotten password, changes an address, and asks with the tags that it has.
 */

const built = join(clientFolder, 'dist', 'index.js')
const skip =
  !existsSync(built) && process.env.CI !== 'true' && 'npm --prefix client ci && npm --prefix client run build'

t.test('the TypeScript client', { skip }, async (t) => {
  const database = await createTestDatabase(t)
  const server = await startServer(t, testEnvironment(database, { JWT_SECRET: singleSecret }))
  const { createAggiosClient, memoryStore } = await import(built)
  const store = memoryStore()
  const sent: { method: string; path: string; tag: string | null; status: number }[] = []
  const client = createAggiosClient({
    baseUrl: server.url,
    store,
    async fetch(request: Request) {
      const reply = await fetch(request)
      const { method, url, headers } = request
      sent.push({ method, path: new URL(url).pathname, tag: headers.get('if-none-match'), status: reply.status })
      return reply
    }
  })
  const email = 'ada@acme.example'
  await client.register({ tenant: { name: 'Acme', slug: 'acme' }, name: 'Ada', email, password })
  const tokens = createOneTimeTokens(createKeyRing([singleSecret], 'access token'))

  /** The token of the newest mail of this purpose. */
  async function tokenOf(purpose: LinkPurpose): Promise<string> {
    for (;;) {
      const text = `select l.id from account_links l join account_mails m on m.link_id = l.id
        where l.purpose = $1 and m.sent_at is not null`
      const [link] = await allRows(database, text, [purpose])
      if (link) return tokens.issue(purpose, { tenant_id: nilUuid, id: link.id, generation: 1 })
      await new Promise((done) => setTimeout(done, 50))
    }
  }

  t.test('confirms the address, and changes it', async (t) => {
    await client.verifyEmail(await tokenOf('verification'))
    await client.changeEmail({ email: 'ada.lovelace@acme.example', password })
    for (const purpose of ['change_from', 'change_to'] as const) await client.verifyEmail(await tokenOf(purpose))
    const { data } = await client.GET('/api/v1/users/me')
    t.match(data, { email: 'ada.lovelace@acme.example', email_verified: true })
  })
  t.test('asks with the tag of the newest reply, also of one to a change, until the next sign-in', async (t) => {
    const me = async () => (await client.GET('/api/v1/users/me')).data
    sent.length = 0
    const { email, name } = await me()
    t.strictSame(await me(), await me(), 'what has not changed is not sent again')
    await client.PATCH('/api/v1/users/me', { body: { name: 'Ada King' } })
    t.match(await me(), { email, name: 'Ada King' })
    await client.PATCH('/api/v1/users/me', { body: { name } })
    t.equal((await me()).name, name)
    t.strictSame(
      sent.map(({ method, status }) => `${method} ${status}`),
      ['GET 304', 'GET 304', 'GET 304', 'PATCH 200', 'GET 304', 'PATCH 200', 'GET 304']
    )
    t.equal((await client.GET('/api/v1/users/me', { headers: { 'cache-control': 'no-cache' } })).response.status, 200)
    // somebody else in the same agency may have the same tag
    await client.signIn({ email, password })
    sent.length = 0
    t.equal((await me()).name, name)
    t.match(sent, [{ method: 'GET', tag: null, status: 200 }])
  })
  t.test('sets a new password, is signed out by it, and says when a link is no longer good', async (t) => {
    const fresh = 'another correct horse battery'
    await client.requestPasswordReset('nobody@acme.example')
    await client.requestPasswordReset('ada.lovelace@acme.example')
    const token = await tokenOf('reset')
    await client.resetPassword({ token, password: fresh })
    t.equal(await store.read(), undefined)
    await t.rejects(client.resetPassword({ token, password: fresh }), { code: 'link_expired' })
    await t.rejects(client.verifyEmail(token), { code: 'link_expired' })
    await client.signIn({ email: 'ada.lovelace@acme.example', password: fresh })
    t.equal((await client.GET('/api/v1/users/me')).response.status, 200)
  })
})
