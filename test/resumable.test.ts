import { readdirSync } from 'node:fs'
import { join } from 'node:path'
import { Readable } from 'node:stream'
import { setTimeout as sleep } from 'node:timers/promises'
import t from 'tap'
import * as tus from 'tus-js-client'
import { StoreFailure } from '../src/files/store/object-store.ts'
import { mebibyte, opaqueBytes, sha256 } from './bytes.ts'
import { disagreements, storedObjects } from './forms.ts'
import {
  allRows,
  createTenant,
  eventually,
  post,
  type Reply,
  send,
  startApp,
  type Tenant,
  type TestApp
} from './harness.ts'

// bounded in time: how long an upload may take

const endpoint = '/api/v1/files/resumable'
const version = { 'tus-resumable': '1.0.0' }

/** Uploads with tus-js-client. */
async function listen(app: TestApp, tenant: Tenant) {
  await app.listen({ host: '127.0.0.1', port: 0 })
  const { port } = app.server.address() as { port: number }
  // the general host, because the token names the agency
  const url = `http://127.0.0.1:${port}${endpoint}`
  const headers = { authorization: `Bearer ${tenant.owner.tokens.access_token}`, host: 'localhost' }

  function upload(
    content: Buffer,
    options: Partial<tus.UploadOptions> = {}
  ): { upload: tus.Upload; done: Promise<void> } {
    let upload!: tus.Upload
    const done = new Promise<void>((resolve, reject) => {
      upload = new tus.Upload(content as never, {
        ...{ endpoint: url, headers, retryDelays: null as never },
        metadata: { filename: 'Größe 😀.bin', filetype: 'application/octet-stream', purpose: 'contract' },
        onError: reject,
        onSuccess: () => resolve(),
        ...options
      })
    })
    return { upload, done }
  }
  return { upload, port, url, headers }
}

const idOf = (url: string | null) => url?.split('/').at(-2) as string

/** Sends single requests of the protocol. */
function speak(tenant: Tenant) {
  return {
    begin: (length: number | string, headers = {}) =>
      tenant.send({
        method: 'POST',
        url: endpoint,
        headers: { ...version, 'upload-length': String(length), ...headers }
      }),
    append: (url: string, offset: number | string, payload: Buffer | string, headers = {}) =>
      tenant.send({
        method: 'PATCH',
        url,
        payload,
        headers: {
          ...version,
          'upload-offset': String(offset),
          'content-type': 'application/offset+octet-stream',
          ...headers
        }
      }),
    ask: (url: string) => tenant.send({ method: 'HEAD', url, headers: version }),
    giveUp: (url: string) => tenant.send({ method: 'DELETE', url, headers: version })
  }
}
const locationOf = (reply: Reply) => String(reply.headers.location)
const metadata = (facts: Record<string, string>) => ({
  'upload-metadata': Object.entries(facts)
    .map(([key, value]) => `${key} ${Buffer.from(value).toString('base64')}`)
    .join(',')
})

t.test('with tus-js-client', async (t) => {
  const app = await startApp(t)
  const acme = await createTenant(app, 'acme')
  const { upload } = await listen(app, acme)
  const content = opaqueBytes(11 * mebibyte + 17)
  const fileOf = async (url: string | null) => (await acme.send(`/api/v1/files/${idOf(url)}`)).json()

  t.test('a file goes in at once, or in small pieces', async (t) => {
    for (const [bytes, chunkSize] of [
      [content, Number.POSITIVE_INFINITY],
      [content, 3 * mebibyte],
      [content.subarray(0, 10 * mebibyte), 5 * mebibyte],
      [content.subarray(0, 300_000), 64 * 1024],
      [content.subarray(0, 0), 1024]
    ] as const) {
      const { upload: each, done } = upload(bytes, { chunkSize })
      each.start()
      await done
      const file = await fileOf(each.url)
      t.match(file, { name: 'Größe 😀.bin', size: bytes.length, sha256: sha256(bytes), purpose: 'contract' })
    }
    t.strictSame(await disagreements(app, acme), [])
  })
  t.test('a lost connection costs what was on its way, and no more', async (t) => {
    const progress: number[] = []
    const first = upload(content, {
      onProgress: (sent) => void (sent > 7 * mebibyte && first.upload.abort()),
      chunkSize: 4 * mebibyte
    })
    first.upload.start()
    await eventually(async () => {
      const [row] = await allRows(app.database, 'select received::float8 as received from uploads')
      return row !== undefined && row.received > 0
    }, 20_000)
    await first.upload.abort()
    await sleep(200)
    // as another process does that has stored the URL
    const second = upload(content, {
      // the bytes of the first request may not be counted yet
      retryDelays: [100, 300, 1000, 3000],
      uploadUrl: first.upload.url,
      onProgress: (sent) => void progress.push(sent)
    })
    second.upload.start()
    await second.done
    t.ok((progress[0] ?? 0) > 0, `it went on at ${progress[0]} of ${content.length}`)
    t.match(await fileOf(first.upload.url), { size: content.length, sha256: sha256(content) })
    t.strictSame(await disagreements(app, acme), [])
  })
  t.test('giving up removes what was there', async (t) => {
    const { upload: each } = upload(content, { chunkSize: 4 * mebibyte })
    each.start()
    await eventually(
      async () => (await allRows(app.database, 'select from uploads where received > 0')).length === 1,
      20_000
    )
    await each.abort(true)
    await eventually(async () => (await disagreements(app, acme)).length === 0)
    t.equal((await acme.send({ method: 'HEAD', url: new URL(each.url as string).pathname })).statusCode, 404)
  })
  t.test('what is refused is refused for good', async (t) => {
    for (const [options, status] of [
      [{ metadata: { filename: 'setup.exe' } }, 415],
      [{ metadata: { filename: 'a.txt', sha256: '0'.repeat(64) } }, 400]
    ] as const) {
      const { upload: each, done } = upload(content.subarray(0, 100), options)
      each.start()
      const err = (await done.catch((reason) => reason)) as tus.DetailedError
      t.equal(err.originalResponse?.getStatus(), status)
      await eventually(async () => (await disagreements(app, acme)).length === 0)
    }
  })
})

t.test('by the protocol', async (t) => {
  const app = await startApp(t, { MAX_FILE_SIZE: '20MiB' })
  const acme = await createTenant(app, 'acme')
  const { begin, append, ask, giveUp } = speak(acme)

  t.test('the server says what it can', async (t) => {
    const reply = await send(app, acme.host, { method: 'OPTIONS', url: endpoint })
    t.equal(reply.statusCode, 204)
    t.match(reply.headers, {
      'tus-resumable': '1.0.0',
      'tus-version': '1.0.0',
      'tus-extension': 'creation,expiration,termination',
      'tus-max-size': String(20 * mebibyte)
    })
  })
  t.test('and says it to a page that asks, which no preflight is', async (t) => {
    const headers = { origin: 'http://acme.localhost' }
    const reply = await send(app, acme.host, { method: 'OPTIONS', url: endpoint, headers })
    t.equal(reply.statusCode, 204)
    t.match(reply.headers, { 'tus-version': '1.0.0', 'access-control-allow-origin': headers.origin })
    t.match(reply.headers['access-control-expose-headers'], /Tus-Version/)
    t.notOk('access-control-allow-methods' in reply.headers)
    const other = await send(app, acme.host, { method: 'OPTIONS', url: '/api/v1/tenant', headers })
    t.match([other.statusCode, other.headers.allow], [204, 'DELETE, GET, HEAD, OPTIONS, PATCH'])
  })
  t.test('through a proxy that knows no PATCH', async (t) => {
    const url = locationOf(await begin(6, metadata({ filename: 'a.txt', filetype: 'text/plain' })))
    const instead = (method: string, headers: object = {}, payload?: string) =>
      acme.send({
        method: 'POST',
        url,
        headers: { ...version, 'x-http-method-override': method, ...headers },
        ...(payload && { payload })
      })
    const appending = { 'upload-offset': '0', 'content-type': 'application/offset+octet-stream' }
    const appended = await instead('PATCH', appending, 'abc')
    t.match([appended.statusCode, appended.headers['upload-offset']], [204, '3'])
    const head = await instead('HEAD')
    t.match([head.statusCode, head.headers['upload-offset'], head.body], [200, '3', ''])
    t.match((await instead('PATCH', appending, 'abc')).json(), { status: 409 }, 'refused as PATCH is')
    for (const method of ['PUT', 'GET', 'x', '', '__proto__']) {
      t.match((await instead(method)).json(), { status: 405, code: 'method_not_allowed' }, method)
    }
    t.equal((await instead('delete')).statusCode, 204)
    t.equal((await ask(url)).statusCode, 404)
  })
  t.test('a page of the agency may speak it', async (t) => {
    const headers = {
      origin: 'http://acme.localhost',
      'access-control-request-method': 'PATCH',
      'access-control-request-headers': 'tus-resumable,upload-offset,content-type,authorization'
    }
    const preflight = await send(app, acme.host, { method: 'OPTIONS', url: `${endpoint}/x/content`, headers })
    const allowed = String(preflight.headers['access-control-allow-headers']).toLowerCase().split(', ')
    const more = ['upload-length', 'upload-metadata', 'x-http-method-override']
    for (const name of [...headers['access-control-request-headers'].split(','), ...more]) {
      t.ok(allowed.includes(name), name)
    }
    const reply = await acme.send({ url: '/api/v1/files', headers: { origin: headers.origin } })
    const exposed = String(reply.headers['access-control-expose-headers']).toLowerCase().split(', ')
    for (const name of ['location', 'tus-resumable', 'upload-offset', 'upload-length', 'upload-expires']) {
      t.ok(exposed.includes(name), name)
    }
  })
  t.test('bytes are counted', async (t) => {
    const begun = await begin(10, metadata({ filename: 'a.txt', filetype: 'text/plain' }))
    t.equal(begun.statusCode, 201)
    t.match(begun.headers, { 'tus-resumable': '1.0.0', 'upload-expires': /GMT$/ })
    const url = locationOf(begun)
    t.match((await ask(url)).headers, { 'upload-offset': '0', 'upload-length': '10', 'cache-control': 'no-store' })
    const part = await append(url, 0, 'hello')
    t.match([part.statusCode, part.headers['upload-offset']], [204, '5'])
    for (const offset of [0, 4, 6, 10]) {
      t.match((await append(url, offset, 'x')).json(), { status: 409, code: 'conflict' }, `${offset}`)
    }
    t.match((await ask(url)).headers, { 'upload-offset': '5' })
    t.match((await append(url, 5, '')).headers, { 'upload-offset': '5' }, 'nothing is fine too')
    const rest = await append(url, 5, ' you!')
    t.match([rest.statusCode, rest.headers['upload-offset']], [204, '10'])
    t.equal((await acme.send(`/api/v1/files/${idOf(url)}/content`)).body, 'hello you!')
    t.match((await ask(url)).headers, { 'upload-offset': '10', 'upload-length': '10' }, 'for who did not hear of it')
    t.equal((await append(url, 10, '')).statusCode, 404)
    t.equal((await giveUp(url)).statusCode, 404, 'a file is not given up')
  })
  t.test('what is no sense is refused', async (t) => {
    const url = locationOf(await begin(10))
    const oversize = await append(url, 0, 'x'.repeat(11))
    t.match(oversize.json(), { status: 413, code: 'payload_too_large' })
    t.match((await begin(20 * mebibyte + 1)).json(), { status: 413, code: 'file_too_large' })
    for (const length of ['', '-1', 'x', '1e3', '9'.repeat(16)]) {
      t.match((await begin(length)).json(), { status: 400, code: 'validation_failed' }, `length ${length}`)
    }
    t.match((await append(url, '-1', 'x')).json(), { status: 400, code: 'validation_failed' })
    t.match((await append(url, 0, 'x', { 'content-type': 'text/plain' })).json(), { status: 415 })
    for (const facts of [{ purpose: 'Not A Word' }, { sha256: 'x' }]) {
      t.match((await begin(1, metadata(facts))).json(), { status: 400, code: 'validation_failed' })
    }
    for (const reply of [
      await begin(1, { 'tus-resumable': '0.2.2' }),
      await append(url, 0, 'x', { 'tus-resumable': '2.0.0' })
    ]) {
      t.match(reply.json(), { status: 412, code: 'unsupported_version', title: /version/ })
      t.match(reply.headers, { 'tus-version': '1.0.0', 'tus-resumable': '1.0.0' })
    }
    t.equal((await giveUp(url)).statusCode, 204)
    t.equal((await ask(url)).statusCode, 404)
    t.equal((await giveUp(url)).statusCode, 404)
    await eventually(async () => (await disagreements(app, acme)).length === 0)
  })
  t.test('names come in any language', async (t) => {
    for (const [filename, kept] of [
      ['Übersicht.txt', 'Übersicht.txt'],
      ['../../etc/passwd', 'passwd'],
      ['a\u0000b\r\nc', 'abc'],
      ['', 'file']
    ] as const) {
      const url = locationOf(await begin(0, metadata({ filename, is_confidential: 'x' })))
      t.equal((await acme.send(`/api/v1/files/${idOf(url)}`)).json().name, kept)
    }
    for (const malformed of [
      'filename %%%,,= =,purpose',
      'filename YQ==,',
      ',filename YQ==',
      'filename YQ== YQ==',
      'filename YQ==;purpose YQ==',
      'filename YQ==,filename Yg==',
      'filename YQ=',
      'filename YQ==YQ==',
      'filename Y',
      'größe YQ==',
      'unknown *',
      ' '
    ]) {
      t.match(
        (await begin(0, { 'upload-metadata': malformed })).json(),
        { status: 400, code: 'validation_failed' },
        malformed
      )
    }
    for (const good of ['filename', 'filename YQ==, unknown', 'filename YQ', '']) {
      t.equal((await begin(0, { 'upload-metadata': good })).statusCode, 201, good)
    }
  })
})

t.test('who takes over', async (t) => {
  const app = await startApp(t)
  const acme = await createTenant(app, 'acme')
  const { begin, append, ask } = speak(acme)
  const { port, headers } = await listen(app, acme)
  const content = opaqueBytes(12 * mebibyte)

  /** A PATCH whose body the test writes piece by piece. */
  function slowly(url: string, offset: number) {
    const body = new Readable({ read() {} })
    const reply = fetch(`http://127.0.0.1:${port}${url}`, {
      method: 'PATCH',
      headers: {
        ...{ ...headers, ...version, 'upload-offset': String(offset) },
        'content-type': 'application/offset+octet-stream'
      },
      body: Readable.toWeb(body) as never,
      duplex: 'half'
    } as RequestInit)
    return { body, reply }
  }

  t.test('a second client of the same upload wins, and the first can write no more', async (t) => {
    const url = locationOf(await begin(content.length))
    const first = slowly(url, 0)
    first.body.push(content.subarray(0, 6 * mebibyte))
    await eventually(async () => Number((await ask(url)).headers['upload-offset']) === 5 * mebibyte, 20_000)
    const second = await append(url, 5 * mebibyte, content.subarray(5 * mebibyte, 8 * mebibyte))
    t.match([second.statusCode, second.headers['upload-offset']], [204, String(8 * mebibyte)])
    first.body.push(Buffer.alloc(6 * mebibyte, 'x'))
    first.body.push(null)
    t.ok([404, 409, 503].includes((await first.reply).status), `the first is told: ${(await first.reply).status}`)
    t.equal((await append(url, 8 * mebibyte, content.subarray(8 * mebibyte))).statusCode, 204)
    t.match((await acme.send(`/api/v1/files/${idOf(url)}`)).json(), { sha256: sha256(content) })
    t.strictSame(await disagreements(app, acme), [])
  })
  t.test('many at once bring the same bytes once', async (t) => {
    const small = content.subarray(0, 1000)
    const url = locationOf(await begin(small.length))
    const replies = await Promise.all(Array.from({ length: 12 }, () => append(url, 0, small)))
    const statuses = replies.map(({ statusCode }) => statusCode)
    t.ok(statuses.includes(204), statuses.join(' '))
    t.ok(
      statuses.every((status) => [204, 404, 409].includes(status)),
      statuses.join(' ')
    )
    t.match((await acme.send(`/api/v1/files/${idOf(url)}`)).json(), { size: 1000, sha256: sha256(small) })
    const { data } = (await acme.send('/api/v1/audit-events?action=file.created')).json()
    t.equal(data.filter((event: { target_id: string }) => event.target_id === idOf(url)).length, 1)
    t.strictSame(await disagreements(app, acme), [])
  })
})

t.test('an upload that dies between its last byte and its end can be resumed', async (t) => {
  const app = await startApp(t)
  const acme = await createTenant(app, 'acme')
  const { begin, append, ask } = speak(acme)
  const content = opaqueBytes(7 * mebibyte)
  const { finishParts, put } = app.objects
  const fail = () => Promise.reject(new StoreFailure('away', new Error('unplugged')))

  for (const [what, bytes] of [
    ['of several parts', content],
    ['of one', content.subarray(0, 1000)]
  ] as const) {
    const url = locationOf(await begin(bytes.length, metadata({ sha256: sha256(bytes) })))
    Object.assign(app.objects, { finishParts: fail, put: fail })
    t.match((await append(url, 0, bytes)).json(), { status: 503, code: 'unavailable' }, what)
    Object.assign(app.objects, { finishParts, put })
    const offset = Number((await ask(url)).headers['upload-offset'])
    t.ok(offset < bytes.length, `${what}: ${offset} bytes are kept`)
    t.equal((await append(url, offset, bytes.subarray(offset))).statusCode, 204)
    t.match((await acme.send(`/api/v1/files/${idOf(url)}`)).json(), { sha256: sha256(bytes) })
  }

  await t.test('also where the process died and nobody could say so', async (t) => {
    const url = locationOf(await begin(content.length))
    await append(url, 0, content.subarray(0, 6 * mebibyte))
    await allRows(app.database, "update uploads set concluding_until = now() + interval '1 minute'")
    t.match((await append(url, 6 * mebibyte, content.subarray(6 * mebibyte))).json(), { status: 409 })
    await allRows(app.database, 'update uploads set concluding_until = now()')
    t.equal((await append(url, 6 * mebibyte, content.subarray(6 * mebibyte))).statusCode, 204)
  })
  t.strictSame(await disagreements(app, acme), [])
})

t.test('an upload on which nothing moves is given up, with all that was there', async (t) => {
  const app = await startApp(t)
  const acme = await createTenant(app, 'acme')
  const { begin, append, ask } = speak(acme)
  const url = locationOf(await begin(12 * mebibyte))
  await append(url, 0, opaqueBytes(6 * mebibyte))
  const [row] = await allRows(app.database, 'select expires_at from files')
  const left = row.expires_at.getTime() - Date.now()
  t.ok(left > 10 * 60_000 && left <= 15 * 60_000, `${left} ms are left`)
  t.equal(readdirSync(join(app.config.dataDir, 'files', 'unfinished')).length, 1, 'a part is there')
  await allRows(app.database, 'update files set expires_at = now()')
  await app.objectSweep.run()
  t.equal((await ask(url)).statusCode, 404)
  t.strictSame(await disagreements(app, acme), [])
  t.equal(storedObjects(app).objects.size, 0)
  t.equal((await acme.send(post('/files/x/restore', {}))).statusCode, 400)
})
