import { once } from 'node:events'
import { type AddressInfo, createServer } from 'node:net'
import pg from 'pg'
import t, { type Test } from 'tap'
import { slowMs } from '../plugins/events/webhook-deliveries.ts'
import { createOutboundFetch } from '../src/http/outbound-requests.ts'
import { allRows, createTenant, eventually, type Owner, startApp, type Tenant } from './harness.ts'
import { createWebhook, deliver, deliverLater, invite, startReceiver } from './webhook-receiver.ts'

/*
 * Endpoints that do what no endpoint should, and agencies that hold on to what others need.
 */

const wanted = { event_types: ['invitation.created'] }
const path = (id: string, rest = '') => `/api/v1/webhooks/${id}${rest}`

async function start(t: Test) {
  const app = await startApp(t)
  return { app, acme: await createTenant(app, 'acme'), rival: await createTenant(app, 'rival') }
}

/** A server that answers every request with these bytes. Resolves to its URL. */
async function startRawServer(t: Owner, bytes: string): Promise<string> {
  const server = createServer((socket) => {
    socket.on('error', () => {})
    socket.once('data', () => socket.write(bytes))
  }).listen(0, '127.0.0.1')
  await once(server, 'listening')
  t.teardown(() => void server.close())
  return `http://127.0.0.1:${(server.address() as AddressInfo).port}`
}

const endpointOf = async (app: Parameters<typeof deliver>[0], id: string) => {
  const [row] = await allRows(app.database, 'select * from webhook_endpoints where id = $1', [id])
  return row
}

t.test('an answer that switches protocols, or ends before it begins, is a failure like others', async (t) => {
  const answers = {
    'a switch of protocols': 'HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n',
    'a switch without a protocol':
      'HTTP/1.1 101 Switching Protocols\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n',
    'no HTTP': 'SSH-2.0-OpenSSH_9.2\r\n'
  }
  const { app, acme } = await start(t)
  for (const [title, bytes] of Object.entries(answers)) {
    const url = await startRawServer(t, bytes)
    const { id } = await createWebhook(acme, url, wanted)
    await invite(acme)
    await deliver(app)
    const [delivery] = (await acme.send(path(id, '/deliveries'))).json().data
    t.match(delivery, { status: 'waiting', attempts: 1 }, title)
    const { log } = (await acme.send(path(id, `/deliveries/${delivery.id}`))).json()
    t.match(log, [{ number: 1, error: /^(?:connection|status)$/ }], title)
    t.match(await endpointOf(app, id), { lease: null, failures: 1 }, title)
    await acme.send({ method: 'DELETE', url: path(id) })
    // identity providers are asked in the same way
    await t.rejects(createOutboundFetch({ development: true, privateNetworks: true })(url), title)
  }
})

t.test('an agency that holds its webhook locked holds up no events of others', async (t) => {
  const { app, acme, rival } = await start(t)
  const receiver = await startReceiver(t)
  const mine = await createWebhook(acme, `${receiver.url}/acme`, wanted)
  await createWebhook(rival, `${receiver.url}/rival`, wanted)
  const holder = new pg.Client({ connectionString: app.database.postgres })
  await holder.connect()
  t.teardown(() => holder.end())
  await holder.query('begin')
  await holder.query('select from webhook_endpoints where id = $1 for no key update', [mine.id])
  for (const tenant of [acme, rival]) await invite(tenant)
  const ms = await eventually(async () => {
    await app.events.run()
    return receiver.messages.some(({ path }) => path === '/rival')
  }, 5000)
  t.ok(ms < 2000, `${Math.round(ms)} ms`)
  t.notOk(receiver.messages.some(({ path }) => path === '/acme'))
  await holder.query('commit')
  await eventually(() => receiver.messages.some(({ path }) => path === '/acme'), 5000)
  t.equal(receiver.messages.length, 2)
})

t.test('attempts that were never made do not count', async (t) => {
  const { app, acme } = await start(t)
  const receiver = await startReceiver(t)
  receiver.script.answer = (_, response) => response.writeHead(500).end()
  const { id } = await createWebhook(acme, receiver.url, wanted)
  await invite(acme)
  await deliver(app)
  // as if processes had died nine times
  await allRows(app.database, 'update webhook_deliveries set attempts = 10')
  await deliverLater(app)
  const [delivery] = (await acme.send(path(id, '/deliveries'))).json().data
  t.equal(delivery.status, 'waiting')
  t.ok(Date.parse(delivery.due_at) - Date.now() > 200_000, 'the second pause, not the last')
})

t.test('what an address says that was changed meanwhile says nothing about the new one', async (t) => {
  const { app, acme } = await start(t)
  const [receiver, other] = [await startReceiver(t), await startReceiver(t)]
  const { id } = await createWebhook(acme, receiver.url, wanted)
  receiver.script.answer = async (_, response) => {
    await acme.send({ method: 'PATCH', url: path(id), payload: { url: other.url } })
    response.writeHead(410).end()
  }
  await invite(acme)
  await deliver(app)
  t.match((await acme.send(path(id))).json(), { status: 'enabled', url: other.url })
  t.match(await endpointOf(app, id), { failures: 0, failing_since: null })
  await deliverLater(app)
  t.equal(other.messages.length, 1, 'which gets the event')

  other.script.answer = (_, response) => response.writeHead(503, { 'retry-after': '3000' }).end()
  await invite(acme)
  await deliver(app)
  t.match(await endpointOf(app, id), { failures: 1 })
  other.script.answer = undefined
  await acme.send({ method: 'PATCH', url: path(id), payload: { url: `${other.url}/new` } })
  await invite(acme)
  await deliver(app)
  t.match(other.messages.at(-1), { path: '/new' }, 'nor is it left alone for the time that the old one has asked for')
})

t.test('webhooks that were slow get a part of the requests only', async (t) => {
  const { app, acme, rival } = await start(t)
  const receiver = await startReceiver(t)
  receiver.script.answer = (_, response) => void setTimeout(() => response.end(), slowMs + 100)
  const { id } = await createWebhook(acme, receiver.url, wanted)
  await invite(acme)
  await deliver(app)
  t.match(await endpointOf(app, id), { slow: true })
  receiver.script.answer = undefined
  await invite(acme)
  await deliver(app)
  t.match(await endpointOf(app, id), { slow: false }, 'and no longer when it is fast again')

  for (const tenant of [acme, rival]) for (let i = 0; i < 3; i++) await createWebhook(tenant, receiver.url, wanted)
  await app.close()
  await allRows(app.database, 'update webhook_endpoints set slow = true where tenant_id = $1', [acme.id])
  await allRows(
    app.database,
    `insert into webhook_deliveries (tenant_id, endpoint_id, cause, event_id, event_type, event_at, wakes)
     select tenant_id, id, 'test', gen_random_uuid(), 'webhook.test', now(), true from webhook_endpoints`
  )
  const claim = async (most_slow: number): Promise<Record<string, number>> => {
    const rows = await allRows(
      app.database,
      "select tenant_id, slow from claim_webhook_deliveries(10, 4, $1, interval '1 minute')",
      [most_slow]
    )
    const of = ({ id }: Tenant, slow: boolean) => rows.filter((row) => row.tenant_id === id && row.slow === slow).length
    return { acme: of(acme, true), rival: of(rival, false) }
  }
  t.strictSame(await claim(1), { acme: 1, rival: 3 })
  t.strictSame(await claim(0), { acme: 0, rival: 0 })
  t.strictSame(await claim(9), { acme: 3, rival: 0 }, 'four of one agency at once')
  t.strictSame(await allRows(app.database, 'select from webhook_deliveries where wakes'), [])
})

t.test('a time to replay that ends before it begins is refused', async (t) => {
  const { acme } = await start(t)
  const { id } = await createWebhook(acme, 'http://127.0.0.1:9999', wanted)
  for (const [from, to] of [
    ['2026-11-30T16:06:00Z', '2026-11-30T16:05:00Z'],
    ['2026-11-30T16:06:00Z', '2026-11-30T16:06:00Z']
  ]) {
    const reply = await acme.send({ method: 'POST', url: path(id, '/replay'), payload: { from, to } })
    t.match(reply.json(), { status: 400, errors: [{ path: '/body/to', message: 'must be after from' }] })
  }
})
