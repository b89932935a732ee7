import { createHash, randomBytes } from 'node:crypto'
import { mkdirSync, readdirSync, utimesSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import type { Readable } from 'node:stream'
import { buffer } from 'node:stream/consumers'
import { setTimeout as sleep } from 'node:timers/promises'
import t, { type Test } from 'tap'
import { fileKey, markKey, uploadKey } from '../src/files/store/keys.ts'
import type { DirectRequest, ObjectStore, Part } from '../src/files/store/object-store.ts'
import { partBytes, writeObject } from '../src/files/store/object-writer.ts'
import { uploadResumably, usageOf } from './file-requests.ts'
import { form } from './forms.ts'
import { createTenant, post, startApp } from './harness.ts'
import { asRoot, bucket, createMinioAdmin, encrypt, objectStores, type StartedStore } from './object-stores.ts'

// bounded in time: how long a store may take
// rehearsal: every kind of object store, on real servers

/*
 * Every kind of store keeps the promises of src/files/store/object-store.ts, and the product works with each.
 */

const tenant = (letter: string) => `${letter.repeat(8)}-0000-7000-8000-000000000000`
const id = (number: number) => `00000000-0000-7000-8000-${String(number).padStart(12, '0')}`
const key = (number: number, letter = 'a') => fileKey(tenant(letter), id(number))
const read = async (stream: Readable | undefined) => stream && buffer(stream)
const storeFailure = { message: /^the object store is / }
const sum = (content: Buffer) => createHash('sha256').update(content).digest()

async function everything(store: ObjectStore, limit = 1000): Promise<string[]> {
  const keys: string[] = []
  for (let page = await store.list('', limit); page.length > 0; page = await store.list(keys.at(-1) as string, limit)) {
    keys.push(...page.map((each) => each.key))
  }
  return keys.filter((key) => key !== markKey)
}

for (const kind of objectStores) {
  t.test(kind.name, { skip: kind.skip }, async (t) => {
    const started = await kind.start(t)
    const store = started.open()
    await store.check()

    await t.test('keeps objects as they are given', (t) => keepsObjects(t, store))
    await t.test('lists objects in the order of their keys, page by page', (t) => lists(t, store))
    await t.test('makes one object of parts, which is not seen before', (t) => assembles(t, store))
    await t.test('leaves nothing of a content that fails', (t) => leavesNothing(t, store, started))
    if (started.s3) await t.test('lets clients do what was signed and nothing else', (t) => obeysSignatures(t, store))
    if (started.s3) await t.test('gives the product its bucket and no more', (t) => keepsToItsBucket(t, started))
    await t.test('carries the product', (t) => carries(t, store, started))
  })
}

async function keepsObjects(t: Test, store: ObjectStore): Promise<void> {
  const content = randomBytes(300_000)
  await store.put(key(1), content)
  t.equal(await store.size(key(1)), content.length)
  t.ok((await read(await store.get(key(1))))?.equals(content))
  for (const [start, end] of [
    [0, 0],
    [0, 99],
    [100, 200_000],
    [content.length - 1, content.length - 1]
  ] as const) {
    t.ok((await read(await store.get(key(1), { start, end })))?.equals(content.subarray(start, end + 1)))
  }
  await store.put(key(1), Buffer.from('replaced'))
  t.equal(String(await read(await store.get(key(1)))), 'replaced')

  await store.put(key(2), Buffer.alloc(0))
  t.equal(await store.size(key(2)), 0)
  await store.move(key(1), key(2))
  t.equal(await store.size(key(1)), undefined)
  t.equal(String(await read(await store.get(key(2)))), 'replaced')
  await t.rejects(store.move(key(1), key(2)), storeFailure, 'what is not there can not be moved')
  t.equal(await store.size(key(2)), 8)

  await store.remove(key(2))
  await store.remove(key(2))
  t.equal(await store.get(key(2)), undefined)
  t.equal(await store.get(key(2), { start: 0, end: 1 }), undefined)
  t.equal(await store.size(key(2)), undefined)

  // a reader that stops leaves the store usable for others
  await store.put(key(1), randomBytes(3_000_000))
  for (let times = 0; times < 5; times++) {
    const stream = (await store.get(key(1))) as Readable
    for await (const _ of stream) break
    t.ok(stream.destroyed)
  }
  await store.remove(key(1))
}

async function lists(t: Test, store: ObjectStore): Promise<void> {
  const keys = [
    ...['b', 'a'].flatMap((letter) => [key(2, letter), key(1, letter), key(10, letter)]),
    uploadKey(tenant('a'), id(1))
  ]
  for (const each of keys) await store.put(each, Buffer.from(each))
  for (const limit of [1, 3, 1000]) t.strictSame(await everything(store, limit), keys.toSorted())
  const [first] = await store.list('', 1)
  t.equal(first?.size, Buffer.byteLength(first?.key ?? ''))
  t.ok(Math.abs(Date.now() - (first?.modified_at.getTime() ?? 0)) < 60_000)
  for (const each of keys) await store.remove(each)
  t.strictSame(await store.list('', 10), [])
}

async function assembles(t: Test, store: ObjectStore): Promise<void> {
  const size = Math.max(store.minPartBytes, 1000)
  const content = randomBytes(2 * size + 5)
  const begun = await store.startParts(key(1))
  const put = (number: number, bytes = content.subarray((number - 1) * size, number * size)) =>
    store.putPart(key(1), begun, number, (number - 1) * size, bytes)
  await put(1, Buffer.alloc(size))
  const parts: Part[] = []
  for (const number of [1, 2, 3]) parts.push(await put(number))
  t.equal(await store.size(key(1)), undefined)
  t.strictSame(await store.list('', 10), [])
  await store.finishParts(key(1), begun, parts)
  t.ok((await read(await store.get(key(1))))?.equals(content))
  await store.remove(key(1))

  const dropped = await store.startParts(key(2))
  const part = await store.putPart(key(2), dropped, 1, 0, content.subarray(0, size))
  await store.dropParts(key(2), dropped)
  await store.dropParts(key(2), dropped)
  await t.rejects(store.finishParts(key(2), dropped, [part]), storeFailure)
  await t.rejects(store.putPart(key(2), dropped, 1, 0, content.subarray(0, size)), storeFailure)
  t.strictSame(await store.list('', 10), [])
}

/** The parts that a store still keeps of objects that were never completed. */
async function unfinished({ environment, s3 }: StartedStore): Promise<string[]> {
  if (!s3) return readdirSync(join(environment.DATA_DIR as string, 'files', 'unfinished'))
  const found = []
  for await (const { key } of asRoot(s3.root).listIncompleteUploads(bucket, '', true)) found.push(key)
  return found
}

async function leavesNothing(t: Test, store: ObjectStore, started: StartedStore): Promise<void> {
  async function* content(bytes: number) {
    for (let left = bytes; left > 0; left -= 65_536) yield Buffer.alloc(Math.min(65_536, left))
    throw new Error('the sender is gone')
  }
  for (const bytes of [0, 1000, 2 * partBytes + 1]) {
    await t.rejects(writeObject(store, key(1), content(bytes)), { message: 'the sender is gone' })
  }
  t.strictSame(await store.list('', 10), [])
  t.strictSame(await unfinished(started), [])

  for (const bytes of [0, 1000, partBytes, 2 * partBytes + 1]) {
    const whole = randomBytes(bytes)
    async function* pieces() {
      for (let at = 0; at < bytes; at += 100_000) yield whole.subarray(at, at + 100_000)
    }
    await writeObject(store, key(1), pieces())
    t.ok((await read(await store.get(key(1))))?.equals(whole), `${bytes} bytes`)
  }
  await store.remove(key(1))
  t.strictSame(await unfinished(started), [])
}

/** As any client would; the length is that of what is sent. */
function sendDirectly({ url, method, headers: { 'content-length': _, ...headers } }: DirectRequest, body?: Buffer) {
  return fetch(url, { method, headers, ...(body && { body: new Uint8Array(body) }) })
}

async function obeysSignatures(t: Test, store: ObjectStore): Promise<void> {
  const direct = store.direct
  if (!direct) throw new Error('nothing can be signed')
  const content = randomBytes(100_000)
  const facts = { size: content.length, sha256: sum(content), content_type: 'application/pdf' }
  const signed = await direct.put(key(1), facts, 300)

  t.not((await sendDirectly(signed, content.subarray(1))).status, 200, 'fewer bytes')
  t.not((await sendDirectly(signed, Buffer.concat([content, content]))).status, 200, 'more bytes')
  const other = Buffer.from(content).fill(0, 0, 10)
  const sha256 = sum(other).toString('base64')
  const lying = { ...signed, headers: { ...signed.headers, 'x-amz-checksum-sha256': sha256 } }
  t.equal((await sendDirectly(lying, other)).status, 403, 'the checksum is signed')
  t.not((await sendDirectly({ ...signed, url: signed.url.replace(id(1), id(2)) }, content)).status, 200, 'another key')
  t.equal(await store.size(key(1)), undefined)
  t.equal(await store.size(key(2)), undefined)
  // a store that does not compare the sum leaves it to the completion of the upload
  await sendDirectly(signed, other)
  t.equal((await sendDirectly(signed, content)).status, 200)
  t.ok((await read(await store.get(key(1))))?.equals(content))

  const expired = await direct.put(key(3), facts, 1)
  const reply = { content_type: 'application/pdf', content_disposition: `attachment; filename="a b.pdf"` }
  const link = await direct.get(key(1), reply, 300)
  const shortLink = await direct.get(key(1), reply, 1)
  const got = await sendDirectly(link)
  t.equal(got.status, 200)
  t.equal(got.headers.get('content-type'), reply.content_type)
  t.equal(got.headers.get('content-disposition'), reply.content_disposition)
  t.ok(Buffer.from(await got.arrayBuffer()).equals(content))
  const ranged = await fetch(link.url, { headers: { range: 'bytes=10-19' } })
  t.equal(ranged.status, 206)
  t.ok(Buffer.from(await ranged.arrayBuffer()).equals(content.subarray(10, 20)))
  const showing = link.url.replace('attachment', 'inline')
  t.equal((await fetch(showing)).status, 403, 'how it is shown is signed')
  t.equal((await fetch(link.url.replace(/\?.*/, ''))).status, 403, 'nothing is public')
  await sleep(2100)
  t.equal((await sendDirectly(expired, content)).status, 403)
  t.equal((await sendDirectly(shortLink)).status, 403)
  t.equal(await store.size(key(3)), undefined)
  await store.remove(key(1))
}

async function keepsToItsBucket(t: Test, { s3 }: StartedStore): Promise<void> {
  if (!s3) throw new Error('no S3 server')
  const [app, root] = [asRoot(s3.app), asRoot(s3.root)]
  await root.makeBucket('others')
  await root.putObject('others', 'secret', 'of somebody else')
  const denied = { code: 'AccessDenied' }
  await t.rejects(app.getObject('others', 'secret'), denied)
  await t.rejects(app.putObject('others', 'planted', 'x'), denied)
  await t.rejects(app.removeObject('others', 'secret'), denied)
  await t.rejects(app.copyObject(bucket, 'copied', '/others/secret'))
  await t.rejects(app.listObjectsV2('others').toArray(), denied)
  await t.rejects(app.makeBucket('mine'), denied)
  await t.rejects(app.removeBucket(bucket), denied)
  const anybody = { Effect: 'Allow', Principal: '*', Action: 's3:GetObject', Resource: `arn:aws:s3:::${bucket}/*` }
  await t.rejects(app.setBucketPolicy(bucket, JSON.stringify({ Version: '2012-10-17', Statement: [anybody] })), denied)
  const seen = await app.listBuckets().catch(() => [])
  t.notOk(
    seen.some(({ name }) => name !== bucket),
    'no other bucket is shown'
  )
  const account = encrypt(s3.app.secret_key, JSON.stringify({ accessKey: 'planted', secretKey: 'planted-planted' }))
  await t.rejects(createMinioAdmin(s3.app)('add-service-account', account), { message: /AccessDenied/ })
  const user = encrypt(s3.app.secret_key, JSON.stringify({ secretKey: 'planted-planted', status: 'enabled' }))
  await t.rejects(createMinioAdmin(s3.app)('add-user?accessKey=planted', user), { message: /AccessDenied/ })
}

async function carries(t: Test, store: ObjectStore, { environment, s3 }: StartedStore): Promise<void> {
  const env = { ...environment, ...(s3 && { S3_PUBLIC_ENDPOINT: s3.app.endpoint }) }
  const app = await startApp(t, env)
  await app.listen({ host: '127.0.0.1', port: 0 })
  const { port } = app.server.address() as { port: number }
  const acme = await createTenant(app, 'acme')
  const rival = await createTenant(app, 'rival')
  const content = Buffer.concat([Buffer.from('%PDF-1.7\n'), randomBytes(partBytes + 12_345)])
  const usage = () => usageOf(acme)
  const remove = async (file: string) => {
    t.equal((await acme.send({ method: 'DELETE', url: `/api/v1/files/${file}?permanent=true` })).statusCode, 204)
    await app.objectSweep.run()
    t.strictSame(await everything(store), [])
    t.equal(await usage(), 0)
  }
  const isServed = async (file: string) => {
    const url = `/api/v1/files/${file}/content`
    t.ok((await acme.send(url)).rawPayload.equals(content))
    const part = await acme.send({ url, headers: { range: `bytes=${partBytes - 5}-${partBytes + 4}` } })
    t.equal(part.statusCode, 206)
    t.ok(part.rawPayload.equals(content.subarray(partBytes - 5, partBytes + 5)))
    t.equal((await rival.send(url)).statusCode, 404)
    t.strictSame(await everything(store), [fileKey(acme.id, file)])
    t.equal(await usage(), content.length)
    const { url: link } = (await acme.send(`/api/v1/files/${file}/url`)).json()
    const linked = s3 ? await fetch(link) : await fetch(`http://127.0.0.1:${port}${new URL(link).pathname}`)
    t.match(linked.headers.get('content-disposition'), /^attachment; filename="a.pdf"/)
    t.ok(Buffer.from(await linked.arrayBuffer()).equals(content))
  }

  const part = { name: 'file', filename: 'a.pdf', type: 'application/pdf', content }
  const uploaded = await acme.send({ method: 'POST', url: '/api/v1/files', ...form([part]) })
  t.equal(uploaded.statusCode, 201, uploaded.body)
  await isServed(uploaded.json().id)
  await remove(uploaded.json().id)

  const announced = { name: 'a.pdf', content_type: 'application/pdf', size: content.length }
  const begin = async (sha256: Buffer) =>
    (await acme.send(post('/files/uploads', { ...announced, sha256: sha256.toString('hex') }))).json()
  const send = (upload: DirectRequest, body: Buffer) => {
    const url = s3 ? upload.url : `http://127.0.0.1:${port}${new URL(upload.url).pathname}`
    return sendDirectly({ ...upload, url }, body)
  }
  const complete = (upload: string) => acme.send({ method: 'POST', url: `/api/v1/files/${upload}/complete` })

  const direct = await begin(sum(content))
  t.match((await complete(direct.id)).json(), { code: 'conflict' }, 'nothing has arrived yet')
  const sent = await send(direct, content)
  t.ok(sent.ok, `${sent.status} ${await sent.text()}`)
  t.match((await complete(direct.id)).json(), { id: direct.id, size: content.length, content_type: 'application/pdf' })
  await isServed(direct.id)
  await remove(direct.id)

  const wrong = await begin(sum(content))
  await send(wrong, Buffer.from(content).fill(0, 100, 200))
  const refused = (await complete(wrong.id)).json()
  t.ok(['conflict', 'validation_failed'].includes(refused.code), `by the store or by the completion: ${refused.detail}`)
  t.equal((await acme.send(`/api/v1/files/${wrong.id}`)).statusCode, 404)
  t.equal((await send(wrong, content.subarray(1))).ok, false)

  const pieces = [content.subarray(0, 7), content.subarray(7, 4_000_000), content.subarray(4_000_000)]
  const resumed = await uploadResumably(acme, 'a.pdf', pieces)
  // an upload that was given up early
  await store.remove(uploadKey(acme.id, wrong.id))
  await store.remove(fileKey(acme.id, wrong.id))
  t.equal((await acme.send(`/api/v1/files/${resumed}`)).json().sha256, sum(content).toString('hex'))
  t.ok((await acme.send(`/api/v1/files/${resumed}/content`)).rawPayload.equals(content))
}

t.test('the disk', async (t) => {
  const [kind] = objectStores
  const started = await (kind as (typeof objectStores)[0]).start(t)
  const store = started.open()

  t.test('takes no key that could lead elsewhere', async (t) => {
    for (const bad of ['../x', '/etc/passwd', `${tenant('a')}/files/../../x`, `${key(1)}/..`, `${key(1)}\0`, '']) {
      await t.rejects(store.put(bad, Buffer.from('x')), TypeError)
      await t.rejects(store.get(bad), TypeError)
      await t.rejects(store.dropParts(key(1), bad), TypeError)
    }
  })
  t.test('forgets what a killed process left unfinished, after two days', async (t) => {
    const folder = join(started.environment.DATA_DIR as string, 'files', 'unfinished')
    mkdirSync(folder, { recursive: true })
    for (const [name, hours] of [
      ['old', 49],
      ['fresh', 47]
    ] as const) {
      writeFileSync(join(folder, name), 'x')
      const at = Date.now() / 1000 - hours * 3600
      utimesSync(join(folder, name), at, at)
    }
    await store.dropStaleParts()
    t.strictSame(readdirSync(folder), ['fresh'])
  })
})
