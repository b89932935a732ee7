import { once } from 'node:events'
import { readdirSync, readFileSync } from 'node:fs'
import http from 'node:http'
import { join } from 'node:path'
import t from 'tap'
import { catalogue } from '../src/http/problems.ts'
import { createTestDatabase, eventually, password, readText, root, startServer, testEnvironment } from './harness.ts'
import { exampleRequest, type OpenApi } from './openapi-fuzz.ts'
import { freePort } from './ports.ts'
import { ask, program, registration, startTraefik } from './traefik.ts'
import { longestBody, type Recorded } from './traffic.ts'
import { startTaker, startWaf, waf } from './waf.ts'
import { type Attack, attacks } from './waf-attacks.ts'

// rehearsal: attacks, and all recorded requests, through the WAF

/*
 * The WAF of deploy/waf: attacks are refused, and what the tests of the product send is not.
 */

/**
 * What tests send with success although it looks like an attack: the product bears it, and the WAF need not. Only a replay of
 * everything (TEST_TRAFFIC) meets these.
 */
const hostile: { what: string; is(request: Recorded): boolean }[] = [
  { what: 'the attacks of this file, sent to the product', is: ({ headers }) => headers['x-request-id'] === asAttack },
  {
    what: 'paths of the system in a name or a search',
    is: ({ url, body }) => /etc(?:\/|%2F)passwd/.test(`${url} ${textOf(body)}`)
  },
  {
    what: 'scripts and paths in place of a tag',
    is: ({ headers }) => /<script|\.\.\//.test(headers['if-none-match'] ?? '')
  },
  {
    what: 'another method in a header, where the product ignores it',
    is: ({ headers, url }) => 'x-http-method-override' in headers && !url.includes('/resumable/')
  },
  { what: 'JSON that begins with a byte order mark', is: ({ body }) => textOf(body).startsWith('\uFEFF') }
]
const asAttack = 'attack-without-waf'
const textOf = (body: string) => Buffer.from(body, 'base64').toString()

const agent = new http.Agent({ keepAlive: true, maxSockets: 8 })
t.teardown(() => agent.destroy())

type Sent = { status: number; headers: http.IncomingHttpHeaders; text: string }

async function send(
  port: number,
  { method = 'GET', path, headers = {}, body }: Omit<Attack, 'what' | 'body'> & { body?: string | Buffer | undefined }
): Promise<Sent> {
  const length = body === undefined ? {} : { 'content-length': Buffer.byteLength(body) }
  const usual = { host: 'acme.localhost', 'user-agent': 'Mozilla/5.0', accept: '*/*', 'x-forwarded-for': '203.0.113.5' }
  const request = http.request({ port, method, path, agent, headers: { ...usual, ...length, ...headers } })
  request.end(body)
  const [reply] = (await once(request, 'response')) as [http.IncomingMessage]
  let text = ''
  for await (const chunk of reply.setEncoding('utf8')) text += chunk
  return { status: reply.statusCode ?? 0, headers: reply.headers, text }
}

t.test('the WAF alone', { skip: waf.skip }, async (t) => {
  const { taken, url } = await startTaker(t)
  const { port, refusals, output } = await startWaf(t, url)
  // begun first, because it takes half a minute
  const slow = http.request({ port, method: 'POST', path: '/api/v1/auth/login', headers: { 'content-length': 100 } })
  slow.setHeader('content-type', 'application/json').write('{"email":')
  const slowReply = once(slow, 'response') as Promise<[http.IncomingMessage]>

  t.test('no attack comes through', async (t) => {
    t.ok(attacks.length >= 60)
    t.match(readText('docs/edge.md'), `sends ${attacks.length} attacks`, 'as the page says')
    for (const { what, ...attack } of attacks) {
      const { status, headers } = await send(port, attack)
      t.ok(status === 403 || status === 400, `${what}: ${status}`)
      t.match(headers, { 'content-type': /^application\/problem\+json/, 'access-control-allow-origin': '*' }, what)
    }
    t.strictSame(taken, [])
  })

  t.test('a refusal is a problem document of the catalogue, and its line has no value', async (t) => {
    const body = JSON.stringify({ email: "' or 1=1--", password: 's3cr3t' })
    const headers = {
      'content-type': 'application/json',
      'x-request-id': 'of-the-test',
      authorization: 'Bearer s3cr3t'
    }
    const path = `/api/v1/files/${'s3cr3t'.repeat(10)}?token=s3cr3t`
    const reply = await send(port, { method: 'POST', path: '/api/v1/auth/login', headers, body })
    t.match(JSON.parse(reply.text), { status: 403, code: 'request_blocked', request_id: 'of-the-test' })
    await send(port, { path: `${path}%27%20or%201=1--` })
    await eventually(() => refusals().at(-1)?.path === '/api/v1/files/*')
    t.match(refusals().at(-2), { request_id: 'of-the-test', status: 403, path: '/api/v1/auth/login' })
    t.match(refusals().at(-2)?.rules, [{ id: 942100, at: ['ARGS:json.email'] }])
    t.notMatch(output(), 's3cr3t')
    t.notMatch(output(), 'or 1=1')
  })

  t.test('its problems are those of the product', async (t) => {
    const source = readText('deploy/waf/problems.go')
    const written = [...source.matchAll(/\{Code: "(\w+)", +Title: "([^"]+)"\}/g)]
    t.equal(written.length, 5)
    for (const [, code = '', title] of written) t.equal(catalogue.get(code)?.title, title, code)
  })

  t.test('what people write is no attack', async (t) => {
    const texts = [
      "Robert'); DROP TABLE students;--",
      "O'Brien & Söhne <3",
      'and 1=1',
      '李小龙 🐉',
      '<script>alert(1)</script>',
      '; ls -la',
      'SELECT * FROM users',
      "' or ''='",
      '**bold** [a link](https://b.example/?a=1&b=2)',
      '$(id) | cat',
      'x'.repeat(200)
    ]
    for (const text of texts) {
      const body = JSON.stringify({
        tenant: { name: text, slug: 'acme' },
        name: text,
        email: "o'brien+news@acme.example",
        password: `${text}!"§$%&/()=?\`´<>|../etc/passwd`
      })
      const headers = { 'content-type': 'application/json' }
      t.equal((await send(port, { method: 'POST', path: '/api/v1/auth/register', headers, body })).status, 204, text)
      const webhook = JSON.stringify({ url: 'https://203.0.113.5/hook?a=1', description: text })
      t.equal(
        (await send(port, { method: 'POST', path: '/api/v1/webhooks', headers, body: webhook })).status,
        204,
        text
      )
      const query = `/api/v1/files?limit=25&q=${encodeURIComponent(text)}`
      t.equal((await send(port, { path: query })).status, 204, query)
    }
  })

  t.test('a sign-in at a provider passes', async (t) => {
    const google = 'email+profile+https%3A%2F%2Fwww.googleapis.com%2Fauth%2Fuserinfo.email+openid'
    const callback = '/api/v1/auth/oauth/google/callback?state=abc.def&iss=https%3A%2F%2Faccounts.google.com'
    const paths = [
      ...[
        'http://localhost:5173/cb',
        'http://192.168.1.4:8081/--/cb',
        'https://app.example/cb#a',
        'app.example://cb'
      ].map((address) => `/api/v1/auth/oauth/google?code_challenge=abc&redirect_to=${encodeURIComponent(address)}`),
      `${callback}&code=4%2F0AfJohXk-x_y&scope=${google}&authuser=0&hd=acme.example&prompt=none`,
      `${callback}&error=access_denied&error_description=The+user+has+denied+access+%28or+not%29`
    ]
    for (const path of paths) t.equal((await send(port, { path })).status, 204, path)
  })

  t.test('bytes of files are not judged, and pass while they come', async (t) => {
    const bytes = Buffer.from(`' union select 1,2,3 -- <script>alert(1)</script> \${jndi:ldap://a}`.repeat(10_000))
    const tus = { 'content-type': 'application/offset+octet-stream', 'tus-resumable': '1.0.0', 'upload-offset': '0' }
    const path = '/api/v1/files/resumable/01a22797-2da6-7058-a87a-40d7768458bd/content'
    t.equal((await send(port, { method: 'PATCH', path, headers: tus, body: bytes })).status, 204)
    t.equal(taken.at(-1)?.length, bytes.length)
    const attack = await send(port, {
      method: 'PATCH',
      path: `${path}?a=<script>alert(1)</script>`,
      headers: tus,
      body: bytes
    })
    t.equal(attack.status, 403, 'but their address is')

    const before = taken.length
    const upload = http.request({
      port,
      method: 'PATCH',
      path,
      headers: { host: 'a.localhost', 'user-agent': 'x', ...tus }
    })
    upload.write('the first bytes')
    await eventually(() => taken.length > before)
    upload.end()
    const [reply] = (await once(upload, 'response')) as [http.IncomingMessage]
    t.equal(reply.statusCode, 204)
    reply.resume()
  })

  t.test('a body that is too long is refused before it is judged', async (t) => {
    const headers = { 'content-type': 'application/json' }
    const body = JSON.stringify({ name: 'x'.repeat(140_000) })
    const reply = await send(port, { method: 'POST', path: '/api/v1/auth/register', headers, body })
    t.match(JSON.parse(reply.text), { status: 413, code: 'payload_too_large' })
  })

  t.test('each operation passes, with the examples of its document', async (t) => {
    const document = JSON.parse(readText('client/openapi.json')) as OpenApi
    for (const [path, operations] of Object.entries(document.paths)) {
      for (const [method, operation] of Object.entries(operations)) {
        const { url, body, form } = exampleRequest(document, path, operation)
        for (const type of Object.keys(operation.requestBody?.content ?? { none: {} })) {
          const headers: Record<string, string> = type === 'none' ? {} : { 'content-type': type }
          const sent = { body: /json/.test(type) ? body : /urlencoded/.test(type) ? form : undefined }
          const { status } = await send(port, { method: method.toUpperCase(), path: url, headers, ...sent })
          t.equal(status, 204, `${method} ${url} ${type}`)
        }
      }
    }
  })

  t.test('the requests of other tests pass', async (t) => {
    const folder = process.env.TEST_TRAFFIC
    const files = folder ? readdirSync(folder).map((name) => join(folder, name)) : []
    const recorded = [join(root, 'test', 'traffic.jsonl'), ...files].flatMap((file) =>
      readFileSync(file, 'utf8').split('\n').filter(Boolean)
    )
    const requests = [...new Set(recorded)].map((line) => JSON.parse(line) as Recorded)
    t.ok(requests.length > 300, `${requests.length} requests`)
    const kept = readText('test/traffic.jsonl').trim().split('\n').length
    t.match(readText('docs/edge.md'), `replays ${kept} requests`, 'as the page says')
    const blocked: string[] = []
    const replay = async () => {
      for (let each = requests.pop(); each !== undefined; each = requests.pop()) {
        const { method, url, headers, body } = each
        const text = Buffer.from(body, 'base64')
        const { 'content-length': _, 'transfer-encoding': __, connection: ___, ...others } = headers
        const payload = text.length > 0 || headers['content-length'] !== undefined ? text : undefined
        // of a longer body the end is not known
        if (text.length === longestBody && /json/.test(headers['content-type'] ?? '')) continue
        const isJudged = !hostile.some(({ is }) => is(each))
        const { status } = await send(port, { method, path: url, headers: others, ...(payload && { body: payload }) })
        if (status !== 204 && isJudged) blocked.push(`${status} ${method} ${url} ${text.subarray(0, 200)}`)
      }
    }
    await Promise.all(Array.from({ length: 8 }, replay))
    t.strictSame(blocked, [])
    for (const { rules, path } of refusals().slice(-blocked.length, blocked.length ? undefined : 0))
      t.comment(path, JSON.stringify(rules))
  })

  t.test('a body that does not come holds nothing for longer than half a minute', async (t) => {
    const [reply] = await slowReply
    t.match(reply, { statusCode: 408, headers: { connection: 'close' } })
    reply.resume()
  })
})

t.test('between Traefik and the product', { skip: waf.skip || program.skip }, async (t) => {
  const database = await createTestDatabase(t)
  const server = await startServer(t, testEnvironment(database, { TRUST_PROXY: '127.0.0.1' }))

  t.test('without it no attack makes the server stumble', async (t) => {
    const statuses = new Map<number, number>()
    for (const { what, ...attack } of attacks) {
      const { status } = await send(server.port, {
        ...attack,
        headers: { ...attack.headers, host: 'localhost', 'x-request-id': asAttack }
      })
      statuses.set(status, (statuses.get(status) ?? 0) + 1)
      t.ok(status < 500, `${what}: ${status}`)
    }
    t.comment(Object.fromEntries(statuses))
  })

  const wafPort = await freePort()
  const traefik = await startTraefik(t, { BACKEND_URLS: server.url, WAF_URL: `http://127.0.0.1:${wafPort}` })
  const entry = traefik.port('local')
  const host = 'acme.localhost'

  // Traefik asks again for a tenth of a second, so the WAF must not start before that
  await t.test('without the WAF there is no way around it', async (t) => {
    const { status, text } = await ask(entry, '/api/v1/health', { host })
    t.ok(status >= 502, `${status} ${text}`)
  })

  const { child, refusals } = await startWaf(t, `http://127.0.0.1:${traefik.port('judged')}`, wafPort)
  await eventually(async () => (await ask(entry, '/api/v1/health', { host: 'localhost' })).status === 200)
  const registered = await ask(entry, '/api/v1/auth/register', {
    host: 'localhost',
    method: 'POST',
    body: registration('acme'),
    from: '127.0.0.9'
  })
  t.equal(registered.status, 201)

  t.test('the product sees the client, the host and the request as without it', async (t) => {
    const headers = { authorization: `Bearer ${registered.json().access_token}`, origin: 'https://acme.example' }
    const tenant = await ask(entry, '/api/v1/tenant', { host, headers })
    t.match(tenant.json(), { slug: 'acme' })
    const sessions = await ask(entry, '/api/v1/users/me/sessions', { host, headers })
    t.match(sessions.json(), { data: [{ ip: '127.0.0.9' }] })
    const refused = await ask(entry, '/api/v1/auth/login', {
      host,
      method: 'POST',
      body: { email: 'owner@acme.example', password: 'wrong' }
    })
    t.match(refused.json(), { code: 'invalid_credentials' }, 'and answers by itself')
  })

  t.test('an attack does not reach it', async (t) => {
    const body = { email: "' or 1=1--", password }
    const reply = await ask(entry, '/api/v1/auth/login', { host, method: 'POST', body, from: '127.0.0.9' })
    t.match(reply.json(), { code: 'request_blocked', status: 403 })
    await eventually(() => refusals().length > 0)
    t.match(refusals()[0], { client: '127.0.0.9', host, request_id: reply.headers['x-request-id'] })
  })

  t.test('it ends in order', async (t) => {
    const exited = once(child, 'exit')
    child.kill('SIGTERM')
    t.strictSame(await exited, [0, null])
  })
})
