import t, { type Test } from 'tap'
import { webhookTimeoutMs } from '../plugins/events/webhook-deliveries.ts'
import { maxWebhooks, previousSecretHours } from '../routes/webhooks/queries.ts'
import { maxReplayed } from '../routes/webhooks/schemas.ts'
import { endpointPause, maxWebhookAttempts, readRetryAfter, retryDelay } from '../src/events/webhook-retries.ts'
import {
  allRows,
  createTenant,
  eventually,
  mailsTo,
  post,
  readText,
  startApp,
  type Tenant,
  type TestApp
} from './harness.ts'
import { verifyAll } from './mailed-links.ts'
import {
  createWebhook,
  deliver,
  deliverLater,
  invite,
  type Message,
  startReceiver,
  verify
} from './webhook-receiver.ts'

/*
 * What becomes of a delivery: retries, order, replays, endpoints that fail, and agencies side by side.
 */

const path = (id: string, rest = '') => `/api/v1/webhooks/${id}${rest}`
const wanted = { event_types: ['invitation.created'] }

async function start(t: Test) {
  const receiver = await startReceiver(t)
  const app = await startApp(t, { LOG_LEVEL: 'info' })
  const acme = await createTenant(app, 'acme')
  const webhook = await createWebhook(acme, receiver.url, wanted)
  return { receiver, app, acme, webhook }
}

type Delivery = { id: string; status: string; attempts: number; due_at: string | null; event_id: string; cause: string }
const listed = async (tenant: Tenant, id: string): Promise<Delivery[]> =>
  (await tenant.send(path(id, '/deliveries'))).json().data
const logOf = async (tenant: Tenant, id: string, delivery: string) =>
  (await tenant.send(path(id, `/deliveries/${delivery}`))).json().log
const ids = (messages: Message[]) => messages.map(({ headers }) => headers['webhook-id'])

t.test('the time of the next attempt', async (t) => {
  const delays = Array.from({ length: maxWebhookAttempts }, (_, i) => retryDelay(i + 1, undefined, () => 0))
  t.strictSame(delays, [5, 300, 1800, 7200, 18_000, 36_000, 50_400, 72_000, 86_400, undefined])
  t.equal(
    retryDelay(2, undefined, () => 1),
    330,
    'is later by a tenth at most'
  )
  t.equal(
    retryDelay(1, 60, () => 0),
    60,
    'is that which the endpoint asks for'
  )
  t.equal(
    retryDelay(2, 60, () => 0),
    300,
    'unless that is earlier'
  )
  t.equal(
    retryDelay(1, 10 ** 9, () => 0),
    86_400,
    'or later than a day'
  )
  t.strictSame(
    [1, 2, 3, 7, 40].map((failures) => endpointPause(failures, undefined)),
    [1, 2, 4, 60, 60]
  )
  t.strictSame(
    [30, 10_000].map((asked) => endpointPause(1, asked)),
    [30, 3600]
  )
  const now = Date.parse('2026-11-22T10:00:00Z')
  t.equal(readRetryAfter('120', now), 120)
  t.equal(readRetryAfter('Sun, 22 Nov 2026 10:01:00 GMT', now), 60)
  t.equal(readRetryAfter('Sun, 22 Nov 2026 09:00:00 GMT', now), 0)
  for (const odd of [undefined, '', '-5', '1.5', 'soon', '99999999999999999999'])
    t.equal(readRetryAfter(odd, now), undefined)
})

t.test('the page for receivers says what holds', (t) => {
  const page = readText('docs/webhooks.md')
  for (const text of [
    `at\nmost ${maxWebhooks} webhooks`,
    `may take ${webhookTimeoutMs / 1000} seconds`,
    `At most ${maxReplayed.toLocaleString('en')} at once`,
    `For ${previousSecretHours} hours`,
    'after 5 s, 5 min, 30 min, 2 h, 5 h, 10 h, 14 h, 20 h and 24 h'
  ]) {
    t.ok(page.includes(text), text)
  }
  t.end()
})

t.test('a delivery that fails', async (t) => {
  const { receiver, app, acme, webhook } = await start(t)
  const { messages, script } = receiver

  await t.test('is tried again with the same id and the same bytes, until it arrives', async (t) => {
    script.answer = (_, response) => response.writeHead(500).end(`\0${'x'.repeat(3000)}`)
    await invite(acme)
    await deliver(app)
    const [waiting] = (await listed(acme, webhook.id)) as [Delivery]
    t.match(waiting, { status: 'waiting', attempts: 1 })
    const seconds = (Date.parse(String(waiting.due_at)) - Date.now()) / 1000
    t.ok(seconds > 2 && seconds < 6, `after five seconds: ${seconds}`)
    await app.webhooks.run()
    t.equal(messages.length, 1, 'not earlier')
    script.answer = undefined
    await deliverLater(app)
    t.equal(messages.length, 2)
    const [first, second] = messages as [Message, Message]
    t.equal(first.text, second.text)
    t.equal(first.headers['webhook-id'], second.headers['webhook-id'])
    t.strictSame(verify(webhook.secret, first), verify(webhook.secret, second))
    t.match(await listed(acme, webhook.id), [{ status: 'delivered', attempts: 2, due_at: null }])
    const log = await logOf(acme, webhook.id, waiting.id)
    t.match(log, [
      { number: 1, status: 500, error: 'status' },
      { number: 2, status: 200, error: null }
    ])
    t.equal(log[0].reply, `\ufffd${'x'.repeat(1023)}`, 'the log has the beginning of the reply')
  })

  await t.test('is held back for as long as the endpoint asks for', async (t) => {
    script.answer = (_, response) => response.writeHead(429, { 'retry-after': '120' }).end()
    await invite(acme)
    await deliver(app)
    await invite(acme)
    const before = messages.length
    await deliver(app)
    t.equal(messages.length, before, 'and so is what comes after it')
    const [, limited] = (await listed(acme, webhook.id)) as [Delivery, Delivery]
    const seconds = (Date.parse(String(limited.due_at)) - Date.now()) / 1000
    t.ok(seconds > 110 && seconds <= 121, String(seconds))
    script.answer = undefined
    await deliverLater(app)
    t.equal(messages.length, before + 2)
  })

  await t.test('whatever its endpoint does', async (t) => {
    const other = await startReceiver(t)
    const faults: [error: string, status: number | null, answer: NonNullable<typeof script.answer>][] = [
      ['redirect', 302, (_, response) => response.writeHead(302, { location: other.url }).end()],
      ['redirect', 307, (_, response) => response.writeHead(307, { location: other.url }).end()],
      ['connection', null, (_, response) => response.destroy()],
      [
        'connection',
        null,
        (_, response) => void response.writeHead(200, { 'content-length': '100' }).write('x', () => response.destroy())
      ],
      ['status', 404, (_, response) => response.writeHead(404).end('no such page')]
    ]
    for (const [error, status, answer] of faults) {
      script.answer = answer
      await invite(acme)
      await deliverLater(app)
      await deliver(app)
      const [delivery] = (await listed(acme, webhook.id)) as [Delivery]
      t.match(await logOf(acme, webhook.id, delivery.id), [{ status, error }], `${error} ${status}`)
      script.answer = undefined
      await deliverLater(app)
    }
    t.equal(other.messages.length, 0, 'no redirect is followed')
    script.answer = (_, response) => void response.end(Buffer.alloc(10 * 1024 * 1024))
    await invite(acme)
    await deliver(app)
    t.match(await listed(acme, webhook.id), [{ status: 'delivered' }], 'a large reply is not read to its end')
  })

  await t.test('or when nobody answers, within fifteen seconds', async (t) => {
    script.answer = (_, response) => void response.writeHead(200).write('x')
    await invite(acme)
    await deliver(app)
    const [delivery] = (await listed(acme, webhook.id)) as [Delivery]
    const [attempt] = await logOf(acme, webhook.id, delivery.id)
    t.match(attempt, { status: null, error: 'timeout' })
    t.ok(attempt.duration_ms >= 14_900, String(attempt.duration_ms))
    script.answer = undefined
    await deliverLater(app)
  })

  await t.test('is given up after ten attempts', async (t) => {
    script.answer = (_, response) => response.writeHead(500).end()
    await invite(acme)
    await deliver(app)
    for (let i = 0; i < 12; i++) await deliverLater(app)
    const [delivery] = (await listed(acme, webhook.id)) as [Delivery]
    t.match(delivery, { status: 'failed', attempts: 10, due_at: null })
    t.equal((await logOf(acme, webhook.id, delivery.id)).length, 10)
    t.match((await acme.send(path(webhook.id))).json(), { status: 'enabled', failing_since: String })
  })
})

t.test('deliveries come in the order of the events while the endpoint answers', async (t) => {
  const { receiver, app, acme, webhook } = await start(t)
  await Promise.all(Array.from({ length: 30 }, () => invite(acme)))
  await deliver(app)
  const positions = receiver.messages.map(({ body }) => Number(body.data.position))
  t.equal(positions.length, 30)
  t.strictSame(
    positions,
    [...positions].sort((one, other) => one - other)
  )
  const pages = []
  for (let cursor = ''; ; ) {
    const page = (await acme.send(path(webhook.id, `/deliveries?status=delivered&limit=7${cursor}`))).json()
    pages.push(page.data.length)
    if (page.next_cursor === null) break
    cursor = `&cursor=${page.next_cursor}`
  }
  t.strictSame(pages, [7, 7, 7, 7, 2])
  t.strictSame((await acme.send(path(webhook.id, '/deliveries?status=failed'))).json().data, [])
})

t.test('events are sent again', async (t) => {
  const { receiver, app, acme, webhook } = await start(t)
  const rival = await createTenant(app, 'rival')
  const { messages } = receiver
  for (let i = 0; i < 3; i++) await invite(acme)
  await deliver(app)
  const sent = ids(messages)

  await t.test('one of them', async (t) => {
    const [delivery] = (await listed(acme, webhook.id)) as [Delivery]
    const replay = path(webhook.id, `/deliveries/${delivery.id}/replay`)
    t.equal((await rival.send({ method: 'POST', url: replay })).statusCode, 404)
    const twice = { method: 'POST', url: replay, headers: { 'idempotency-key': '"again"' } } as const
    const reply = await acme.send(twice)
    t.equal(reply.statusCode, 202)
    t.match(reply.json(), { cause: 'replay', event_id: delivery.event_id, status: 'waiting' })
    t.strictSame((await acme.send(twice)).json(), reply.json(), 'once for one key')
    await deliver(app)
    t.strictSame(ids(messages).slice(3), [delivery.event_id])
    t.equal(messages[3]?.text, messages.find((each) => each.headers['webhook-id'] === delivery.event_id)?.text)
  })

  await t.test('those of a time', async (t) => {
    messages.length = 0
    const [from, to] = [new Date(Date.now() - 3_600_000).toISOString(), new Date().toISOString()]
    const replay = (tenant: Tenant, range: object) => tenant.send(post(`/webhooks/${webhook.id}/replay`, range))
    t.equal((await replay(rival, { from, to })).statusCode, 404)
    t.match((await replay(acme, { from, to })).json(), { count: 3, webhook_id: webhook.id })
    const few = { from: '2026-01-01T00:00:00Z', to: '2026-01-02T00:00:00Z' }
    t.match((await replay(acme, few)).json(), { count: 0 })
    await deliver(app)
    t.strictSame(ids(messages), sent, 'in their order, with the same ids')
    await allRows(
      app.database,
      `insert into audit_events (tenant_id, action, created_at) select $1, 'invitation.created', now() - interval '1 second'
       from generate_series(1, 9998)`,
      [acme.id]
    )
    for (let i = 0; i < 12; i++) await app.events.run()
    t.match((await replay(acme, { from, to })).json(), { status: 409, code: 'conflict' }, 'not too many at once')

    await allRows(
      app.database,
      `insert into webhook_deliveries (tenant_id, endpoint_id, cause, event_id, event_type, event_at, position, due_at)
       select $1, $2, 'replay', uuid_v7(), 'file.created', now(), n, now() + interval '1 hour' from generate_series(1, $3::int) n`,
      [acme.id, webhook.id, maxReplayed]
    )
    t.match((await replay(acme, few)).json(), { status: 409, detail: /wait for this webhook/ }, 'nor again and again')
    t.equal((await acme.send(post(`/webhooks/${webhook.id}/test`, undefined))).statusCode, 409)
  })
})

t.test('an endpoint that does not get well', async (t) => {
  const { receiver, app, acme, webhook } = await start(t)
  const { messages, script } = receiver
  await verifyAll(app)
  const read = async () => (await acme.send(path(webhook.id))).json()

  await t.test('is switched off after three days, and those who run the agency are told', async (t) => {
    script.answer = (_, response) => response.writeHead(503).end()
    await invite(acme)
    await deliver(app)
    t.match(await read(), { status: 'enabled', failing_since: String })
    await allRows(app.database, "update webhook_endpoints set failing_since = now() - interval '71 hours'")
    await deliverLater(app)
    t.match(await read(), { status: 'enabled' })
    await allRows(app.database, "update webhook_endpoints set failing_since = now() - interval '73 hours'")
    await deliverLater(app)
    t.match(await read(), { status: 'disabled', disabled_reason: 'failing', disabled_at: String })
    const [event] = (await acme.send('/api/v1/audit-events?action=webhook.disabled')).json().data
    t.match(event, { actor_id: null, target_id: webhook.id, detail: { reason: 'failing' } })
    app.mail.wake()
    const told = () => mailsTo(app, acme.owner.email).filter(({ subject }) => subject.includes('webhook'))
    await eventually(() => told().length === 1)
    t.match(told(), [{ subject: 'A webhook of The acme agency was switched off', text: /127\.0\.0\.1/ }])
    t.notMatch(told()[0]?.text, receiver.url)
    const before = messages.length
    await deliverLater(app)
    t.equal(messages.length, before, 'nothing is sent to it')
  })

  await t.test('and gets what waits when it is enabled again', async (t) => {
    script.answer = undefined
    messages.length = 0
    const reply = await acme.send({ method: 'PATCH', url: path(webhook.id), payload: { status: 'enabled' } })
    t.match(reply.json(), { status: 'enabled', disabled_reason: null, failing_since: null })
    await deliverLater(app)
    t.equal(messages.length, 1)
  })

  await t.test('or is switched off at once when it says that it is gone', async (t) => {
    script.answer = (_, response) => response.writeHead(410).end()
    await invite(acme)
    await deliver(app)
    t.match(await read(), { status: 'disabled', disabled_reason: 'gone' })
  })
})

t.test('endpoints that never answer keep no other agency waiting', async (t) => {
  const { receiver, app, acme } = await start(t)
  const dead = await startReceiver(t)
  dead.script.answer = () => {}
  const slow: Tenant[] = []
  for (const slug of ['slow-one', 'slow-two']) slow.push(await createTenant(app, slug))
  for (const tenant of slow) {
    for (let i = 0; i < 8; i++) await createWebhook(tenant, dead.url, wanted)
    for (let i = 0; i < 5; i++) await invite(tenant)
  }
  await app.events.run()
  await eventually(() => dead.messages.length === 8)
  for (let i = 0; i < 20; i++) await invite(acme)
  await app.events.run()
  await eventually(() => receiver.messages.length === 20)
  t.equal(dead.messages.length, 8, 'four requests of each agency are under way, and none of them has ended')
  const leased = await allRows(
    app.database,
    'select tenant_id, count(*)::int as n from webhook_endpoints where lease is not null group by 1 order by 1'
  )
  t.strictSame(
    leased,
    slow.map(({ id }) => ({ tenant_id: id, n: 4 })).sort((one, other) => (one.tenant_id < other.tenant_id ? -1 : 1))
  )
})

t.test('several processes deliver each event once, and one that hangs is replaced', async (t) => {
  const { receiver, app, acme } = await start(t)
  const others = await Promise.all([1, 2].map(() => startApp(t, {}, app.database)))
  const all: TestApp[] = [app, ...others]
  for (let i = 0; i < 40; i++) await invite(acme)
  await Promise.all(all.map(deliver))
  await eventually(() => receiver.messages.length >= 40)
  t.equal(new Set(ids(receiver.messages)).size, 40)
  t.equal(receiver.messages.length, 40)

  // as if its process had died: the lease is over, and the delivery still waits
  await invite(acme)
  receiver.script.answer = () => {}
  await app.events.run()
  await eventually(() => receiver.messages.length === 41)
  await allRows(app.database, "update webhook_endpoints set busy_until = now() - interval '1 second'")
  receiver.script.answer = undefined
  await eventually(() => receiver.messages.length === 42)
  const [first, second] = ids(receiver.messages).slice(40)
  t.equal(first, second)
})
