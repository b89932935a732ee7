import t from 'tap'
import { allRows, createTenant, createTestDatabase, password, post, send, startApp, type TestApp } from './harness.ts'

/*
 * The number of agencies that a person, or an address, can make in a day is limited.
 */

const another = (slug: string, headers = {}) => post('/tenants', { name: 'Another agency', slug }, headers)
const register = (app: TestApp, slug: string, remoteAddress: string, email = `owner@${slug}.example`) =>
  send(app, 'localhost', {
    ...post('/auth/register', { tenant: { name: 'An agency', slug }, name: 'Ada', email, password }),
    remoteAddress
  })

t.test('a person makes so many agencies a day', async (t) => {
  const database = await createTestDatabase(t)
  const app = await startApp(t, { TENANTS_PER_DAY: '3' }, database)
  const acme = await createTenant(app, 'acme')

  t.test('the first one counts, and so does what is made at the same moment', async (t) => {
    const replies = await Promise.all(Array.from({ length: 8 }, (_, i) => acme.send(another(`acme-${i}`))))
    const refused = replies.filter(({ statusCode }) => statusCode === 429)
    t.equal(replies.filter(({ statusCode }) => statusCode === 201).length, 2)
    t.equal(refused.length, 6)
    for (const reply of refused) {
      t.match(reply.json(), { code: 'rate_limited', detail: /3 agencies a day/ })
      const wait = Number(reply.headers['retry-after'])
      t.ok(wait > 86_000 && wait <= 86_400, `${wait} s`)
    }
    const [{ count }] = (await allRows(database, 'select count(*)::int from tenants')) as [{ count: number }]
    t.equal(count, 3, 'and nothing else is there')
  })
  t.test('from whichever agency, process and time since the start', async (t) => {
    const restarted = await startApp(t, { TENANTS_PER_DAY: '3' }, database)
    const [{ slug }] = (await allRows(database, "select slug from tenants where slug like 'acme-%'")) as [
      { slug: string }
    ]
    const { access_token } = (await acme.send(post('/auth/switch', { tenant: slug }))).json()
    for (const token of [access_token, acme.owner.tokens.access_token]) {
      const reply = await send(restarted, 'localhost', another('acme-x', { authorization: `Bearer ${token}` }))
      t.equal(reply.statusCode, 429)
    }
  })
  t.test('and more when the day is over', async (t) => {
    await allRows(database, "update tenants set created_at = created_at - interval '1 day'")
    t.equal((await acme.send(another('next-day'))).statusCode, 201)
  })
  t.test('what was answered under a key is answered again', async (t) => {
    const rival = await createTenant(app, 'rival')
    const key = { 'idempotency-key': 'an-agency' }
    const first = await rival.send(another('rival-one', key))
    t.equal(first.statusCode, 201)
    t.equal((await rival.send(another('rival-two'))).statusCode, 201)
    t.equal((await rival.send(another('rival-three'))).statusCode, 429)
    const again = await rival.send(another('rival-one', key))
    t.equal(again.statusCode, 201)
    t.strictSame(again.json(), first.json())
  })
})

t.test('from one address four times as many are made', async (t) => {
  const app = await startApp(t, { TENANTS_PER_DAY: '1' })
  t.equal((await register(app, 'taken', '192.0.2.1')).statusCode, 201)
  t.test('what is refused for something else does not count', async (t) => {
    for (let i = 0; i < 6; i++) {
      t.equal((await register(app, 'taken', '192.0.2.9', `p${i}@example.com`)).json().code, 'slug_taken')
      t.equal((await register(app, `free-${i}`, '192.0.2.9', 'owner@taken.example')).json().code, 'email_taken')
    }
    t.equal((await register(app, 'after-all', '192.0.2.9')).statusCode, 201)
  })
  t.test('by strangers and by people', async (t) => {
    for (let i = 0; i < 3; i++) t.equal((await register(app, `office-${i}`, `2001:db8:1:1::${i}`)).statusCode, 201)
    const founder = await createTenant(app, 'founder')
    await allRows(app.database, "update tenants set created_at = created_at - interval '1 day' where slug = 'founder'")
    const made = (slug: string) => founder.send({ ...another(slug), remoteAddress: '2001:db8:1:1::99' })
    t.equal((await made('office-3')).statusCode, 201)
    await allRows(app.database, "update tenants set created_at = created_at - interval '1 day' where slug = 'office-3'")
    for (const reply of [await made('office-4'), await register(app, 'office-5', '2001:db8:1:1::5')]) {
      t.match(reply.json(), { status: 429, code: 'rate_limited', detail: /4 agencies a day .* one address/ })
      t.ok(Number(reply.headers['retry-after']) > 80_000)
    }
    t.equal((await register(app, 'office-6', '2001:db8:1:2::5')).statusCode, 201, 'others have theirs')
    const slugs = await allRows(app.database, "select slug from tenants where slug in ('office-4', 'office-5')")
    t.strictSame(slugs, [], 'and nothing of it stays')
  })
})

t.test('0 is no limit', async (t) => {
  const app = await startApp(t, { TENANTS_PER_DAY: '0' })
  const acme = await createTenant(app, 'acme')
  for (let i = 0; i < 12; i++) t.equal((await acme.send(another(`acme-${i}`))).statusCode, 201)
})
