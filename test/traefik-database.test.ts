import t from 'tap'
import { startFaultProxy } from './fault-proxy.ts'
import { createTestDatabase, eventually, startServer, testEnvironment } from './harness.ts'
import { ask, program, registration, startTraefik } from './traefik.ts'

// bounded in time: how soon a proxy notices

/*
 * Traefik while the database is away: clients get answers of the product, never a page of the proxy.
 */

t.test('two processes behind Traefik, each on its own way to the database', { skip: program.skip }, async (t) => {
  const database = await createTestDatabase(t)
  const origin = 'https://console.example'
  const url = new URL(database.serving)
  const ways = [await startFaultProxy(t, Number(url.port)), await startFaultProxy(t, Number(url.port))]
  const servers = await Promise.all(
    ways.map((way) => {
      const env = { TRUST_PROXY: '127.0.0.1', CORS_ORIGINS: origin, DATABASE_URL: way.through(url.href) }
      return startServer(t, testEnvironment(database, env))
    })
  )
  const urls = servers.map(({ port }) => `http://127.0.0.1:${port}`)
  const traefik = await startTraefik(t, { BACKEND_URLS: urls.join(',') })
  const entry = traefik.port('local')
  const registered = await ask(entry, '/api/v1/auth/register', {
    host: 'localhost',
    method: 'POST',
    body: registration('acme')
  })
  const headers = { authorization: `Bearer ${registered.json().access_token}`, origin }
  const read = () => ask(entry, '/api/v1/tenant', { host: 'acme.localhost', headers })
  const state = async (service: string) => {
    const reply = await ask(entry, `/api/http/services/${service}@file`, { host: 'traefik.localhost' })
    const statuses = reply.json().serverStatus as Record<string, string>
    return urls.map((each) => statuses[each])
  }
  await eventually(async () => (await state('backend')).every((status) => status === 'UP'))
  t.equal((await read()).status, 200)

  t.test('one that alone has lost it gets no requests', async (t) => {
    await ways[0]?.add({ type: 'refuse' })
    await eventually(async () => (await state('backend')).join() === 'DOWN,UP')
    const statuses = new Set<number>()
    for (let i = 0; i < 20; i++) statuses.add((await read()).status)
    t.strictSame([...statuses], [200])
    await ways[0]?.clear()
    await eventually(async () => (await state('backend')).join() === 'UP,UP')
  })

  t.test('when all have lost it, each answer is a problem document of the product', async (t) => {
    for (const way of ways) await way.add({ type: 'refuse' })
    const answers: Awaited<ReturnType<typeof read>>[] = []
    const isDown = async () => (await state('backend')).join() === 'DOWN,DOWN'
    // from the first moment until some time after Traefik has noticed
    while (!(await isDown())) answers.push(await read())
    for (let i = 0; i < 20; i++) answers.push(await read())
    t.strictSame(await state('running'), ['UP', 'UP'])
    const refused = answers.filter(({ status }) => status !== 200)
    t.ok(refused.length >= 20, `${refused.length} of ${answers.length} were refused`)
    for (const { status, headers, text } of refused) {
      t.equal(status, 503, text)
      t.match(headers, {
        'content-type': /^application\/problem\+json/,
        'retry-after': /^\d+$/,
        'access-control-allow-origin': origin
      })
    }
    t.match(refused.at(-1)?.json(), { code: 'unavailable', status: 503, request_id: String })
    const health = await ask(entry, '/api/v1/health', { host: 'localhost' })
    t.match(health.json(), { status: 503, checks: { database: { status: 'down' } } })

    for (const way of ways) await way.clear()
    await eventually(async () => (await read()).status === 200)
    await eventually(async () => (await state('backend')).join() === 'UP,UP')
    t.equal((await read()).status, 200)
  })
})
