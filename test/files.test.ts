import { readdirSync, readlinkSync } from 'node:fs'
import { connect } from 'node:net'
import { setTimeout as sleep } from 'node:timers/promises'
import t from 'tap'
import { contentOf, listNames } from './file-requests.ts'
import { createFile, disagreements, storedObjects } from './forms.ts'
import { createTenant, eventually, post, send, setStatus, startApp, type TestApp } from './harness.ts'

t.test('a file goes in and comes out', async (t) => {
  const app = await startApp(t)
  const acme = await createTenant(app, 'acme')
  const rival = await createTenant(app, 'rival')
  const content = Buffer.from('%PDF-1.7\nhello hello')
  const file = await createFile(acme, content, 'a.pdf', 'application/pdf', { purpose: 'contract' })
  const tag = `"${file.sha256}"`
  const get = (headers: Record<string, string> = {}, method: 'GET' | 'HEAD' = 'GET') =>
    acme.send({ method, url: contentOf(file), headers })

  t.test('with what is known of it', async (t) => {
    t.match(file, { name: 'a.pdf', purpose: 'contract', size: 20, content_type: 'application/pdf' })
    t.equal(file.created_by, acme.owner.id)
    t.strictSame((await acme.send(`/api/v1/files/${file.id}`)).json(), file)
    t.strictSame([...storedObjects(app).objects], [[`${acme.id}/files/${file.id}`, 20]], 'under tenant and id')
    t.match((await acme.send('/api/v1/tenant')).json().usage, { storage_bytes: 20 })
  })
  t.test('to be saved, and never to be shown in place', async (t) => {
    const reply = await get()
    t.equal(reply.statusCode, 200)
    t.same(reply.rawPayload, content)
    t.match(reply.headers, {
      etag: tag,
      'content-type': 'application/pdf',
      'content-length': '20',
      'content-disposition': `attachment; filename="a.pdf"; filename*=UTF-8''a.pdf`,
      'x-content-type-options': 'nosniff',
      'content-security-policy': "default-src 'none'; frame-ancestors 'none'; sandbox",
      'cross-origin-resource-policy': 'same-origin',
      'cache-control': 'private, no-cache',
      'accept-ranges': 'bytes'
    })
  })
  t.test('HEAD says the same without the bytes', async (t) => {
    const [head, whole] = [await get({}, 'HEAD'), await get()]
    t.equal(head.statusCode, 200)
    t.equal(head.body, '')
    for (const name of Object.keys(whole.headers)) {
      if (!['date', 'x-request-id'].includes(name)) t.equal(head.headers[name], whole.headers[name], name)
    }
    t.equal((await get({ range: 'bytes=0-1' }, 'HEAD')).statusCode, 200, 'and knows no ranges')
  })
  t.test('304 for who has it', async (t) => {
    for (const known of [tag, `W/${tag}`, '*', `"x", ${tag}`]) {
      const reply = await get({ 'if-none-match': known })
      t.equal(reply.statusCode, 304, known)
      t.equal(reply.body, '')
      t.match(reply.headers, { etag: tag })
    }
    t.equal((await get({ 'if-none-match': '"x"' })).statusCode, 200)
    t.equal((await get({ 'if-none-match': tag, range: 'bytes=0-1' })).statusCode, 304, 'before any range')
  })
  t.test('206 for one range', async (t) => {
    const ranges: [range: string, start: number, end: number][] = [
      ['bytes=0-0', 0, 0],
      ['bytes=5-9', 5, 9],
      ['bytes=15-', 15, 19],
      ['bytes=-5', 15, 19],
      ['bytes=-100', 0, 19],
      ['bytes=10-1000', 10, 19],
      ['Bytes=0-19', 0, 19]
    ]
    for (const [range, start, end] of ranges) {
      const reply = await get({ range })
      t.equal(reply.statusCode, 206, range)
      t.same(reply.rawPayload, content.subarray(start, end + 1), range)
      const length = String(end - start + 1)
      t.match(reply.headers, { 'content-range': `bytes ${start}-${end}/20`, 'content-length': length, etag: tag })
    }
  })
  t.test('416 for one that is not there, and as an ordinary problem', async (t) => {
    for (const range of ['bytes=20-', 'bytes=20-30', 'bytes=-0']) {
      const reply = await get({ range })
      t.match(reply.json(), { status: 416, code: 'range_not_satisfiable' }, range)
      t.match(reply.headers, { 'content-range': 'bytes */20', 'content-disposition': undefined })
    }
  })
  t.test('the whole for a range that is none, or more than one', async (t) => {
    for (const range of [
      'bytes=0-1,3-4',
      'bytes=5-2',
      'bytes=a-b',
      'bytes=',
      'bytes=-',
      'lines=0-1',
      '0-1',
      'bytes 0-1'
    ]) {
      const reply = await get({ range })
      t.equal(reply.statusCode, 200, range)
      t.same(reply.rawPayload, content, range)
      t.notOk('content-range' in reply.headers, range)
    }
  })
  t.test('If-Range compares strongly, or sends the whole', async (t) => {
    const range = 'bytes=0-1'
    t.equal((await get({ range, 'if-range': tag })).statusCode, 206)
    for (const other of [`W/${tag}`, '"x"', '*', `"x", ${tag}`, '', new Date().toUTCString()]) {
      t.equal((await get({ range, 'if-range': other })).statusCode, 200, other)
    }
    t.equal((await get({ range: 'bytes=50-', 'if-range': '"x"' })).statusCode, 200, 'also where the range is wrong')
  })
  t.test('another agency sees none of it', async (t) => {
    for (const path of ['', '/content', '/url']) {
      const theirs = await rival.send(`/api/v1/files/${file.id}${path}`)
      t.match(theirs.json(), { status: 404, code: 'not_found' }, path)
    }
    t.strictSame((await rival.send('/api/v1/files')).json().data, [])
    t.match((await rival.send({ method: 'DELETE', url: `/api/v1/files/${file.id}` })).json(), { status: 404 })
  })
  t.test('and an empty one too', async (t) => {
    const empty = await createFile(acme, '', 'empty.txt')
    t.equal(empty.size, 0)
    const reply = await acme.send(contentOf(empty))
    t.match([reply.statusCode, reply.body, reply.headers['content-length']], [200, '', '0'])
    for (const [range, status] of [
      ['bytes=0-', 416],
      ['bytes=-0', 416],
      ['bytes=-1', 200],
      ['bytes=-500', 200]
    ] as const) {
      t.equal((await acme.send({ url: contentOf(empty), headers: { range } })).statusCode, status, range)
    }
    t.strictSame(await disagreements(app, acme), [])
  })
})

t.test('what would be dangerous in a browser is saved, whatever it says it is', async (t) => {
  const app = await startApp(t)
  const acme = await createTenant(app, 'acme')
  for (const [name, type, content] of [
    ['page.html', 'text/html', '<script>alert(1)</script>'],
    ['logo.svg', 'image/svg+xml', '<svg xmlns="http://www.w3.org/2000/svg" onload="alert(1)"/>'],
    ['page.xhtml', 'application/xhtml+xml', '<?xml version="1.0"?><html xmlns="http://www.w3.org/1999/xhtml"/>']
  ] as const) {
    const file = await createFile(acme, content, name, type)
    const { headers } = await acme.send(contentOf(file))
    t.match(headers, { 'content-disposition': /^attachment;/, 'x-content-type-options': 'nosniff' }, name)
    t.match(headers['content-security-policy'], /default-src 'none'.*sandbox/, name)
  }
})

t.test('a name is only a name', async (t) => {
  const app = await startApp(t)
  const acme = await createTenant(app, 'acme')
  const names: [given: string, kept: string][] = [
    ['../../etc/passwd', 'passwd'],
    ['/etc/passwd', 'passwd'],
    ['C:\\\\fakepath\\\\notes.txt', 'notes.txt'],
    ['..', 'file'],
    ['.', 'file'],
    ['', 'file'],
    ['   ', 'file'],
    ['Übersicht (1).txt', 'Übersicht (1).txt'],
    ['U\u0308bersicht.txt', 'Übersicht.txt'],
    ['😀 emoji.txt', '😀 emoji.txt'],
    ['invoice\u202etxt.fdp', 'invoicetxt.fdp'],
    ['a%22b.txt', 'a%22b.txt'],
    ['semi;colon, comma.txt', 'semi;colon, comma.txt'],
    ["it's 100%.txt", "it's 100%.txt"],
    [`${'long'.repeat(250)}.txt`, `${'long'.repeat(62)}lon.txt`],
    [`${'ü'.repeat(300)}.txt`, `${'ü'.repeat(125)}.txt`]
  ]
  for (const [given, kept] of names) {
    const file = await createFile(acme, 'x', given, 'text/plain')
    t.equal(file.name, kept, JSON.stringify(given.slice(0, 40)))
    const disposition = String((await acme.send(contentOf(file))).headers['content-disposition'])
    const [, plain = '', extended = ''] =
      /^attachment; filename="([^"\\]*)"; filename\*=UTF-8''([\w.~!#$&+^`|%-]*)$/.exec(disposition) ?? ['']
    t.not(plain, '', `${disposition} can be read by everybody`)
    t.equal(decodeURIComponent(extended), kept, 'and names the file')
  }
  const keys = [...storedObjects(app).objects.keys()]
  t.ok(keys.every((key) => /^[0-9a-f-]{36}\/files\/[0-9a-f-]{36}$/.test(key)))
  t.equal(keys.length, names.length)

  t.test('also where a client writes JSON', async (t) => {
    const sha256 = '0'.repeat(64)
    const ask = (name: string) =>
      acme.send(post('/files/uploads', { name, content_type: 'text/plain', size: 1, sha256 }))
    for (const name of ['a\r\nSet-Cookie: x', 'a\u0000b', 'a\u0085b', '', 'x'.repeat(256)]) {
      t.match((await ask(name)).json(), { status: 400, code: 'validation_failed' }, JSON.stringify(name.slice(0, 20)))
    }
    t.equal((await ask('a"b\\c.txt')).statusCode, 201)
  })
})

t.test('a link', async (t) => {
  const app = await startApp(t)
  const acme = await createTenant(app, 'acme')
  const rival = await createTenant(app, 'rival')
  const file = await createFile(acme, 'linked')
  const before = Date.now()
  const { url, expires_at } = (await acme.send(`/api/v1/files/${file.id}/url`)).json()
  const path = new URL(url).pathname

  t.test('is good without a token, on the host of its agency and the general one', async (t) => {
    t.equal(new URL(url).host, 'acme.localhost')
    for (const host of ['acme.localhost', 'localhost']) {
      const reply = await send(app, host, path)
      t.equal(reply.body, 'linked', host)
      t.match(reply.headers, { 'content-disposition': /^attachment/, 'content-security-policy': /sandbox/ })
    }
    const part = await acme.anonymous({ url: path, headers: { range: 'bytes=0-3' } })
    t.match([part.statusCode, part.body], [206, 'link'])
  })
  t.test('ends within five minutes', async (t) => {
    t.ok(Date.parse(expires_at) - before <= 300_000 + (Date.now() - before))
    const facts = { tenant_id: acme.id, id: file.id, expires_at: new Date(Date.now() - 1) }
    const over = await acme.anonymous(`/api/v1/files/links/${app.fileLinks.issue('read', facts)}/content`)
    t.match(over.json(), { status: 404, code: 'not_found' })
  })
  t.test('is good on no other host, for no other file and for nothing else', async (t) => {
    t.match((await rival.anonymous(path)).json(), { status: 403, code: 'tenant_mismatch' })
    const token = path.split('/').at(-2) as string
    for (const [what, changed] of [
      ['another file', flip(token, 20)],
      ['another agency', flip(token, 2)],
      ['another time', flip(token, 45)],
      ['another signature', flip(token, 70)],
      ['a shorter one', token.slice(0, -1)],
      ['none', 'x']
    ] as const) {
      const reply = await acme.anonymous(`/api/v1/files/links/${changed}/content`)
      t.match(reply.json(), { status: 404, code: 'not_found' }, what)
    }
    t.match((await acme.anonymous({ method: 'PUT', url: path, payload: 'other' })).json(), { status: 404 })
  })
  t.test('is in no log', async (t) => {
    const noisy = await startApp(t, { LOG_LEVEL: 'debug' }, app.database)
    await send(noisy, 'acme.localhost', path)
    await send(noisy, 'acme.localhost', { method: 'PUT', url: path, payload: 'x' })
    await eventually(() => noisy.logLines.some((line) => line.includes('/api/v1/files/links')))
    t.notMatch(noisy.logLines.join(''), path.split('/').at(-2) as string)
  })
  t.test('ends with its file, and with its agency', async (t) => {
    await setStatus(app, acme, 'suspended')
    await app.revocations.readNow()
    t.equal((await send(app, 'localhost', path)).statusCode, 404)
    await setStatus(app, acme, 'active')
    await app.revocations.readNow()
    t.equal((await send(app, 'localhost', path)).statusCode, 200)
    await acme.send({ method: 'DELETE', url: `/api/v1/files/${file.id}` })
    t.equal((await send(app, 'localhost', path)).statusCode, 404)
  })
})

/** Changes one letter of a token. */
function flip(token: string, at: number): string {
  return `${token.slice(0, at)}${token[at] === 'A' ? 'B' : 'A'}${token.slice(at + 1)}`
}

t.test('lists', async (t) => {
  const app = await startApp(t)
  const acme = await createTenant(app, 'acme')
  for (const [name, purpose] of [
    ['Vertrag Müller.txt', 'contract'],
    ['Rechnung 100%.txt', 'invoice'],
    ['a_b.txt', 'invoice'],
    ['ÇA VA.txt', 'contract'],
    ['Straße\u00a0Plan.txt', 'plan'],
    ['back;slash.txt', 'plan']
  ] as const) {
    await createFile(acme, name, name, 'text/plain', { purpose })
  }

  t.test('show the newest first, a page at a time', async (t) => {
    const names = await listNames(acme, { limit: '2' })
    t.equal(names.length, 6)
    t.equal(names[0], 'back;slash.txt')
    t.equal(names.at(-1), 'Vertrag Müller.txt')
  })
  t.test('filter by purpose and by part of the name, whatever its case and accents', async (t) => {
    t.strictSame(await listNames(acme, { purpose: 'invoice' }), ['a_b.txt', 'Rechnung 100%.txt'])
    t.strictSame(await listNames(acme, { purpose: 'none' }), [])
    const searches: [q: string, found: string[]][] = [
      ['muller', ['Vertrag Müller.txt']],
      ['MÜLLER', ['Vertrag Müller.txt']],
      ['ça va', ['ÇA VA.txt']],
      ['%', ['Rechnung 100%.txt']],
      ['_', ['a_b.txt']],
      ['a%t', []],
      ['\\', []],
      ["'", []],
      ['straße plan', ['Straße\u00a0Plan.txt']],
      ['\u0000', []]
    ]
    for (const [q, found] of searches) {
      if (q === '\u0000') {
        t.equal((await acme.send(`/api/v1/files?${new URLSearchParams({ q })}`)).statusCode, 400)
      } else t.strictSame(await listNames(acme, { q }), found, q)
    }
    t.strictSame(await listNames(acme, { q: 'txt', purpose: 'contract', limit: '1' }), [
      'ÇA VA.txt',
      'Vertrag Müller.txt'
    ])
  })
  t.test('bind their cursors to the filters', async (t) => {
    const first = (await acme.send('/api/v1/files?limit=1&purpose=invoice')).json()
    const { next_cursor: cursor } = first
    for (const query of ['', '&purpose=contract', '&purpose=invoice&q=a', '&purpose=invoice&deleted=true']) {
      const reply = await acme.send(`/api/v1/files?limit=1&cursor=${cursor}${query}`)
      t.match(reply.json(), { status: 400, code: 'invalid_cursor' }, query)
    }
    t.equal((await acme.send(`/api/v1/files?limit=1&purpose=invoice&cursor=${cursor}`)).json().data.length, 1)
  })
  t.test('refuse what they do not know', async (t) => {
    t.strictSame(
      (await acme.send(`/api/v1/files?q=${encodeURIComponent('\u0301')}`)).json().data,
      [],
      'an accent alone'
    )
    for (const query of ['purpose=A', 'q=', `q=${'x'.repeat(101)}`, 'deleted=maybe', 'limit=0', 'limit=101', 'x=1']) {
      t.match((await acme.send(`/api/v1/files?${query}`)).json(), { status: 400, code: 'validation_failed' }, query)
    }
  })
})

t.test('readers', async (t) => {
  const app = await startApp(t)
  const acme = await createTenant(app, 'acme')
  const size = 48 * 1024 * 1024
  const file = await createFile(acme, Buffer.alloc(size, 'x'), 'large.bin', 'application/octet-stream')
  await app.listen({ host: '127.0.0.1', port: 0 })
  const { port } = app.server.address() as { port: number }
  const open = () => openObjects(app)

  /** Requests the file, and does not read the reply. */
  function ask() {
    const socket = connect({ port, host: '127.0.0.1' })
    socket.pause()
    socket.on('error', () => {})
    socket.write(
      `GET ${contentOf(file)} HTTP/1.1\r\nHost: acme.localhost\r\nAuthorization: Bearer ${acme.owner.tokens.access_token}\r\n\r\n`
    )
    return socket
  }

  t.test('who are slow do not fill the memory', async (t) => {
    const before = process.memoryUsage().rss
    const sockets = Array.from({ length: 10 }, ask)
    await eventually(() => open() === 10)
    await sleep(500)
    const grown = (process.memoryUsage().rss - before) / 1024 / 1024
    t.ok(grown < 64, `${grown.toFixed()} MiB for ten readers of 48 MiB each`)
    for (const socket of sockets) socket.destroy()
    await eventually(() => open() === 0, 15_000)
  })
  t.test('who go away leave nothing open', async (t) => {
    for (let i = 0; i < 20; i++) {
      const socket = ask()
      await new Promise((done) => socket.once('readable', done))
      socket.destroy()
    }
    await eventually(() => open() === 0, 15_000)
    t.equal(open(), 0)
  })
  t.test('who only ask for the head open nothing', async (t) => {
    await Promise.all(Array.from({ length: 10 }, () => acme.send({ method: 'HEAD', url: contentOf(file) })))
    t.equal(open(), 0)
  })
})

/** The number of files of the store that this process has open. */
function openObjects(app: TestApp): number {
  return readdirSync('/proc/self/fd').filter((fd) => {
    try {
      return readlinkSync(`/proc/self/fd/${fd}`).includes(`${app.config.dataDir}/files/`)
    } catch {
      return false
    }
  }).length
}
