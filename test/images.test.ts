import { randomBytes } from 'node:crypto'
import { crc32, deflateSync } from 'node:zlib'
import sharp from 'sharp'
import t from 'tap'
import { usageOf } from './file-requests.ts'
import { form, storedObjects } from './forms.ts'
import { addMember, allRows, createTenant, password, post, type Reply, startApp, type Tenant } from './harness.ts'

// bounded in time: how long an image may take

const avatar = '/api/v1/users/me/avatar'
const logo = '/api/v1/tenant/logo'
const put = (url: string, content: Buffer | string, filename = 'face.png', type = 'image/png') =>
  ({ method: 'PUT', url, ...form([{ name: 'file', filename, type, content }]) }) as const

/** A picture with a red left half and a blue right half. */
async function picture(width: number, height: number) {
  const half = { width: Math.ceil(width / 2), height, channels: 3 as const }
  const right = await sharp({ create: { ...half, background: 'blue' } })
    .png()
    .toBuffer()
  return sharp({ create: { width, height, channels: 3, background: 'red' } }).composite([
    { input: right, left: Math.floor(width / 2), top: 0 }
  ])
}

/** A PNG of few bytes, whose header states any size. */
function pngOf(width: number, height: number): Buffer {
  const chunk = (type: string, data: Buffer) => {
    const body = Buffer.concat([Buffer.from(type), data])
    const frame = Buffer.alloc(8)
    frame.writeUInt32BE(data.length, 0)
    frame.writeUInt32BE(crc32(body), 4)
    return Buffer.concat([frame.subarray(0, 4), body, frame.subarray(4)])
  }
  const header = Buffer.alloc(13)
  header.writeUInt32BE(width, 0)
  header.writeUInt32BE(height, 4)
  header.set([8, 2, 0, 0, 0], 8)
  return Buffer.concat([
    Buffer.from('\x89PNG\r\n\x1a\n', 'latin1'),
    chunk('IHDR', header),
    chunk('IDAT', deflateSync(Buffer.alloc(4 * 1024 * 1024))),
    chunk('IEND', Buffer.alloc(0))
  ])
}

const fetchImage = (tenant: Tenant, url: string): Promise<Reply> => tenant.anonymous(url)

t.test('an avatar', async (t) => {
  const app = await startApp(t)
  const acme = await createTenant(app, 'acme')
  const me = async () => acme.send('/api/v1/users/me')

  t.test('is re-encoded, small, and fetched by its address without a token', async (t) => {
    const before = (await me()).headers.etag
    const reply = await acme.send(put(avatar, await (await picture(2000, 1000)).png().toBuffer()))
    t.equal(reply.statusCode, 200, reply.body)
    const url = reply.json().avatar_url
    t.equal(reply.headers.etag, (await me()).headers.etag, 'the tag that reads the change anywhere')
    t.match(url, /^\/api\/v1\/images\/[0-9a-f-]{36}\/[0-9a-f-]{36}$/)
    t.not((await me()).headers.etag, before, 'who has read the person before reads anew')
    t.equal((await me()).json().avatar_url, url)
    const image = await fetchImage(acme, url)
    t.match(image.headers, {
      'content-type': 'image/webp',
      'x-content-type-options': 'nosniff',
      'cross-origin-resource-policy': 'cross-origin',
      'cache-control': /immutable/,
      'content-length': String(image.rawPayload.length)
    })
    t.match(await sharp(image.rawPayload).metadata(), { format: 'webp', width: 512, height: 256 })
    const tag = String(image.headers.etag)
    for (const known of [tag, `W/${tag}`, `"x", ${tag}`]) {
      t.equal((await acme.anonymous({ url, headers: { 'if-none-match': known } })).statusCode, 304, known)
    }
    const head = await acme.anonymous({ method: 'HEAD', url })
    t.match([head.statusCode, head.headers['content-length'], head.body], [200, image.headers['content-length'], ''])
  })
  t.test('replaces the one before, whose bytes are gone', async (t) => {
    const { avatar_url: before } = (await me()).json()
    const tag = String((await fetchImage(acme, before)).headers.etag)
    const { avatar_url: after } = (await acme.send(put(avatar, await (await picture(64, 64)).jpeg().toBuffer()))).json()
    t.not(after, before)
    t.equal((await fetchImage(acme, before)).statusCode, 404)
    t.equal((await acme.anonymous({ url: before, headers: { 'if-none-match': tag } })).statusCode, 404)
    t.equal(storedObjects(app).objects.size, 1)
  })
  t.test('is one, however many come at once', async (t) => {
    const content = await (await picture(16, 16)).png().toBuffer()
    const replies = await Promise.all(Array.from({ length: 10 }, () => acme.send(put(avatar, content))))
    t.ok(replies.every(({ statusCode }) => statusCode === 200))
    const { objects } = storedObjects(app)
    t.equal(objects.size, 1)
    const url = (await me()).json().avatar_url
    t.equal((await fetchImage(acme, url)).statusCode, 200)
  })
  t.test('is removed', async (t) => {
    const { avatar_url: url } = (await me()).json()
    for (let i = 0; i < 2; i++) t.equal((await acme.send({ method: 'DELETE', url: avatar })).statusCode, 204)
    t.equal((await me()).json().avatar_url, null)
    t.equal((await fetchImage(acme, url)).statusCode, 404)
    t.equal(storedObjects(app).objects.size, 0)
    const { data } = (await acme.send('/api/v1/audit-events?limit=100')).json()
    const count = (action: string) => data.filter((event: { action: string }) => event.action === action).length
    t.match([count('user.avatar_set'), count('user.avatar_removed')], [12, 1])
  })
})

t.test('whatever a camera or program writes is made harmless', async (t) => {
  const app = await startApp(t)
  const acme = await createTenant(app, 'acme')
  async function through(content: Buffer, filename: string, type: string) {
    const reply = await acme.send(put(avatar, content, filename, type))
    t.equal(reply.statusCode, 200, `${filename}: ${reply.body}`)
    const { rawPayload } = await fetchImage(acme, reply.json().avatar_url)
    return { bytes: rawPayload, facts: await sharp(rawPayload).metadata() }
  }

  t.test('metadata is gone, and the picture upright', async (t) => {
    const exif = { IFD0: { Copyright: 'EXIF-CANARY', Orientation: '6' }, IFD3: { GPSLatitude: '48/1 8/1 0/1' } }
    const content = await (await picture(100, 50)).withExif(exif).jpeg().toBuffer()
    t.ok(content.includes('EXIF-CANARY'))
    const turned = await sharp(content).withMetadata({ orientation: 6 }).jpeg().toBuffer()
    const { bytes, facts } = await through(turned, 'a.jpg', 'image/jpeg')
    t.match(facts, { width: 50, height: 100, exif: undefined, orientation: undefined, icc: undefined, xmp: undefined })
    t.notOk(bytes.includes('CANARY'))
    const { data } = await sharp(bytes).removeAlpha().raw().toBuffer({ resolveWithObject: true })
    const [red = 0, , blue = 0] = data
    t.ok(red > 200 && blue < 60, 'left became top')
  })
  t.test('nothing of the original bytes is left', async (t) => {
    const content = Buffer.concat([
      await (await picture(8, 8)).png().toBuffer(),
      Buffer.from('<script>POLYGLOT</script>')
    ])
    t.notOk((await through(content, 'a.png', 'image/png')).bytes.includes('POLYGLOT'))
  })
  t.test('of any kind', async (t) => {
    const frames = await sharp({
      create: { width: 20, height: 40, channels: 3, background: 'red', pageHeight: 20 } as never
    })
      .gif({ delay: [100, 100] })
      .toBuffer()
    const samples: [string, string, Buffer][] = [
      ['moving.gif', 'image/gif', frames],
      ['print.jpg', 'image/jpeg', await (await picture(40, 40)).toColourspace('cmyk').jpeg().toBuffer()],
      ['deep.png', 'image/png', await (await picture(40, 40)).toColourspace('rgb16').png().toBuffer()],
      ['a.webp', 'image/webp', await (await picture(40, 40)).webp().toBuffer()],
      ['a.avif', 'image/avif', await (await picture(40, 40)).avif().toBuffer()],
      ['grey.png', 'image/png', await (await picture(40, 40)).greyscale().png().toBuffer()],
      ['thin.png', 'image/png', await (await picture(5000, 2)).png().toBuffer()]
    ]
    for (const [name, type, content] of samples) {
      const { facts } = await through(content, name, type)
      t.match(facts, { format: 'webp', space: 'srgb' }, name)
      t.ok(facts.width <= 512 && facts.height <= 512 && (facts.pages ?? 1) === 1, name)
    }
  })
})

t.test('what is no image, or too much of one, is refused and leaves nothing', async (t) => {
  const app = await startApp(t)
  const acme = await createTenant(app, 'acme')
  const jpeg = await (await picture(800, 800)).jpeg().toBuffer()
  const png = await (await picture(800, 800)).png().toBuffer()
  const gif = Buffer.from(
    '47494638396160ea60ea800000000000ffffff2c0000000060ea60ea00000202440100 3b'.replace(' ', ''),
    'hex'
  )
  const samples: [what: string, status: number, code: string, content: Buffer | string][] = [
    ['50,000 pixels each way', 400, 'validation_failed', pngOf(50_000, 50_000)],
    ['more pixels than may be', 400, 'validation_failed', pngOf(6400, 6400)],
    ['a side longer than may be', 400, 'validation_failed', pngOf(10_001, 4)],
    ['a GIF that says so and has none of them', 415, 'unsupported_media_type', gif],
    ['half a JPEG', 415, 'unsupported_media_type', jpeg.subarray(0, jpeg.length / 2)],
    ['half a PNG', 415, 'unsupported_media_type', png.subarray(0, png.length / 2)],
    ['a PNG of too few bytes', 415, 'unsupported_media_type', pngOf(6000, 6000)],
    ['an SVG', 415, 'unsupported_media_type', '<svg xmlns="http://www.w3.org/2000/svg" width="9" height="9"/>'],
    ['a PDF', 415, 'unsupported_media_type', '%PDF-1.7\n'],
    ['a TIFF', 415, 'unsupported_media_type', await (await picture(8, 8)).tiff().toBuffer()],
    ['text', 415, 'unsupported_media_type', 'hello'],
    ['nothing', 415, 'unsupported_media_type', ''],
    ['noise', 415, 'unsupported_media_type', Buffer.concat([png.subarray(0, 40), randomBytes(1000)])],
    ['more than ten megabytes', 413, 'file_too_large', Buffer.alloc(10 * 1024 * 1024 + 1)]
  ]
  const before = process.memoryUsage().rss
  let most = before
  for (const [what, status, code, content] of samples) {
    const reply = await acme.send(put(avatar, content))
    t.match(reply.json(), { status, code }, `${what}: ${reply.body}`)
    most = Math.max(most, process.memoryUsage().rss)
  }
  t.ok(most - before < 400 * 1024 * 1024, `${Math.round((most - before) / 1024 / 1024)} MiB at most`)
  const image = { name: 'file', filename: 'a.png', content: png }
  const extra = { name: 'caption', content: 'Ada' }
  const forms: [what: string, status: number, request: object][] = [
    ['no form', 415, { method: 'PUT', url: avatar, headers: { 'content-type': 'application/json' }, payload: '{}' }],
    ['no file', 400, { method: 'PUT', url: avatar, ...form([]) }],
    [
      'another name',
      400,
      { method: 'PUT', url: avatar, ...form([{ name: 'image', filename: 'a.png', content: png }]) }
    ],
    ['a field', 400, { method: 'PUT', url: avatar, ...form([{ name: 'x', content: 'y' }]) }],
    [
      'a field that is called like the file',
      400,
      { method: 'PUT', url: avatar, ...form([{ name: 'file', content: 'y' }]) }
    ],
    ...[
      [image, extra],
      [extra, image],
      [image, image],
      [image, { ...image, name: 'second' }]
    ].map((parts): [string, number, object] => [
      parts.map(({ name }) => name).join(' and '),
      400,
      { method: 'PUT', url: avatar, ...form(parts) }
    ]),
    ['__proto__', 400, { method: 'PUT', url: avatar, ...form([{ name: '__proto__', filename: 'a', content: png }]) }]
  ]
  for (const [what, status, request] of forms) {
    const reply = await acme.send(request as never)
    t.equal(reply.statusCode, status, `${what}: ${reply.body}`)
  }
  for (const parts of [[image, extra], [extra, image], [extra]]) {
    for (const url of [avatar, logo]) {
      const { errors } = (await acme.send({ method: 'PUT', url, ...form(parts) })).json()
      t.strictSame(errors, [{ path: '/body/caption', message: 'is no part of this form, which has file' }])
    }
  }
  t.equal((await acme.send('/api/v1/users/me')).json().avatar_url, null)
  t.equal(storedObjects(app).objects.size, 0)
})

t.test('a logo', async (t) => {
  const app = await startApp(t)
  const acme = await createTenant(app, 'acme')
  const rival = await createTenant(app, 'rival')
  const content = await (await picture(32, 32)).png().toBuffer()
  const as = async (role: string) => {
    const other = await createTenant(app, `${role}-of-acme`)
    await addMember(app, acme, other.owner.id, role)
    return (await acme.anonymous(post('/auth/login', { email: other.owner.email, password }))).json().access_token
  }

  t.test('is set and removed by admins alone', async (t) => {
    const [admin, member] = [await as('admin'), await as('member')]
    t.match((await acme.with(member, put(logo, content))).json(), { status: 403, code: 'forbidden' })
    t.match((await acme.with(member, { method: 'DELETE', url: logo })).json(), { status: 403, code: 'forbidden' })
    const before = (await acme.send('/api/v1/tenant')).headers.etag
    const reply = await acme.with(admin, put(logo, content))
    t.equal(reply.statusCode, 200)
    const after = await acme.send('/api/v1/tenant')
    t.not(after.headers.etag, before)
    t.equal(after.json().logo_url, reply.json().logo_url)
    t.equal((await fetchImage(acme, reply.json().logo_url)).statusCode, 200)
    t.equal((await rival.send('/api/v1/tenant')).json().logo_url, null)
    t.equal((await acme.with(admin, { method: 'DELETE', url: logo })).statusCode, 204)
    t.equal((await fetchImage(acme, reply.json().logo_url)).statusCode, 404)
    t.equal(await usageOf(acme), 0, 'images take no room')
  })
  t.test('that is not referred to is never shown', async (t) => {
    const { objects } = app
    const transaction = app.gate.transaction
    app.gate.transaction = () => Promise.reject(new Error('the database said no'))
    t.equal((await acme.send(put(logo, content))).statusCode, 500)
    app.gate.transaction = transaction
    t.equal((await acme.send('/api/v1/tenant')).json().logo_url, null)
    const [orphan] = [...storedObjects(app).objects.keys()]
    t.ok(orphan, 'it waits for the sweep')
    await objects.remove(orphan as string)
    t.equal((await allRows(app.database, "select from audit_events where action = 'tenant.logo_set'")).length, 1)
  })
})
