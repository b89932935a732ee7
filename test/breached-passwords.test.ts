import { createHash } from 'node:crypto'
import { once } from 'node:events'
import { createServer, type RequestListener, type ServerResponse } from 'node:http'
import type { AddressInfo } from 'node:net'
import t, { type Test } from 'tap'
import { createTenant, eventually, mailedTokens, password, post, send, startApp } from './harness.ts'

const breached = 'trustno1 and nobody else'
const padded = 'a password that is only padding'
const sha1 = (text: string) => createHash('sha1').update(text).digest('hex').toUpperCase()

/** A service of breached passwords on loopback. `answer` may be replaced, and what it was asked is kept. */
async function startService(t: Test) {
  const asked: { url: string; padding: unknown; body: string }[] = []
  const service = { url: '', asked, answer: answerLikeTheRealOne as (url: string, reply: ServerResponse) => void }
  const listener: RequestListener = (request, reply) => {
    let body = ''
    request.setEncoding('utf8').on('data', (chunk: string) => {
      body += chunk
    })
    request.on('end', () => {
      asked.push({ url: request.url ?? '', padding: request.headers['add-padding'], body })
      service.answer(request.url ?? '', reply)
    })
  }
  const server = createServer(listener)
  server.listen(0, '127.0.0.1')
  await once(server, 'listening')
  t.teardown(() => {
    server.closeAllConnections()
    server.close()
  })
  service.url = `http://127.0.0.1:${(server.address() as AddressInfo).port}/range/`
  return service
}

function answerLikeTheRealOne(url: string, reply: ServerResponse): void {
  const prefix = url.slice('/range/'.length)
  const entries: [text: string, count: number][] = [
    [breached, 12],
    [padded, 0]
  ]
  const found = entries.filter(([text]) => sha1(text).startsWith(prefix))
  const lines = found.map(([text, count]) => `${sha1(text).slice(5)}:${count}`)
  reply.end([`${'0'.repeat(35)}:3`, ...lines, `${'F'.repeat(35)}:0`].join('\r\n'))
}

t.test('passwords from breaches', async (t) => {
  const service = await startService(t)
  const app = await startApp(t, { BREACH_LIST_URL: service.url, LOG_LEVEL: 'info' })
  const acme = await createTenant(app, 'acme')
  const refusal = { status: 400, code: 'validation_failed' }
  const register = (slug: string, secret: string) =>
    send(app, 'localhost', post('/auth/register', registrationOf(slug, secret)))

  t.test('are refused at every door by which a password comes in', async (t) => {
    t.match((await register('first', breached)).json(), {
      ...refusal,
      errors: [{ path: '/body/password', message: /breach/ }]
    })
    const change = post('/users/me/password', { current_password: password, new_password: breached })
    t.match((await acme.send(change)).json(), { ...refusal, errors: [{ path: '/body/new_password' }] })
    t.equal((await acme.send(post('/invitations', { email: 'bob@example.com', role: 'member' }))).statusCode, 201)
    await eventually(() => mailedTokens(app, 'bob@example.com').length > 0)
    const [token] = mailedTokens(app, 'bob@example.com')
    const accept = { token, name: 'Bob', password: breached }
    t.match((await send(app, 'localhost', post('/invitations/accept', accept))).json(), {
      ...refusal,
      errors: [{ path: '/body/password' }]
    })
    const better = { ...accept, password: 'another correct horse' }
    t.equal((await send(app, 'localhost', post('/invitations/accept', better))).statusCode, 200)
  })

  t.test('leave the server as five digits of a hash', async (t) => {
    t.ok(service.asked.length >= 4)
    for (const { url, padding, body } of service.asked) {
      t.match(url, /^\/range\/[0-9A-F]{5}$/)
      t.equal(padding, 'true', 'the length of the answer tells nothing')
      t.equal(body, '')
    }
    t.ok(service.asked.some(({ url }) => url.endsWith(sha1(breached).slice(0, 5))))
  })

  t.test('are those that were found, and not what pads the answer', async (t) => {
    t.equal((await register('padded', padded)).statusCode, 201)
  })

  t.test('do not matter at sign-in: who has one must get in to change it', async (t) => {
    const before = service.asked.length
    await acme.signIn()
    t.equal(service.asked.length, before)
  })

  const broken: Record<string, (url: string, reply: ServerResponse) => void> = {
    'a service that fails': (_, reply) => reply.writeHead(503).end(),
    'a service that leads elsewhere': (_, reply) => reply.writeHead(302, { location: 'http://127.0.0.1:1/' }).end(),
    'a service that answers with a page': (_, reply) => reply.end('<html>please sign in</html>')
  }
  for (const [what, answer] of Object.entries(broken)) {
    t.test(`${what} keeps nobody out`, async (t) => {
      service.answer = answer
      t.teardown(() => {
        service.answer = answerLikeTheRealOne
      })
      const slug = what.replaceAll(/\W/g, '-')
      t.equal((await register(slug, breached)).statusCode, 201)
      // the service answers again, so that the next test finds the circuit closed
      service.answer = answerLikeTheRealOne
      t.equal((await register(`${slug}-x`, breached)).statusCode, 400)
    })
  }

  t.test('a service that sends without end, or nothing, costs a bounded time and memory', async (t) => {
    service.answer = (_, reply) => {
      const line = Buffer.from(`${'A'.repeat(35)}:1\r\n`.repeat(2000))
      const more = () => {
        while (reply.write(line));
      }
      reply.on('drain', more)
      more()
    }
    t.equal((await register('without-end', breached)).statusCode, 201)
    service.answer = () => {}
    t.equal((await register('silent-one', breached)).statusCode, 201)
    t.equal((await register('silent-two', breached)).statusCode, 201)
    const before = service.asked.length
    t.equal((await register('not-asked', breached)).statusCode, 201)
    t.equal(service.asked.length, before, 'after three failures it is left alone')
    const families = await app.metrics.collect()
    const counts = families.find(({ name }) => name === 'aggios_breached_password_lookups_total')?.samples
    t.match(counts, [{ labels: { outcome: 'breached' } }, {}, { labels: { outcome: 'failed' }, value: 7 }])
  })
})

t.test('without the setting nobody is asked', async (t) => {
  const app = await startApp(t)
  t.equal((await send(app, 'localhost', post('/auth/register', registrationOf('quiet', breached)))).statusCode, 201)
})

const registrationOf = (slug: string, secret: string) => ({
  tenant: { name: `The ${slug} agency`, slug },
  name: 'Ada',
  email: `ada@${slug}.example`,
  password: secret
})
