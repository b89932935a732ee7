import { spawnSync } from 'node:child_process'
import { once } from 'node:events'
import { readdirSync } from 'node:fs'
import http from 'node:http'
import { join } from 'node:path'
import { buffer } from 'node:stream/consumers'
import t from 'tap'
import { form } from './forms.ts'
import { createTenant, createTestDatabase, post, startApp, startServer, testEnvironment } from './harness.ts'
import { freePort } from './ports.ts'
import { type Fault, lostReply, refusal, reset, startScriptedS3 } from './scripted-s3.ts'
import { large, matchesAfterSweep, servesTheRest, small, upload } from './store-checks.ts'

// bounded in time: how long a store may take

/*
 * The object store is away, slow, full, wrong, or fails in the middle. The client gets a problem in bounded time, nothing incomplete
 * is visible, and the rest of the product continues.
 */

t.test('a store that fails at once', async (t) => {
  const stub = await startScriptedS3(t)
  const app = await startApp(t, { ...stub.environment, LOG_LEVEL: 'warn' })
  const acme = await createTenant(app, 'acme')
  const kept = (await upload(acme, small)).json()
  t.match(kept, { size: small.length })

  const away = { status: 503, code: 'unavailable' }
  const faults: [name: string, fault: Fault, expected: { status: number; code: string }][] = [
    ['503 SlowDown', refusal(503, 'SlowDown'), away],
    ['500 InternalError', refusal(500, 'InternalError'), away],
    ['XMinioStorageFull', refusal(507, 'XMinioStorageFull'), { status: 507, code: 'storage_full' }],
    ['AccessDenied', refusal(403, 'AccessDenied'), away],
    ['RequestTimeTooSkewed', refusal(403, 'RequestTimeTooSkewed'), away],
    ['NoSuchBucket', refusal(404, 'NoSuchBucket'), away],
    ['a connection that is reset', reset(), away],
    ['a lost reply', lostReply, away],
    ['an answer that is not HTTP', ({ request }) => request.socket.end('220 mail.example ESMTP\r\n'), away]
  ]
  for (const [name, fault, expected] of faults) {
    await t.test(name, async (t) => {
      const before = app.logLines.length
      stub.fail('PUT object', fault)
      const reply = await upload(acme, small)
      t.match(reply.json(), expected)
      t.ok(Number(reply.headers['retry-after']) > 0)
      t.match(app.logLines.slice(before).join(''), /the object store is (away|full|refused)/)
      t.notMatch(reply.body, /127\.0\.0\.1|Error|S3/, 'of the inside nothing is told')
      // nothing of which a store says when it is read
      if (fault !== lostReply && expected === away) {
        stub.fail('GET object', fault)
        t.match((await acme.send(`/api/v1/files/${kept.id}/content`)).json(), expected)
      }
      stub.heal()
      t.strictSame((await acme.send('/api/v1/files')).json().data.length, 1)
    })
  }

  const late: [name: string, what: string, fault: Fault][] = [
    ['at its beginning', 'POST uploads', refusal(503, 'SlowDown')],
    ['in a part', 'PUT part', refusal(503, 'SlowDown')],
    ['by a reset in the middle of a part', 'PUT part', reset(1_000_000)],
    [
      'by a wrong ETag',
      'PUT part',
      async ({ request, reply }) => {
        await buffer(request)
        reply.writeHead(200, { etag: '"00000000000000000000000000000000"' }).end()
      }
    ],
    ['at its end', 'POST complete', refusal(500, 'InternalError')],
    [
      'at its end, under a 200',
      'POST complete',
      async ({ request, reply }) => {
        await buffer(request)
        reply.end('<Error><Code>InternalError</Code><Message>as told</Message></Error>')
      }
    ],
    ['by a lost reply at its end', 'POST complete', lostReply],
    ['in all that is asked of it', '', reset()]
  ]
  for (const [name, what, fault] of late) {
    await t.test(`an upload in parts fails ${name}`, async (t) => {
      stub.fail(what, fault)
      t.match((await upload(acme, large)).json(), away)
      stub.heal()
      t.strictSame((await acme.send('/api/v1/files')).json().data.length, 1)
    })
  }
  t.test('afterwards rows and objects match', async (t) => {
    await matchesAfterSweep(t, app, stub)
    t.equal(stub.uploads.size, 0, 'and no parts are left')
    t.ok((await acme.send(`/api/v1/files/${kept.id}/content`)).rawPayload.equals(small))
    t.equal((await upload(acme, large)).statusCode, 201)
    await matchesAfterSweep(t, app, stub)
  })
  t.test('a download that is cut is not taken for a whole one', async (t) => {
    await app.listen({ host: '127.0.0.1', port: 0 })
    const { port } = app.server.address() as { port: number }
    stub.fail('GET object', async ({ reply, request }) => {
      reply.writeHead(200, { 'content-length': small.length })
      reply.write(small.subarray(0, 500))
      setTimeout(() => request.socket.resetAndDestroy(), 50)
    })
    const headers = { authorization: `Bearer ${acme.owner.tokens.access_token}`, host: acme.host }
    const sent = http.get({ port, path: `/api/v1/files/${kept.id}/content`, headers })
    const [reply] = (await once(sent, 'response')) as [http.IncomingMessage]
    await t.rejects(buffer(reply), { code: 'ECONNRESET' })
    stub.heal()
  })
  t.test('a store that answers badly often answers well again', async (t) => {
    stub.fail('GET object', refusal(503, 'SlowDown'))
    const replies = await Promise.all(Array.from({ length: 150 }, () => acme.send(`/api/v1/files/${kept.id}/content`)))
    t.ok(replies.every(({ statusCode }) => statusCode === 503))
    stub.heal()
    t.equal((await acme.send(`/api/v1/files/${kept.id}/content`)).statusCode, 200)
  })
})

t.test('a store that is not there when the product starts', async (t) => {
  const app = await startApp(t, {
    LOG_LEVEL: 'warn',
    S3_ENDPOINT: `http://127.0.0.1:${await freePort()}`,
    S3_BUCKET: 'aggios',
    S3_ACCESS_KEY: 'key',
    S3_SECRET_KEY: 'secret'
  })
  const acme = await createTenant(app, 'acme')
  await servesTheRest(t, acme)
  t.match((await upload(acme, small)).json(), { status: 503, code: 'unavailable' })
  t.match(app.logLines.join(''), /the object store can not be used/)
})

const namespaces = spawnSync('unshare', ['--mount', 'true']).status === 0
const noNamespaces = namespaces ? false : 'mounting a small file system needs root; nothing is mounted here'

t.test('a disk that is full', { skip: noNamespaces }, async (t) => {
  const database = await createTestDatabase(t)
  const folder = t.testdir({ data: {}, tmp: {} })
  const env = { ...testEnvironment(database, { DATA_DIR: join(folder, 'data'), TMPDIR: join(folder, 'tmp') }) }
  const mounts = ['data:24m', 'tmp:2m'].map((each) => {
    const [name, size] = each.split(':')
    return `mount -t tmpfs -o size=${size} tmpfs '${join(folder, name as string)}'`
  })
  const script = [...mounts, 'exec "$@"'].join(' && ')
  const server = await startServer(t, env, { prefix: ['unshare', '--mount', 'sh', '-c', script, 'sh'] })
  const send = (path: string, init: RequestInit = {}) => fetch(`http://127.0.0.1:${server.port}/api/v1${path}`, init)
  const register = post('/auth/register', {
    ...{ tenant: { name: 'Acme', slug: 'acme' }, name: 'Ada', email: 'ada@acme.example' },
    password: 'correct horse battery'
  })
  const registered = await send('/auth/register', {
    method: 'POST',
    headers: { 'content-type': 'application/json' },
    body: JSON.stringify(register.payload)
  })
  const { access_token } = (await registered.json()) as { access_token: string }
  const headers = { authorization: `Bearer ${access_token}`, host: 'acme.localhost' }
  const ask = async (path: string, options: { method?: string; headers?: object; payload?: Buffer } = {}) => {
    const request = http.request({
      port: server.port,
      path: `/api/v1${path}`,
      method: options.method ?? 'GET',
      headers: { ...headers, ...options.headers, ...(options.payload && { 'content-length': options.payload.length }) }
    })
    // the server may close the connection before a refused body was sent
    request.on('error', () => {})
    request.end(options.payload)
    const [reply] = (await once(request, 'response')) as [http.IncomingMessage]
    const body = await buffer(reply)
    return { status: reply.statusCode, body, json: () => JSON.parse(String(body)) }
  }
  const uploadOf = (bytes: number) =>
    ask('/files', { method: 'POST', ...form([{ name: 'file', filename: 'a.bin', content: Buffer.alloc(bytes, 7) }]) })
  /** The path as the server sees it, in its own mount namespace. */
  const unfinished = () => readdirSync(`/proc/${server.child.pid}/root${join(folder, 'data', 'files', 'unfinished')}`)

  const mebibyte = 1024 * 1024
  t.equal((await uploadOf(10 * mebibyte)).status, 201)
  for (const bytes of [15, 40]) {
    t.match((await uploadOf(bytes * mebibyte)).json(), { status: 507, code: 'storage_full' }, `${bytes} MiB`)
    t.strictSame(unfinished(), [], 'nothing of it takes room')
  }
  t.equal((await ask('/users/me')).status, 200)
  t.equal((await ask('/health')).json().status, 'ok')
  const whole = await uploadOf(10 * mebibyte)
  t.equal(whole.status, 201, 'what fits is taken')
  const content = await ask(`/files/${whole.json().id}/content`)
  t.ok(content.body.equals(Buffer.alloc(10 * mebibyte, 7)))
  t.equal((await ask('/files')).json().data.length, 2)
  t.match((await ask('/tenant')).json().usage, { storage_bytes: 20 * mebibyte })
})
