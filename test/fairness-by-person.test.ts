import { setTimeout as sleep } from 'node:timers/promises'
import t from 'tap'
import { createKeyedSemaphore } from '../src/limits/keyed-semaphore.ts'
import { createTenant, eventually, post, send, startApp, type Tenant } from './harness.ts'
import { me } from './requests.ts'

// bounded in time: what others wait for beside who asks a lot

/*
 * Anybody can make several agencies, so limits count the person and not only the agency.
 */

/** Makes agencies of one person. Resolves to the person's token for each. */
async function tokensOf(owner: Tenant, slugs: string[]): Promise<{ host: string; token: string; tenant_id: string }[]> {
  const all = [{ host: owner.host, token: owner.owner.tokens.access_token, tenant_id: owner.id }]
  for (const slug of slugs) {
    const created = (await owner.send(post('/tenants', { name: `The ${slug} agency`, slug }))).json()
    const { access_token } = (await owner.send(post('/auth/switch', { tenant: slug }))).json()
    all.push({ host: `${slug}.localhost`, token: access_token, tenant_id: created.id })
  }
  return all
}

t.test('limits count a person in all their agencies', async (t) => {
  const app = await startApp(t, { RATE_LIMIT: '20/1h', RATE_LIMIT_AUTH: '2/1h' })
  const [eve, rival] = [await createTenant(app, 'eve'), await createTenant(app, 'rival')]
  const agencies = await tokensOf(eve, ['eve-two'])
  const ask = (i: number, url: string | object = me) => {
    const { host, token } = agencies[i % 2] as (typeof agencies)[number]
    const request = typeof url === 'string' ? { url } : url
    return send(app, host, { ...request, headers: { authorization: `Bearer ${token}` } })
  }
  t.test('on a route that is counted by itself', async (t) => {
    const invite = (i: number) => ask(i, post('/invitations', { email: `new${i}@eve.example`, role: 'member' }))
    const replies = [await invite(0), await invite(1), await invite(2), await invite(3)]
    t.strictSame(
      replies.map(({ statusCode }) => statusCode),
      [201, 201, 429, 429]
    )
  })
  t.test('where agencies and sessions are made, and evidence is checked', async (t) => {
    const fresh = await createTenant(await startApp(t, { RATE_LIMIT_AUTH: '1/1h' }), 'fresh')
    for (const [request, allowed] of [
      [post('/tenants', { name: 'Another', slug: 'another' }), 1],
      [post('/auth/switch', { tenant: 'another' }), 1],
      [{ method: 'GET', url: '/api/v1/audit-events/verify' }, 3]
    ] as const) {
      const statuses = []
      for (let i = 0; i <= allowed; i++) statuses.push((await fresh.send(request)).statusCode)
      t.strictSame(
        statuses.slice(-2).map((status) => status === 429),
        [false, true],
        request.url
      )
    }
  })
  t.test('and all their requests', async (t) => {
    const statuses = []
    for (let i = 0; i < 20; i++) statuses.push((await ask(i)).statusCode)
    // earlier requests count too
    t.equal(statuses.filter((status) => status === 200).length, 20 - 2 - 4)
    t.equal((await rival.send(me)).statusCode, 200, 'others go on')
  })
})

t.test('places count a person in all their agencies', async (t) => {
  const app = await startApp(t, { DATABASE_POOL: '6' })
  const [eve, rival] = [await createTenant(app, 'eve'), await createTenant(app, 'rival')]
  const agencies = await tokensOf(eve, ['eve-two', 'eve-three'])

  t.test('of requests under way', async (t) => {
    let open = () => {}
    const door = new Promise<void>((done) => {
      open = done
    })
    const { query } = app.gate
    let waiting = 0
    app.gate.query = async (scope, statement, values) => {
      if (statement.name === 'read_user') {
        waiting++
        await door
      }
      return query(scope, statement, values)
    }
    const ask = ({ host, token }: { host: string; token: string }) =>
      send(app, host, { url: me, headers: { authorization: `Bearer ${token}` } })
    const held = agencies.flatMap((agency) => Array.from({ length: 60 }, () => ask(agency)))
    await eventually(() => waiting === 128)
    const other = rival.send(me)
    await eventually(() => waiting === 129)
    open()
    t.equal((await other).statusCode, 200)
    const codes = (await Promise.all(held)).map(({ statusCode }) => statusCode)
    t.equal(codes.filter((code) => code === 200).length, 128)
    t.equal(codes.filter((code) => code === 503).length, 3 * 60 - 128)
    app.gate.query = query
    t.strictSame(
      (await Promise.all(agencies.map(ask))).map(({ statusCode }) => statusCode),
      [200, 200, 200],
      'given back'
    )
  })
  t.test('of the connections', async (t) => {
    let working = 0
    let most = 0
    const work = async () => {
      most = Math.max(most, ++working)
      await sleep(50)
      working--
    }
    const all = agencies.flatMap(({ tenant_id }) =>
      Array.from({ length: 4 }, () => app.gate.transaction({ tenant_id, user_id: eve.owner.id, request: '' }, work))
    )
    await sleep(10)
    t.equal((await rival.send({ method: 'PATCH', url: me, payload: { name: 'Ada' } })).statusCode, 200)
    await Promise.all(all)
    t.equal(most, 3, 'half of the pool')
  })
})

t.test('a share of several owners', async (t) => {
  const semaphore = createKeyedSemaphore({ concurrency: 2, depth: 5, timeoutMs: 100 })
  let running = 0
  let most = 0
  const job = async () => {
    most = Math.max(most, ++running)
    await sleep(20)
    running--
  }
  await Promise.all(['a', 'b', 'c'].flatMap((tenant) => [1, 2].map(() => semaphore.run(['eve', tenant], job))))
  t.equal(most, 2, 'counts for each of them')
  const held = [1, 2].map(() => semaphore.run(['eve', 'a'], () => sleep(300)))
  const waiting = semaphore.run(['eve', 'b'], job)
  await Promise.all([1, 2].map(() => semaphore.run(['ada', 'b'], job)))
  await t.rejects(waiting, { message: 'the share stayed taken' })
  await t.rejects(semaphore.run(['ada', 'a'], job), { message: 'the share stayed taken' }, 'of the second')
  await Promise.all(held)
  t.equal(semaphore.size(), 0, 'nobody is remembered')
})
