import t, { type Test } from 'tap'
import { eventTypes } from '../src/events/event-types.ts'
import { addMember, allRows, createTenant, password, post, readText, startApp, type Tenant } from './harness.ts'
import { createWebhook, deliver, invite, type Message, startReceiver, verify } from './webhook-receiver.ts'

/*
 * Webhooks of an agency: adding, changing, rotating, removing, and what a receiver gets.
 */

const path = (id: string, rest = '') => `/api/v1/webhooks/${id}${rest}`
const patch = (tenant: Tenant, id: string, payload: object, headers = {}) =>
  tenant.send({ method: 'PATCH', url: path(id), payload, headers })

async function start(t: Test) {
  const receiver = await startReceiver(t)
  const app = await startApp(t, { LOG_LEVEL: 'info' })
  return { receiver, app, acme: await createTenant(app, 'acme'), rival: await createTenant(app, 'rival') }
}

t.test('an agency has its events sent to a webhook', async (t) => {
  const { receiver, app, acme, rival } = await start(t)
  const { messages } = receiver
  const webhook = await createWebhook(acme, `${receiver.url}/hook`, { event_types: ['invitation.created'] })

  await t.test('with the facts of the event, signed by Standard Webhooks', async (t) => {
    const id = await invite(acme)
    await invite(rival)
    await deliver(app)
    t.equal(messages.length, 1, 'only what is wanted, and nothing of another agency')
    const [message] = messages as [(typeof messages)[0]]
    const body = verify(webhook.secret, message)
    const [event] = (await acme.send('/api/v1/audit-events?action=invitation.created')).json().data
    t.strictSame(body, {
      type: 'invitation.created',
      timestamp: event.created_at,
      data: {
        id: event.id,
        tenant_id: acme.id,
        position: body.data.position,
        actor_id: acme.owner.id,
        target_id: id,
        session_id: null,
        detail: event.detail
      }
    })
    t.match(message, { path: '/hook', headers: { 'content-type': 'application/json', 'webhook-id': event.id } })
    t.throws(() => verify('whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw', message), 'another secret')
  })
  await t.test('and reads what came of it', async (t) => {
    const { data } = (await acme.send(path(webhook.id, '/deliveries'))).json()
    t.match(data, [{ status: 'delivered', attempts: 1, cause: 'event', due_at: null, webhook_id: webhook.id }])
    const delivery = (await acme.send(path(webhook.id, `/deliveries/${data[0].id}`))).json()
    t.match(delivery.log, [{ number: 1, status: 200, error: null, reply: 'thank you', duration_ms: Number }])
    t.equal((await rival.send(path(webhook.id))).statusCode, 404)
    t.strictSame((await rival.send('/api/v1/webhooks')).json(), { data: [] })
  })

  await t.test('whose address, types and description it changes', async (t) => {
    const read = await acme.send(path(webhook.id))
    const tag = String(read.headers.etag)
    t.notHas(read.json(), 'secret')
    t.equal((await patch(acme, webhook.id, { description: 'x' }, { 'if-match': '"0"' })).statusCode, 412)
    const changed = await patch(
      acme,
      webhook.id,
      { url: `${receiver.url}/other`, event_types: [] },
      { 'if-match': tag }
    )
    t.match(changed.json(), { url: `${receiver.url}/other`, event_types: [], status: 'enabled' })
    messages.length = 0
    await invite(acme)
    await deliver(app)
    const types = messages.map(({ body }) => body.type)
    t.strictSame(types, ['webhook.updated', 'invitation.created'], 'all types, in the order in which they happened')
    t.ok(messages.every(({ path }) => path === '/other'))
    t.match((await patch(acme, webhook.id, { event_types: ['no.such'] })).json(), { code: 'validation_failed' })
    t.equal((await patch(rival, webhook.id, { description: 'mine' })).statusCode, 404)
  })

  await t.test('and tests', async (t) => {
    messages.length = 0
    const reply = await acme.send({ method: 'POST', url: path(webhook.id, '/test') })
    t.equal(reply.statusCode, 202)
    t.match(reply.json(), { event_type: 'webhook.test', cause: 'test', status: 'waiting' })
    await deliver(app)
    t.match(verify(webhook.secret, messages[0] as Message), {
      type: 'webhook.test',
      data: { id: reply.json().event_id, tenant_id: acme.id, position: null, target_id: webhook.id, detail: null }
    })
  })

  await t.test('whose secret it replaces, with two valid ones for a day', async (t) => {
    const { secret, previous_secret_until } = (
      await acme.send({ method: 'POST', url: path(webhook.id, '/secret') })
    ).json()
    t.match(secret, /^whsec_[A-Za-z0-9+/]{43}=$/)
    const hours = (Date.parse(previous_secret_until) - Date.now()) / 3_600_000
    t.ok(hours > 23 && hours <= 24)
    messages.length = 0
    await deliver(app)
    const [message] = messages as [Message]
    t.match(verify(secret, message), { type: 'webhook.secret_rotated' })
    t.match(verify(webhook.secret, message), { type: 'webhook.secret_rotated' }, 'by the one before too')
    t.equal(String(message.headers['webhook-signature']).split(' ').length, 2)

    await allRows(app.database, "update webhook_endpoints set previous_until = now() - interval '1 second'")
    messages.length = 0
    await invite(acme)
    await deliver(app)
    const [later] = messages as [Message]
    t.match(verify(secret, later), { type: 'invitation.created' })
    t.throws(() => verify(webhook.secret, later), 'no longer')
    t.equal((await acme.send(path(webhook.id))).json().previous_secret_until, null)
    await app.housekeeping.run()
    t.match(await allRows(app.database, 'select previous_secret from webhook_endpoints'), [{ previous_secret: null }])
  })

  await t.test('which it disables and enables', async (t) => {
    t.match((await patch(acme, webhook.id, { status: 'disabled' })).json(), { disabled_reason: 'request' })
    await app.events.run()
    messages.length = 0
    await invite(acme)
    await deliver(app)
    t.equal(messages.length, 0)
    t.equal((await acme.send({ method: 'POST', url: path(webhook.id, '/test') })).statusCode, 409)
    t.match((await patch(acme, webhook.id, { status: 'enabled' })).json(), { disabled_reason: null, disabled_at: null })
    await deliver(app)
    t.strictSame(
      messages.map(({ body }) => body.type),
      ['webhook.updated'],
      'what has happened meanwhile is not sent, but can be replayed'
    )
  })

  await t.test('the export has, without its secret', async (t) => {
    const lines = (await acme.send('/api/v1/tenant/export')).body.trim().split('\n')
    const exported = lines.map((line) => JSON.parse(line)).filter(({ table }) => table === 'webhook')
    t.match(exported, [{ row: { id: webhook.id, url: `${receiver.url}/other` } }])
    t.notMatch(JSON.stringify(exported), /secret/)
  })

  await t.test('and which it removes', async (t) => {
    t.equal((await rival.send({ method: 'DELETE', url: path(webhook.id) })).statusCode, 404)
    t.equal((await acme.send({ method: 'DELETE', url: path(webhook.id) })).statusCode, 204)
    t.equal((await acme.send({ method: 'DELETE', url: path(webhook.id) })).statusCode, 404)
    t.equal((await acme.send(path(webhook.id, '/deliveries'))).statusCode, 404)
    messages.length = 0
    await invite(acme)
    await deliver(app)
    t.equal(messages.length, 0)
    t.ok((await allRows(app.database, 'select from webhook_attempts')).length > 0)
    await app.housekeeping.run()
    for (const table of ['webhook_endpoints', 'webhook_deliveries', 'webhook_attempts']) {
      t.strictSame(await allRows(app.database, `select from ${table}`), [], table)
    }
  })

  await t.test('all of which is in the audit log, and no secret anywhere', async (t) => {
    const rows = await allRows(
      app.database,
      "select action, detail from audit_events where action like 'webhook.%' order by created_at"
    )
    t.strictSame(
      rows.map(({ action }) => action),
      ['created', 'updated', 'secret_rotated', 'updated', 'updated', 'deleted'].map((each) => `webhook.${each}`)
    )
    t.notMatch(JSON.stringify(rows), /whsec_/)
    t.notOk(app.logLines.some((line) => line.includes('whsec_') || line.includes(webhook.secret.slice(6))))
  })
})

t.test('the document lists a message of each type', async (t) => {
  const { app } = await start(t)
  const { webhooks } = (await app.inject('/api/v1/openapi.json')).json()
  t.strictSame(Object.keys(webhooks).sort(), [...Object.keys(eventTypes), 'webhook.test'].sort())
  const names = Object.values(webhooks).map((each) => (each as { post: { operationId: string } }).post.operationId)
  t.equal(new Set(names).size, names.length)
  const client = readText('client/src/schema.d.ts').split('export interface webhooks')[1] ?? ''
  t.strictSame(
    Object.keys(webhooks).filter((type) => !client.includes(`'${type}'`)),
    [],
    'the client has their types'
  )
})

t.test('an agency has at most twenty webhooks', async (t) => {
  const { acme, rival } = await start(t)
  const add = () => acme.send(post('/webhooks', { url: 'https://hooks.acme.example' }))
  for (let i = 0; i < 17; i++) t.equal((await add()).statusCode, 201)
  const replies = await Promise.all(Array.from({ length: 6 }, add))
  t.strictSame(replies.map(({ statusCode }) => statusCode).sort(), [201, 201, 201, 409, 409, 409])
  t.equal((await rival.send(post('/webhooks', { url: 'https://hooks.rival.example' }))).statusCode, 201)
  t.equal((await acme.send('/api/v1/webhooks')).json().data.length, 20)
})

t.test('only admins and owners have webhooks', async (t) => {
  const { app, acme } = await start(t)
  await createWebhook(acme, 'https://hooks.acme.example')
  for (const [role, status] of [
    ['viewer', 403],
    ['member', 403],
    ['admin', 200]
  ] as const) {
    const person = await createTenant(app, `${role}-s`)
    await addMember(app, acme, person.owner.id, role)
    const { access_token } = (await acme.anonymous(post('/auth/login', { email: person.owner.email, password }))).json()
    t.equal((await acme.with(access_token, '/api/v1/webhooks')).statusCode, status, role)
  }
})

t.test('an address that nothing may be sent to is refused at once', async (t) => {
  const { acme } = await start(t)
  for (const url of [
    'hooks.acme.example',
    'ftp://hooks.acme.example',
    'http://hooks.acme.example',
    'https://user@hooks.acme.example',
    'https://user:pass@hooks.acme.example',
    'https://hooks.acme.example/#part',
    'https://hooks.acme.example:22/',
    'https://hooks.acme.example:25/',
    'https://[fe80::1%25eth0]/',
    `https://hooks.acme.example/${'x'.repeat(2030)}`
  ]) {
    t.match((await acme.send(post('/webhooks', { url }))).json(), { code: 'validation_failed' }, url.slice(0, 60))
  }
  t.match((await acme.send(post('/webhooks', { url: 'HTTPS://Hooks.Acme.Example:443' }))).json(), {
    url: 'https://hooks.acme.example/'
  })
})

t.test('a new pepper encrypts the secrets anew, and the old one can go', async (t) => {
  const { receiver, app, acme } = await start(t)
  const webhook = await createWebhook(acme, receiver.url, { event_types: ['invitation.created'] })
  const { secret } = (await acme.send({ method: 'POST', url: path(webhook.id, '/secret') })).json()
  const rotated = await startApp(t, { PASSWORD_PEPPER: 'a newer pepper,a pepper of the tests' }, app.database)
  // the first process would send with the old one
  await app.close()
  await allRows(app.database, "insert into audit_events (tenant_id, action) values ($1, 'invitation.created')", [
    acme.id
  ])
  await deliver(rotated)
  const [message] = receiver.messages as [Message]
  for (const each of [secret, webhook.secret]) t.ok(verify(each, message))
  const keys = await allRows(app.database, 'select key_id, previous_key_id from webhook_endpoints')
  t.equal(keys[0].key_id, keys[0].previous_key_id)
  // the audit log and passwords need the old one still
  await t.rejects(
    startApp(t, { PASSWORD_PEPPER: 'a third pepper,a pepper of the tests' }, app.database),
    /lacks the pepper of secrets of webhooks/
  )
})

t.test('of an agency that is purged nothing stays', async (t) => {
  const { receiver, app, acme } = await start(t)
  await createWebhook(acme, receiver.url, { event_types: ['webhook.created'] })
  await deliver(app)
  t.equal(receiver.messages.length, 1)
  await allRows(app.database, "update tenants set status = 'suspended', purge_at = now() where id = $1", [acme.id])
  await app.housekeeping.run()
  t.strictSame(await allRows(app.database, 'select from tenants where id = $1', [acme.id]), [])
  t.match(await allRows(app.database, 'select secret from webhook_endpoints'), [])
  await app.housekeeping.run()
  t.strictSame(await allRows(app.database, 'select from webhook_deliveries where tenant_id = $1', [acme.id]), [])
  await deliver(app)
  t.equal(receiver.messages.length, 1, 'and nothing is sent')
})
