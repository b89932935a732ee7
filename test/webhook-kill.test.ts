import { setTimeout as sleep } from 'node:timers/promises'
import t from 'tap'
import {
  allRows,
  createTenant,
  createTestDatabase,
  eventually,
  type Server,
  startApp,
  startServer,
  testEnvironment
} from './harness.ts'
import { createRandom } from './random.ts'
import { createWebhook, startReceiver, verify } from './webhook-receiver.ts'

// rehearsal: processes are killed while they deliver webhooks

/*
 * A server is killed at any moment, again and again, while it makes changes and delivers their events. No event is lost, and none
 * gets a second id. `WEBHOOK_KILLS=200 npm test -- --timeout=1200 test/webhook-kill.test.ts`
 * kills it more often.
 */

const rounds = Number(process.env.WEBHOOK_KILLS ?? 10)

t.test('no event is lost, and none has two ids, however often the server is killed', async (t) => {
  const random = createRandom(18)
  const upTo = (most: number) => Math.floor(random() * most)
  const database = await createTestDatabase(t)
  const receiver = await startReceiver(t)
  const app = await startApp(t, {}, database)
  const acme = await createTenant(app, 'acme')
  const webhook = await createWebhook(acme, receiver.url, { event_types: ['invitation.created'] })
  await app.close()
  const idsOf = new Map<string, Set<string>>()
  let latestMs = 60
  receiver.script.answer = (message, response) => {
    // at once, because the library refuses messages that are five minutes old
    const { data } = verify(webhook.secret, message)
    const target = String(data.target_id)
    idsOf.set(target, (idsOf.get(target) ?? new Set()).add(String(message.headers['webhook-id'])).add(data.id))
    // some replies are late, so that the server dies while it waits for one
    setTimeout(() => response.end(), upTo(latestMs))
  }
  const env = testEnvironment(database)
  /** The invitations that the server has confirmed. */
  const confirmed = new Set<string>()
  let invited = 0

  async function inviteUntilDead(server: Server): Promise<void> {
    for (;;) {
      const reply = await server
        .fetch('/api/v1/invitations', {
          method: 'POST',
          headers: { authorization: `Bearer ${acme.owner.tokens.access_token}`, 'content-type': 'application/json' },
          body: JSON.stringify({ email: `person-${++invited}@example.com`, role: 'viewer' })
        })
        .then((each) => each.json())
        .catch(() => undefined)
      if (!reply) return
      confirmed.add((reply as { id: string }).id)
    }
  }
  // as if the time of a lease had passed
  const endLeases = () => allRows(database, "update webhook_endpoints set busy_until = '-infinity'")

  for (let round = 0; round < rounds; round++) {
    const server = await startServer(t, env)
    await endLeases()
    const clients = [inviteUntilDead(server), inviteUntilDead(server)]
    await sleep(200 + upTo(1500))
    server.child.kill('SIGKILL')
    await server.exited
    await Promise.all(clients)
  }

  latestMs = 0
  await startServer(t, env)
  await endLeases()
  const waiting = async () => {
    const text = `select (select count(*) from events where position is null)
      + (select count(*) from webhook_deliveries where status = 'waiting') as n`
    return Number((await allRows(database, text))[0]?.n)
  }
  // one request at a time, and the servers that were killed have left thousands
  await eventually(async () => (await waiting()) === 0, 60_000 + rounds * 2000)

  t.ok(confirmed.size > rounds, `${confirmed.size} changes were confirmed`)
  t.strictSame(
    [...confirmed].filter((id) => !idsOf.has(id)),
    [],
    'every confirmed change has arrived'
  )
  const committed = await allRows(database, "select target_id from audit_events where action = 'invitation.created'")
  t.strictSame([...idsOf.keys()].sort(), committed.map(({ target_id }) => target_id).sort(), 'and every committed one')
  t.strictSame(
    [...idsOf].filter(([, ids]) => ids.size !== 1),
    [],
    'each with one id'
  )
  const repeated = receiver.messages.length - committed.length
  t.comment(`${rounds} kills, ${committed.length} events, ${repeated} of them were sent twice`)
})
