import { once } from 'node:events'
import http from 'node:http'
import { buffer } from 'node:stream/consumers'
import t from 'tap'
import { fileKey } from '../src/files/store/keys.ts'
import { type ObjectStore, storeTimeoutMs } from '../src/files/store/object-store.ts'
import { partBytes } from '../src/files/store/object-writer.ts'
import { createS3Store } from '../src/files/store/s3.ts'
import { opaqueBytes } from './bytes.ts'
import { createTenant, startApp } from './harness.ts'
import { stopwatch } from './machine.ts'
import { type Fault, silence, startScriptedS3 } from './scripted-s3.ts'
import { large, matchesAfterSweep, servesTheRest, small, upload } from './store-checks.ts'

// bounded in time: how long a store that says nothing is waited for

/*
 * A store that accepts connections and never answers. The tests mostly wait, so they run at the same time.
 */

t.jobs = 3

const someId = 'aaaaaaaa-0000-7000-8000-000000000000'
const key = fileKey(someId, someId)

t.test('a store that says nothing counts as away after its time', { buffered: true }, async (t) => {
  /** The duration of a call, and its error. */
  async function attempt(work: (store: ObjectStore) => Promise<unknown>, fault?: Fault, endpoint?: string) {
    const stub = await startScriptedS3(t)
    stub.objects.set(key, { content: large, modified_at: new Date() })
    stub.fail('', fault ?? silence)
    const store = createS3Store({ ...stub.settings, ...(endpoint && { endpoint }) })
    t.teardown(() => store.close())
    const elapsed = stopwatch()
    const failure = await work(store).then(
      () => 'none',
      (err) => err.kind
    )
    return { failure, ms: elapsed() }
  }
  const halfOfIt: Fault = ({ reply }) => {
    reply.writeHead(200, { 'content-length': large.length })
    reply.write(large.subarray(0, 1_000_000))
  }
  const readsAll = async (store: ObjectStore) => {
    const stream = await store.get(key)
    return stream && buffer(stream)
  }
  const attempts = await Promise.all([
    attempt((store) => store.check()),
    attempt((store) => store.check(), undefined, 'http://192.0.2.1:9000'),
    attempt((store) => store.put(key, small)),
    attempt((store) => store.put(key, large)),
    attempt((store) => store.size(key)),
    attempt((store) => store.remove(key)),
    attempt((store) => store.list('', 10)),
    attempt((store) => store.startParts(key)),
    attempt((store) => store.putPart(key, 'id', 1, 0, large)),
    attempt((store) => store.dropParts(key, 'id')),
    attempt(readsAll),
    attempt(readsAll, halfOfIt)
  ])
  for (const { failure, ms } of attempts) {
    t.equal(failure, 'away')
    // bytes that go into the buffers of the connection count as progress once
    t.ok(ms < 3 * storeTimeoutMs, `after ${ms} ms`)
  }
})

t.test('a store is not away when it is the reader who pauses', { buffered: true }, async (t) => {
  const stub = await startScriptedS3(t)
  const content = opaqueBytes(4_000_000)
  stub.objects.set(key, { content, modified_at: new Date() })
  const store = createS3Store(stub.settings)
  t.teardown(() => store.close())
  const stream = await store.get(key)
  await new Promise((resolve) => setTimeout(resolve, 1.2 * storeTimeoutMs))
  t.ok(stream && (await buffer(stream)).equals(content))
})

t.test('a store that freezes during an upload', { buffered: true }, async (t) => {
  const stub = await startScriptedS3(t)
  const app = await startApp(t, { ...stub.environment, MAX_FILE_SIZE: '1GiB' })
  const acme = await createTenant(app, 'acme')
  await app.listen({ host: '127.0.0.1', port: 0 })
  const { port } = app.server.address() as { port: number }
  stub.fail('', silence)

  const offered = 200 * 1024 * 1024
  const opening = Buffer.from('--b\r\nContent-Disposition: form-data; name="file"; filename="a.bin"\r\n\r\n')
  const request = http.request({
    port,
    method: 'POST',
    path: '/api/v1/files',
    headers: {
      host: acme.host,
      authorization: `Bearer ${acme.owner.tokens.access_token}`,
      'content-type': 'multipart/form-data; boundary=b',
      'content-length': offered
    }
  })
  request.on('error', () => {})
  request.write(opening)
  const piece = Buffer.alloc(1024 * 1024)
  let taken = 0
  const pour = () => {
    // counted when the connection has accepted it
    request.write(piece, (err) => {
      if (err || request.destroyed) return
      taken += piece.length
      if (taken < offered - 2 * piece.length) pour()
    })
  }
  const answered = once(request, 'response')
  pour()
  const during = answered.then(() => taken)
  await new Promise((resolve) => setTimeout(resolve, 2000))
  await servesTheRest(t, acme)
  const held = taken
  const [reply] = (await answered) as [http.IncomingMessage]
  t.match(JSON.parse(String(await buffer(reply))), { status: 503, code: 'unavailable' })
  t.ok((await during) >= held)
  // two parts, and the buffers of the connection
  t.ok(held <= 2 * partBytes + 16 * 1024 * 1024, `${held} bytes were taken from the sender`)
  request.destroy()
  stub.heal()
  await matchesAfterSweep(t, app, stub)
  t.equal((await upload(acme, small)).statusCode, 201)
})
