import t from 'tap'
import { kibibyte, sha256 } from './bytes.ts'
import { announce, usageOf } from './file-requests.ts'
import { createFile, disagreements } from './forms.ts'
import { createTenant, post, send, setStatus, startApp } from './harness.ts'

t.test('a direct upload', async (t) => {
  const app = await startApp(t)
  const acme = await createTenant(app, 'acme')
  const rival = await createTenant(app, 'rival')
  const begin = async (content: string, more = {}) =>
    (await acme.send(post('/files/uploads', announce(content, more)))).json()
  const put = (url: string, payload: string, host = 'localhost') =>
    send(app, host, { method: 'PUT', url: new URL(url).pathname, headers: { 'content-type': 'text/plain' }, payload })
  const complete = (id: string, tenant = acme) => tenant.send({ method: 'POST', url: `/api/v1/files/${id}/complete` })

  t.test('becomes a file once it is completed, and again for who did not hear of it', async (t) => {
    const { id, url, method, headers, expires_at } = await begin('direct', { purpose: 'contract' })
    t.match([method, headers], ['PUT', { 'content-type': 'text/plain', 'content-length': '6' }])
    t.ok(Date.parse(expires_at) <= Date.now() + 300_000)
    t.equal((await acme.send(`/api/v1/files/${id}`)).statusCode, 404, 'there is no file yet')
    t.match((await complete(id)).json(), { status: 409, code: 'conflict' }, 'nor any bytes')
    t.equal((await put(url, 'direct')).statusCode, 204)
    const done = await complete(id)
    t.match(done.json(), { id, name: 'notes.txt', purpose: 'contract', size: 6, sha256: sha256('direct') })
    t.strictSame((await complete(id)).json(), done.json())
    t.equal((await acme.send(`/api/v1/files/${id}/content`)).body, 'direct')
    t.equal((await put(url, 'others')).statusCode, 404, 'its link is good for nothing then')
    t.strictSame(await disagreements(app, acme), [])
  })
  t.test('is one file however often it is completed at once', async (t) => {
    const { id, url } = await begin('fifty')
    await put(url, 'fifty')
    const replies = await Promise.all(Array.from({ length: 50 }, () => complete(id)))
    const statuses = replies.map(({ statusCode }) => statusCode)
    t.ok(statuses.includes(200))
    t.ok(
      statuses.every((status) => status === 200 || status === 409),
      [...new Set(statuses)].join(' ')
    )
    t.equal((await complete(id)).statusCode, 200)
    const { data } = (await acme.send('/api/v1/audit-events?action=file.created')).json()
    t.equal(data.filter((event: { target_id: string }) => event.target_id === id).length, 1, 'and one event')
    t.strictSame(await disagreements(app, acme), [])
  })
  t.test('takes no other bytes than were announced', async (t) => {
    const before = await usageOf(acme)
    const { id, url } = await begin('exactly')
    t.match((await put(url, 'too many bytes')).json(), { status: 413, code: 'payload_too_large' })
    t.match((await put(url, 'few')).json(), { status: 400, code: 'validation_failed' })
    t.equal((await put(url, 'EXACTLY')).statusCode, 204, 'as many, but others')
    const refused = await complete(id)
    t.match(refused.json(), { status: 400, code: 'validation_failed', errors: [{ path: '/body/sha256' }] })
    t.equal((await complete(id)).statusCode, 404, 'that was it')
    t.equal(await usageOf(acme), before)
    t.strictSame(await disagreements(app, acme), [])
  })
  t.test('is looked at like any other', async (t) => {
    const program = 'MZ\u0090\u0000\u0003'
    const { id, url } = await begin(program, { name: 'holiday.jpg', content_type: 'image/jpeg' })
    await put(url, program)
    t.match((await complete(id)).json(), { status: 415, code: 'unsupported_media_type' })
    t.strictSame(await disagreements(app, acme), [])
  })
  t.test('belongs to who began it, and its link to its agency', async (t) => {
    const { id, url } = await begin('mine')
    t.match((await put(url, 'mine', rival.host)).json(), { status: 403, code: 'tenant_mismatch' })
    await put(url, 'mine')
    t.match((await complete(id, rival)).json(), { status: 404, code: 'not_found' })
    await setStatus(app, acme, 'suspended')
    await app.revocations.readNow()
    t.equal((await put(url, 'mine')).statusCode, 404, 'of a suspended agency it is good for nothing')
    await setStatus(app, acme, 'active')
    await app.revocations.readNow()
    t.equal((await complete(id)).statusCode, 200)
  })
  t.test('may be empty', async (t) => {
    const { id } = await begin('')
    t.match((await complete(id)).json(), { size: 0, sha256: sha256('') })
    t.strictSame(await disagreements(app, acme), [])
  })
  t.test('says what is wrong with what is announced', async (t) => {
    for (const change of [
      { size: -1 },
      { size: 1.5 },
      { size: 2 ** 60 },
      { sha256: 'x' },
      { sha256: sha256('x').toUpperCase() },
      { purpose: 'Not A Word' },
      { content_type: '' },
      { tenant_id: acme.id }
    ]) {
      const reply = await acme.send(post('/files/uploads', announce('x', change)))
      t.match(reply.json(), { status: 400, code: 'validation_failed' }, JSON.stringify(change))
    }
    const large = await acme.send(post('/files/uploads', announce('x', { size: 200 * 1024 * kibibyte })))
    t.match(large.json(), { status: 413, code: 'file_too_large' })
  })
})

t.test('a store that cannot complete an upload now leaves it for later', async (t) => {
  const app = await startApp(t)
  const acme = await createTenant(app, 'acme')
  const { id, url } = (await acme.send(post('/files/uploads', announce('later')))).json()
  await acme.anonymous({
    method: 'PUT',
    url: new URL(url).pathname,
    payload: 'later',
    headers: { 'content-type': 'text/plain' }
  })
  const { move } = app.objects
  const { StoreFailure } = await import('../src/files/store/object-store.ts')
  app.objects.move = () => Promise.reject(new StoreFailure('away', new Error('unplugged')))
  const complete = () => acme.send({ method: 'POST', url: `/api/v1/files/${id}/complete` })
  t.match((await complete()).json(), { status: 503, code: 'unavailable' })
  app.objects.move = move
  t.equal((await complete()).statusCode, 200)
  t.equal((await createFile(acme, 'x')).size, 1)
})
