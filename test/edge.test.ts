import { once } from 'node:events'
import http from 'node:http'
import type { AddressInfo } from 'node:net'
import t from 'tap'
import { eventually } from './harness.ts'
import { ask, complaints, program, startTraefik } from './traefik.ts'

/*
 * What Traefik itself stops, in front of a server that answers everything: floods, too many requests at once, large headers. And what
 * it leaves alone.
 */

/** Answers at once, but for /hangs. Keeps what it has received. */
async function startBackend(t: { teardown(work: () => unknown): unknown }) {
  const received: http.IncomingMessage[] = []
  const server = http.createServer((request, reply) => {
    if (request.url?.startsWith('/api/')) return void reply.end('{}')
    received.push(request)
    request.resume()
    if (request.url === '/hangs') return
    if (request.url === '/dies') return void request.socket.destroy()
    request.on('end', () => reply.end('{}'))
  })
  server.listen(0, '127.0.0.1')
  await once(server, 'listening')
  t.teardown(() => {
    server.close()
    server.closeAllConnections()
  })
  return { received, url: `http://127.0.0.1:${(server.address() as AddressInfo).port}` }
}

t.test('at the edge', { skip: program.skip }, async (t) => {
  const { received, url } = await startBackend(t)
  const traefik = await startTraefik(t, { BACKEND_URLS: url, EDGE_RATE_LIMIT: '2' })
  const entry = traefik.port('local')

  t.test('a flood from one address is stopped, and other addresses are not', async (t) => {
    const answers: Awaited<ReturnType<typeof ask>>[] = []
    for (let i = 0; i < 30; i++) {
      // whatever it says about itself
      const headers = { 'x-forwarded-for': `203.0.113.${i}` }
      answers.push(await ask(entry, '/', { from: '127.0.0.21', headers }))
    }
    const refused = answers.filter(({ status }) => status === 429)
    t.ok(
      refused.length >= 10 && refused.length <= 22,
      `all but a burst of 8 and what the time gives back: ${refused.length}`
    )
    t.match(refused[0]?.headers, { 'retry-after': /^\d+$/ })
    t.equal((await ask(entry, '/', { from: '127.0.0.22' })).status, 200)
  })

  t.test('headers are bounded, above what the backend accepts', async (t) => {
    const send = (length: number) => ask(entry, '/', { from: '127.0.0.23', headers: { 'x-long': 'x'.repeat(length) } })
    t.equal((await send(15_000)).status, 200)
    const before = received.length
    const { status } = await send(80_000)
    t.equal(status, 431)
    t.equal(received.length, before)
  })

  t.test('a body passes while it comes: nothing of an upload is kept', async (t) => {
    const upload = http.request({ port: entry, method: 'POST', path: '/upload', localAddress: '127.0.0.24' })
    upload.on('error', () => {})
    upload.write('the first bytes')
    await eventually(() => received.at(-1)?.url === '/upload')
    t.notOk(received.at(-1)?.complete)
    upload.end()
    const [reply] = (await once(upload, 'response')) as [http.IncomingMessage]
    t.equal(reply.statusCode, 200)
    reply.resume()
  })

  t.test('the log of requests has no token, and no header', async (t) => {
    const headers = { authorization: 'Bearer s3cr3t', cookie: 'a=s3cr3t', referer: 'http://a.example/?t=s3cr3t' }
    await ask(entry, '/links/s3cr3t?token=s3cr3t', { from: '127.0.0.25', headers })
    const entries = () => traefik.log().filter(({ ClientHost }) => ClientHost === '127.0.0.25')
    await eventually(() => entries().length > 0)
    t.match(entries()[0], { DownstreamStatus: 200, RequestMethod: 'GET', Duration: Number })
    t.notMatch(JSON.stringify(traefik.log()), 's3cr3t')
  })

  t.test('answers do not say what has made them', async (t) => {
    const failed = await ask(entry, '/dies', { method: 'POST', from: '127.0.0.26' })
    t.equal(failed.status, 502)
    for (const name of ['server', 'x-powered-by', 'via']) t.notHas(failed.headers, name)
  })

  t.test('Traefik has nothing to complain about', async (t) => {
    t.strictSame(complaints(traefik), [])
  })
})

t.test('without a limit of its own', { skip: program.skip }, async (t) => {
  const { url } = await startBackend(t)
  const env = { BACKEND_URLS: url, EDGE_PROXIES: '1' }
  const traefik = await startTraefik(t, env, ({ entryPoints: { local } }) => {
    Object.assign(local as object, { forwardedHeaders: { trustedIPs: ['127.0.0.31'] } })
  })
  const entry = traefik.port('local')
  const from = '127.0.0.31'

  t.test('the requests of one client under way are bounded, also where a proxy passes them on', async (t) => {
    const hanging: http.ClientRequest[] = []
    t.teardown(() => {
      for (const request of hanging) request.destroy()
    })
    const statusBehind = async (client: string, path = '/') =>
      (await ask(entry, path, { from, headers: { 'x-forwarded-for': client } })).status
    const hang = () => {
      const headers = { 'x-forwarded-for': '203.0.113.1' }
      const request = http.get({ port: entry, path: '/hangs', localAddress: from, headers, agent: false })
      hanging.push(request.on('error', () => {}))
    }
    // more and more, because Traefik counts anew where it has just read its routes again
    await eventually(async () => {
      for (let i = 0; i < 25; i++) hang()
      return (await statusBehind('203.0.113.1')) === 429
    })
    t.ok(hanging.length >= 250, `${hanging.length} were opened`)
    t.equal(await statusBehind('203.0.113.1', '/api/v1/events'), 200, 'streams of events are counted by themselves')
    t.equal(await statusBehind('203.0.113.2'), 200, 'another client of the same proxy')
    t.equal(await statusBehind('203.0.113.1, 203.0.113.3'), 200, 'only what the proxy itself says counts')
  })
})
