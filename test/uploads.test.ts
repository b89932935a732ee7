import { once } from 'node:events'
import { connect, type Socket } from 'node:net'
import { setTimeout as sleep } from 'node:timers/promises'
import t, { type Test } from 'tap'
import { kibibyte, sha256 } from './bytes.ts'
import { announce, usageOf } from './file-requests.ts'
import { boundary, disagreements, fileForm, form, storedObjects } from './forms.ts'
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
import { stopwatch } from './machine.ts'
import { listen } from './requests.ts'

// bounded in time: how long an upload may take

/** Checks that an upload has left nothing: no row, no object, and no counted bytes. */
async function leavesNothing(t: Test, app: TestApp, tenant: Tenant, what: string): Promise<void> {
  await eventually(async () => (await disagreements(app, tenant)).length === 0).catch(() => {})
  t.strictSame(await disagreements(app, tenant), [], `${what}: nothing is half there`)
  t.equal(
    (await allRows(app.database, 'select from files where tenant_id = $1', [tenant.id])).length,
    0,
    `${what}: no row`
  )
  t.equal(storedObjects(app).objects.size, 0, `${what}: no object`)
  t.equal(await usageOf(tenant), 0, `${what}: no room is taken`)
}

type Raw = { status: number; body: string; ms: number; sent: number; cut: string | undefined }

/** Writes parts to a socket, and reads until the server closes it. With `end`, half-closes after the last part. */
async function exchange(port: number, parts: Iterable<Buffer | string>, { end = false } = {}): Promise<Raw> {
  const elapsed = stopwatch()
  const socket = connect({ port, host: '127.0.0.1', allowHalfOpen: true })
  let text = ''
  let cut: string | undefined
  socket.setEncoding('latin1').on('data', (chunk: string) => {
    text += chunk
  })
  socket.on('error', (err: NodeJS.ErrnoException) => {
    cut = err.code
  })
  const closed = new Promise<void>((done) => {
    socket.once('end', () => done())
    socket.once('close', () => done())
  })
  for (const part of parts) {
    if (text !== '' || socket.destroyed) break
    if (!socket.write(part)) await Promise.race([once(socket, 'drain').catch(() => {}), closed, sleep(2000)])
  }
  if (end) socket.end()
  const isWhole = () => /\r\n\r\n/.test(text) && !/connection: close/i.test(text)
  while (!isWhole()) if (await Promise.race([closed.then(() => true), sleep(20), sleep(12_000).then(() => true)])) break
  socket.destroy()
  const [head = '', body = ''] = text.split('\r\n\r\n')
  return {
    ...{ status: Number(head.split(' ')[1] ?? 0), body, cut, sent: socket.bytesWritten },
    ms: elapsed()
  }
}

const headOf = (tenant: Tenant, more: string[]) =>
  [
    'POST /api/v1/files HTTP/1.1',
    `Host: ${tenant.host}`,
    `Authorization: Bearer ${tenant.owner.tokens.access_token}`,
    ...more,
    '',
    ''
  ].join('\r\n')
const asForm = `Content-Type: multipart/form-data; boundary=${boundary}`

t.test('a form', async (t) => {
  const app = await startApp(t, { MAX_FILE_SIZE: '64KiB' })
  const acme = await createTenant(app, 'acme')
  const file = { name: 'file', filename: 'a.txt', type: 'text/plain', content: 'hello' }
  const ask = (parts: Parameters<typeof form>[0]): Promise<Reply> =>
    acme.send({ method: 'POST', url: '/api/v1/files', ...form(parts) })
  const purpose = { name: 'purpose', content: 'contract' }

  t.test('may have its fields before and after the file', async (t) => {
    for (const parts of [
      [purpose, file, { name: 'sha256', content: sha256('hello') }],
      [{ name: 'sha256', content: sha256('hello') }, file, purpose],
      [{ name: 'sha256', content: '' }, file, purpose]
    ]) {
      const reply = await ask(parts)
      t.match(reply.json(), { purpose: 'contract', sha256: sha256('hello') })
      t.equal(reply.headers.location, `/api/v1/files/${reply.json().id}`)
      await acme.send({ method: 'DELETE', url: `/api/v1/files/${reply.json().id}?permanent=true` })
    }
    await app.objectSweep.run()
    await leavesNothing(t, app, acme, 'after all')
  })
  t.test('is refused for what is wrong in it, and nothing stays', async (t) => {
    const many = (count: number, part: (index: number) => Parameters<typeof form>[0][number]) =>
      Array.from({ length: count }, (_, index) => part(index))
    const refusals: [what: string, status: number, code: string, parts: Parameters<typeof form>[0]][] = [
      ['no parts', 400, 'validation_failed', []],
      ['no file', 400, 'validation_failed', [purpose]],
      ['another name', 400, 'validation_failed', [{ ...file, name: 'document' }]],
      ['two files', 400, 'validation_failed', [file, file]],
      ['a file for a field', 400, 'validation_failed', [{ ...file, name: 'purpose' }, file]],
      ['a field for the file', 400, 'validation_failed', [{ name: 'file', content: 'x' }]],
      ['a field twice', 400, 'validation_failed', [file, purpose, purpose]],
      ['a field twice before it', 400, 'validation_failed', [purpose, purpose, file]],
      ['a field that nobody knows', 400, 'validation_failed', [file, { name: 'owner', content: 'x' }]],
      ['a purpose that is none', 400, 'validation_failed', [file, { name: 'purpose', content: 'Not A Word' }]],
      [
        'too many fields',
        400,
        'validation_failed',
        [file, ...many(6, (index) => ({ name: `f${index}`, content: '' }))]
      ],
      ['a field too long', 400, 'validation_failed', [{ name: 'purpose', content: 'x'.repeat(5000) }, file]],
      ['a sum that is not its', 400, 'validation_failed', [file, { name: 'sha256', content: sha256('other') }]],
      ['__proto__', 400, 'malformed_request', [{ name: '__proto__', content: 'x' }, file]],
      ['constructor', 400, 'malformed_request', [file, { name: 'constructor', content: 'x' }]],
      ['a file called __proto__', 400, 'malformed_request', [{ ...file, name: '__proto__' }]],
      ['toString', 400, 'malformed_request', [{ name: 'toString', content: 'x' }]],
      ['a program', 415, 'unsupported_media_type', [{ ...file, content: Buffer.from('MZ\x90\0\x03\0\0\0') }]],
      ['one byte too many', 413, 'file_too_large', [{ ...file, content: 'x'.repeat(64 * kibibyte + 1) }]]
    ]
    for (const [what, status, code, parts] of refusals) {
      const reply = await ask(parts)
      t.match(reply.json(), { status, code }, `${what}: ${reply.body}`)
      await leavesNothing(t, app, acme, what)
    }
    t.same(({} as { x?: unknown }).x, undefined, 'no prototype was written to')
    const messages: [path: string, message: string, parts: Parameters<typeof form>[0]][] = [
      ['/body/file', 'appears twice: a form has one such part', [file, file]],
      ['/body/doc', 'is no part of this form, which has file, purpose, and sha256', [{ ...file, name: 'doc' }]],
      [
        '/body/doc',
        'is no part of this form, which has file, purpose, and sha256',
        [file, { name: 'doc', content: '' }]
      ],
      ['/body/file', 'must be a file: its part needs a filename', [{ name: 'file', content: 'x' }]],
      ['/body/purpose', 'must be a text: its part has a filename', [{ ...file, name: 'purpose' }]],
      ['/body/file', 'is required', [purpose]]
    ]
    for (const [path, message, parts] of messages) {
      const { errors, detail } = (await ask(parts)).json()
      t.strictSame(errors, [{ path, message }])
      t.equal(detail, `${path.slice(1)} ${message}`)
    }
  })
  t.test('may carry exactly the limit, whatever stands beside it', async (t) => {
    const content = 'x'.repeat(64 * kibibyte)
    for (const parts of [[{ ...file, content }], [{ ...file, content }, purpose], [purpose, { ...file, content }]]) {
      const reply = await ask(parts)
      t.equal(reply.statusCode, 201, reply.body)
      await acme.send({ method: 'DELETE', url: `/api/v1/files/${reply.json().id}?permanent=true` })
    }
    await app.objectSweep.run()
  })
  t.test('is a form', async (t) => {
    const headers = { 'content-type': 'application/json' }
    const json = await acme.send({ method: 'POST', url: '/api/v1/files', headers, payload: '{}' })
    t.match(json.json(), { status: 415, code: 'unsupported_media_type' })
    const text = await acme.send({
      method: 'POST',
      url: '/api/v1/files',
      headers: { 'content-type': 'text/csv' },
      payload: 'a'
    })
    t.match(text.json(), { status: 415, code: 'unsupported_media_type' })
    t.equal((await acme.send({ method: 'POST', url: '/api/v1/files' })).statusCode, 415)
    await leavesNothing(t, app, acme, 'no form')
  })
})

t.test('on the wire', async (t) => {
  const app = await startApp(t, { MAX_FILE_SIZE: '32MiB', STORAGE_QUOTA: '16MiB' })
  const acme = await createTenant(app, 'acme')
  const port = await listen(app)
  const faults: unknown[] = []
  const note = (err: unknown) => void faults.push(err)
  process.on('uncaughtException', note).on('unhandledRejection', note)
  t.teardown(() => process.off('uncaughtException', note).off('unhandledRejection', note))
  const { payload } = fileForm('hello hello', 'a.txt', 'text/plain', [{ name: 'purpose', content: 'contract' }])

  t.test('a form that ends at any byte is refused, and nothing stays', async (t) => {
    const cuts = Array.from({ length: payload.length }, (_, index) => index).filter(
      // every byte at which a part begins or ends, and some between
      (index) => index % 17 === 0 || /[\r\n-]/.test(String.fromCharCode(payload[index] as number))
    )
    const outcomes = await Promise.all(
      cuts.flatMap((cut) => [
        exchange(port, [headOf(acme, [asForm, `Content-Length: ${cut}`]), payload.subarray(0, cut)]),
        exchange(port, [
          headOf(acme, [asForm, 'Transfer-Encoding: chunked']),
          `${cut.toString(16)}\r\n`,
          cut === 0 ? '\r\n' : Buffer.concat([payload.subarray(0, cut), Buffer.from('\r\n0\r\n\r\n')])
        ])
      ])
    )
    // the last two bytes may be missing, because the boundary is complete
    const complete = payload.length - 2
    for (const [index, { status, ms }] of outcomes.entries()) {
      const cut = cuts[index >> 1] as number
      if (cut < complete) t.equal(status, 400, `${cut} bytes`)
      t.ok(ms < 10_000, `${cut} bytes: ${ms.toFixed()} ms`)
    }
    await allRows(app.database, "update files set status = 'deleted', expires_at = now() where status = 'ready'")
    await app.objectSweep.run()
    await leavesNothing(t, app, acme, 'after all')
  })
  t.test('a connection that breaks at any byte leaves nothing', async (t) => {
    const sockets: Promise<void>[] = []
    for (let cut = 0; cut < payload.length; cut += 13) {
      sockets.push(
        (async () => {
          const socket = connect({ port, host: '127.0.0.1' })
          socket.on('error', () => {})
          await once(socket, 'connect')
          socket.write(headOf(acme, [asForm, `Content-Length: ${payload.length}`]))
          socket.write(payload.subarray(0, cut), () => setTimeout(() => socket.resetAndDestroy(), 50))
          await once(socket, 'close')
        })()
      )
    }
    await Promise.all(sockets)
    await leavesNothing(t, app, acme, 'after all')
  })
  t.test('headers that make no form are refused', async (t) => {
    const length = `Content-Length: ${payload.length}`
    const heads: [what: string, status: number, lines: string[]][] = [
      ['no boundary', 400, ['Content-Type: multipart/form-data', length]],
      ['an empty boundary', 400, ['Content-Type: multipart/form-data; boundary=', length]],
      ['another boundary', 400, ['Content-Type: multipart/form-data; boundary=other', length]],
      ['multipart of another kind', 415, [`Content-Type: multipart/mixed; boundary=${boundary}`, length]],
      ['nothing at all', 400, [asForm, 'Content-Length: 0']]
    ]
    for (const [what, status, lines] of heads) {
      const raw = await exchange(port, [headOf(acme, lines), ...(what === 'nothing at all' ? [] : [payload])])
      t.equal(raw.status, status, `${what}: ${raw.body}`)
      t.ok(raw.ms < 10_000, what)
    }
    await leavesNothing(t, app, acme, 'after all')
  })
  t.test('parts with too many headers, or endless ones, are refused', async (t) => {
    const disposition = 'Content-Disposition: form-data; name="file"; filename="a.txt"'
    const part = (lines: string[]) => `--${boundary}\r\n${lines.join('\r\n')}\r\n\r\nx\r\n--${boundary}--\r\n`
    const bodies = [
      part([...Array.from({ length: 5000 }, (_, index) => `X-${index}: y`), disposition]),
      part([`X: ${'y'.repeat(200_000)}`, disposition]),
      part([`Content-Disposition: form-data; name="${'n'.repeat(100_000)}"; filename="a.txt"`]),
      Array.from({ length: 3000 }, () => part(['Content-Disposition: form-data; name="x"'])).join(''),
      `--${boundary}\r\n`.repeat(5000)
    ]
    for (const body of bodies) {
      const raw = await exchange(port, [headOf(acme, [asForm, `Content-Length: ${body.length}`]), body])
      t.ok(raw.status >= 400 && raw.status < 500, `${raw.status} ${raw.body.slice(0, 100)}`)
      t.ok(raw.ms < 10_000)
    }
    await leavesNothing(t, app, acme, 'after all')
  })
  t.test('a refusal in the middle of a large body is read by its sender', async (t) => {
    const size = 64 * 1024 * kibibyte
    const opening = (filename: string) =>
      `--${boundary}\r\nContent-Disposition: form-data; name="file"; filename="${filename}"\r\nContent-Type: application/octet-stream\r\n\r\n`
    function* body(start: string, bytes: number) {
      yield start
      for (let sent = 0; sent < bytes; sent += 256 * kibibyte) yield Buffer.alloc(256 * kibibyte, 1)
    }
    function* inChunks(content: Iterable<Buffer | string>) {
      for (const each of content) {
        const bytes = Buffer.from(each)
        yield Buffer.concat([Buffer.from(`${bytes.length.toString(16)}\r\n`), bytes, Buffer.from('\r\n')])
      }
    }
    const length = (bytes: number) => `Content-Length: ${bytes}`
    const cases: [what: string, status: number, code: string, lines: string[], content: Iterable<Buffer | string>][] = [
      ['too large by its length', 413, 'file_too_large', [length(size)], body(opening('a.bin'), size)],
      [
        'too large as it comes',
        422,
        'quota_exceeded',
        ['Transfer-Encoding: chunked'],
        inChunks(body(opening('a.bin'), size))
      ],
      [
        'over the quota',
        422,
        'quota_exceeded',
        [length(24 * 1024 * kibibyte)],
        body(opening('a.bin'), 24 * 1024 * kibibyte)
      ],
      ['a program', 415, 'unsupported_media_type', [length(size)], body(opening('a.exe'), size)],
      ['no file', 400, 'validation_failed', [length(size)], body(opening('a').replace('"file"', '"other"'), size)]
    ]
    for (const [what, status, code, lines, content] of cases) {
      const raw = await exchange(port, [headOf(acme, [asForm, ...lines]), ...content])
      t.equal(raw.status, status, `${what}: ${raw.cut ?? raw.body}`)
      t.match(raw.body, `"code":"${code}"`, what)
      await leavesNothing(t, app, acme, what)
    }
  })
  t.test('and so is one of what is no form', async (t) => {
    const announced = 1024 * kibibyte
    const begun = (await acme.send(post('/files/uploads', { ...announce('x'), size: announced }))).json()
    const resumable = await acme.send({
      method: 'POST',
      url: '/api/v1/files/resumable',
      headers: {
        'upload-length': String(12 * 1024 * kibibyte),
        'upload-metadata': `filename ${Buffer.from('a.png').toString('base64')}`
      }
    })
    const authorization = `Authorization: Bearer ${acme.owner.tokens.access_token}`
    const more = { length: 10 * 1024 * kibibyte, chunk: Buffer.alloc(64 * kibibyte, 1) }
    function* body() {
      for (let sent = 0; sent < more.length; sent += more.chunk.length) {
        yield Buffer.concat([Buffer.from(`${more.chunk.length.toString(16)}\r\n`), more.chunk, Buffer.from('\r\n')])
      }
    }
    const requests: [status: number, lines: string[]][] = [
      [413, [`PUT ${new URL(begun.url).pathname} HTTP/1.1`, 'Content-Type: text/plain']],
      [
        415,
        [
          `PATCH ${resumable.headers.location} HTTP/1.1`,
          authorization,
          'Upload-Offset: 0',
          'Content-Type: application/offset+octet-stream'
        ]
      ]
    ]
    for (const [status, lines] of requests) {
      const head = [...lines, `Host: ${acme.host}`, 'Transfer-Encoding: chunked', '', ''].join('\r\n')
      const raw = await exchange(port, [head, ...body()])
      t.equal(raw.status, status, `${lines[0]}: ${raw.cut ?? raw.body}`)
    }
    await allRows(app.database, 'update files set expires_at = now()')
    await app.objectSweep.run()
    await leavesNothing(t, app, acme, 'after all')
  })
  t.test('a sender that goes away in the middle leaves nothing', async (t) => {
    const size = 12 * 1024 * kibibyte
    const sockets: Socket[] = []
    for (const lines of [[`Content-Length: ${size}`], ['Transfer-Encoding: chunked']]) {
      const socket = connect({ port, host: '127.0.0.1' })
      sockets.push(socket)
      socket.on('error', () => {})
      socket.write(headOf(acme, [asForm, ...lines]))
      const half = Buffer.concat([payload.subarray(0, 150), Buffer.alloc(size / 2, 1)])
      socket.write(
        lines[0]?.startsWith('T') ? Buffer.concat([Buffer.from(`${half.length.toString(16)}\r\n`), half]) : half
      )
    }
    await eventually(async () => (await allRows(app.database, 'select from files')).length > 0, 10_000)
    for (const socket of sockets) socket.resetAndDestroy()
    await leavesNothing(t, app, acme, 'after all')
  })
  t.strictSame(faults, [], 'and nobody notices in any other way')
})

t.test('room for ten', async (t) => {
  const size = 10 * kibibyte
  const app = await startApp(t, { STORAGE_QUOTA: String(10 * size) })
  const [acme, rival] = [await createTenant(app, 'acme'), await createTenant(app, 'rival')]
  const port = await listen(app)
  const content = Buffer.alloc(size, 'x')
  const twenty = <T>(work: (index: number) => Promise<T>) => Promise.all(Array.from({ length: 20 }, (_, i) => work(i)))

  async function tenFit(t: Test, what: string, replies: { status: number; code?: string }[]) {
    t.equal(replies.filter(({ status }) => status < 300).length, 10, `${what}: ten succeed`)
    const others = replies.filter(({ status }) => status >= 300)
    t.ok(
      others.every(({ status, code }) => status === 422 && code === 'quota_exceeded'),
      JSON.stringify(others)
    )
    t.strictSame(await disagreements(app, acme), [], `${what}: rows, objects and count agree`)
    t.equal(await usageOf(acme), 10 * size)
    t.equal((await rival.send(fileForm(content))).statusCode, 201, 'a full agency is no other one’s business')
    await allRows(app.database, "update files set status = 'deleted', expires_at = now()")
    await app.objectSweep.run()
    t.equal(await usageOf(acme), 0)
  }
  const facts = (reply: Reply) => ({ status: reply.statusCode, code: reply.body && reply.json().code })

  t.test('by a form that says its length', async (t) => {
    await tenFit(t, 'form', (await twenty(() => acme.send(fileForm(content)))).map(facts))
  })
  t.test('by a form that does not', async (t) => {
    const { payload } = fileForm(content)
    const replies = await twenty(() =>
      exchange(port, [
        headOf(acme, [asForm, 'Transfer-Encoding: chunked']),
        Buffer.concat([Buffer.from(`${payload.length.toString(16)}\r\n`), payload, Buffer.from('\r\n0\r\n\r\n')])
      ])
    )
    await tenFit(
      t,
      'chunked',
      replies.map(({ status, body }) => ({ status, code: /"code":"(\w+)"/.exec(body)?.[1] ?? '' }))
    )
  })
  t.test('directly', async (t) => {
    const replies = await twenty(async () => {
      const begun = await acme.send(post('/files/uploads', announce(content)))
      if (begun.statusCode !== 201) return begun
      const { id, url, headers } = begun.json()
      const put = await send(app, 'localhost', { method: 'PUT', url: new URL(url).pathname, headers, payload: content })
      t.equal(put.statusCode, 204)
      return acme.send({ method: 'POST', url: `/api/v1/files/${id}/complete` })
    })
    await tenFit(t, 'direct', replies.map(facts))
  })
  t.test('resumable', async (t) => {
    const replies = await twenty(async () => {
      const begun = await acme.send({
        method: 'POST',
        url: '/api/v1/files/resumable',
        headers: { 'tus-resumable': '1.0.0', 'upload-length': String(size) }
      })
      if (begun.statusCode !== 201) return begun
      const headers = { 'upload-offset': '0', 'content-type': 'application/offset+octet-stream' }
      return acme.send({ method: 'PATCH', url: String(begun.headers.location), headers, payload: content })
    })
    await tenFit(t, 'resumable', replies.map(facts))
  })
})
