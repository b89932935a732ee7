import { connect, createServer, type Socket } from 'node:net'
import { setTimeout as sleep } from 'node:timers/promises'
import t, { type Test } from 'tap'
import { withClient } from './databases.ts'
import {
  allRows,
  createTenant,
  createTestDatabase,
  eventually,
  post,
  type Server,
  startApp,
  startServer,
  type Tenant,
  type TestApp,
  testEnvironment
} from './harness.ts'

// bounded in time: how long the transaction of a killed process waits for its lock
// rehearsal: processes are killed in requests with an Idempotency-Key

/*
 * A process dies at any point of a request with an Idempotency-Key. The client repeats it, and gets one object.
 */

type Outcome = { status: number; replayed: boolean; body: string } | 'no reply'

const idOf = (outcome: Outcome) => (outcome === 'no reply' ? undefined : JSON.parse(outcome.body).id)

async function world(t: Test) {
  const database = await createTestDatabase(t)
  const app = await startApp(t, { SMTP_URL: 'smtp://127.0.0.1:9' }, database)
  const acme = await createTenant(app, 'acme')
  const env = testEnvironment(database, { SMTP_URL: 'smtp://127.0.0.1:9' })
  return { app, acme, env }
}

/** Asks a process for an invitation. */
async function invite(server: Server, acme: Tenant, name: string): Promise<Outcome> {
  try {
    const reply = await server.fetch('/api/v1/invitations', {
      method: 'POST',
      headers: {
        authorization: `Bearer ${acme.owner.tokens.access_token}`,
        'content-type': 'application/json',
        'idempotency-key': name
      },
      body: JSON.stringify({ email: `${name}@example.com`, role: 'viewer' })
    })
    const replayed = reply.headers.get('idempotency-replayed') === 'true'
    return { status: reply.status, replayed, body: await reply.text() }
  } catch {
    return 'no reply'
  }
}

/** Sends the request again, to a process that lives. */
async function inviteAgain(acme: Tenant, name: string): Promise<Outcome> {
  const call = post('/invitations', { email: `${name}@example.com`, role: 'viewer' }, { 'idempotency-key': name })
  const { statusCode, headers, body } = await acme.send(call)
  return { status: statusCode, replayed: headers['idempotency-replayed'] === 'true', body }
}

/** Repeats the request until the key is no longer in use, as a client does. */
async function inviteUntilDone(acme: Tenant, name: string): Promise<Outcome> {
  let outcome: Outcome = 'no reply'
  await eventually(async () => {
    outcome = await inviteAgain(acme, name)
    return outcome !== 'no reply' && outcome.status !== 409
  }, 10_000)
  return outcome
}

async function assertOne(t: Test, app: TestApp, name: string): Promise<void> {
  const rows = await allRows(
    app.database,
    `select (select count(*)::int from outbox o where o.subject_id = i.id) as mails,
      (select count(*)::int from audit_events a where a.target_id = i.id) as events,
      (select count(*)::int from idempotency_keys k where k.key = $2 and k.body::jsonb ->> 'id' = i.id::text) as keys
    from invitations i where email = $1`,
    [`${name}@example.com`, name]
  )
  t.strictSame(rows, [{ mails: 1, events: 1, keys: 1 }], 'there is one, with one mail, one event and one reply')
}

t.test('a process that is killed while its transaction runs', async (t) => {
  const { app, acme, env } = await world(t)
  for (const [name, block] of [
    ['before-it-looks', 'lock table idempotency_keys in access exclusive mode'],
    ['in-the-middle', 'lock table outbox in share mode'],
    ['before-it-stores', 'select from memberships for update']
  ] as const) {
    await t.test(name.replaceAll('-', ' '), async (t) => {
      const server = await startServer(t, env)
      await withClient(app.database.postgres, async (blocker) => {
        await blocker.query(`begin; ${block}`)
        const asked = invite(server, acme, name)
        const text = `select from pg_stat_activity
          where datname = current_database() and usename = 'aggios_app' and wait_event_type = 'Lock'`
        await eventually(async () => (await allRows(app.database, text)).length > 0, 10_000)
        server.child.kill('SIGKILL')
        t.equal(await asked, 'no reply')
        const meanwhile = await inviteAgain(acme, name)
        t.match(meanwhile, { status: 409 }, 'PostgreSQL has not noticed yet')
        await blocker.query('rollback')
      })
      const outcome = await inviteUntilDone(acme, name)
      t.match(outcome, { status: 201, replayed: false })
      await assertOne(t, app, name)
      const again = await inviteAgain(acme, name)
      t.match(again, { status: 201, replayed: true })
      t.equal(idOf(again), idOf(outcome))
    })
  }
})

type Cut = {
  url: string
  /** Answers are dropped from the next commit on of a transaction in which this text is sent. */
  arm(text: string): void
  /** Whether that commit has been sent. */
  sprung(): boolean
}

/** A proxy to the database that drops the answer to a commit. */
async function startCut(t: Test, target: string): Promise<Cut> {
  const { hostname, port } = new URL(target)
  const sockets = new Set<Socket>()
  const deaf = new Set<Socket>()
  let wanted: string | undefined
  let sprung = false
  const server = createServer((near) => {
    let isWanted = false
    const far = connect(Number(port), hostname)
    for (const socket of [near, far]) {
      sockets.add(socket)
      socket.on('error', () => {})
      socket.on('close', () => {
        near.destroy()
        far.destroy()
      })
    }
    near.on('data', (chunk) => {
      isWanted ||= wanted !== undefined && chunk.includes(wanted)
      if (isWanted && chunk.includes('commit')) {
        wanted = undefined
        isWanted = false
        sprung = true
        deaf.add(near)
      }
      far.write(chunk)
    })
    far.on('data', (chunk) => {
      if (!deaf.has(near)) near.write(chunk)
    })
  })
  await new Promise<void>((done) => server.listen(0, '127.0.0.1', done))
  t.teardown(async () => {
    for (const socket of sockets) socket.destroy()
    await new Promise((done) => server.close(done))
  })
  const url = new URL(target)
  url.port = String((server.address() as { port: number }).port)
  return {
    url: url.href,
    arm(text) {
      wanted = text
      sprung = false
    },
    sprung: () => sprung
  }
}

t.test('a process that does not hear that its transaction was committed', async (t) => {
  const { app, acme, env } = await world(t)
  const cut = await startCut(t, env.DATABASE_URL as string)
  const server = await startServer(t, { ...env, DATABASE_URL: cut.url })
  const committed = async (name: string) =>
    (await allRows(app.database, 'select from invitations where email = $1', [`${name}@example.com`])).length === 1

  await t.test('says that it does not know, and tells it when it is asked again', async (t) => {
    cut.arm('unheard@example.com')
    const outcome = await invite(server, acme, 'unheard')
    t.match(outcome, { status: 503 })
    t.ok(cut.sprung())
    t.ok(await committed('unheard'))
    const again = await invite(server, acme, 'unheard')
    t.match(again, { status: 201, replayed: true })
    await assertOne(t, app, 'unheard')
  })
  await t.test('and is killed, leaves the reply for who asks again', async (t) => {
    cut.arm('killed@example.com')
    const asked = invite(server, acme, 'killed')
    await eventually(() => committed('killed'), 10_000)
    server.child.kill('SIGKILL')
    t.equal(await asked, 'no reply')
    t.ok(cut.sprung())
    t.match(await inviteUntilDone(acme, 'killed'), { status: 201, replayed: true })
    await assertOne(t, app, 'killed')
  })
})

t.test('a process that is killed at any moment', async (t) => {
  const { app, acme, env } = await world(t)
  const asked: string[] = []
  let answered = 0
  for (let round = 0; round < 2; round++) {
    const server = await startServer(t, env)
    let running = true
    const worker = async (id: number) => {
      for (let turn = 0; running; turn++) {
        const name = `round-${round}-${id}-${turn}`
        asked.push(name)
        const outcome = await invite(server, acme, name)
        if (outcome !== 'no reply' && outcome.status === 201) answered++
      }
    }
    const workers = [0, 1, 2, 3].map(worker)
    const enough = answered + 8
    await eventually(() => answered >= enough, 30_000)
    await sleep(Math.random() * 50)
    server.child.kill('SIGKILL')
    running = false
    await Promise.all([...workers, server.exited])
  }
  t.ok(asked.length > answered, `${answered} of ${asked.length} were answered`)
  for (const name of asked) t.match(await inviteUntilDone(acme, name), { status: 201 }, name)
  const [counts] = await allRows(
    app.database,
    `select (select count(*)::int from invitations) as invitations, (select count(*)::int from outbox) as mails,
      (select count(*)::int from audit_events where action = 'invitation.created') as events,
      (select count(*)::int from idempotency_keys) as keys`
  )
  const each = asked.length
  t.strictSame(counts, { invitations: each, mails: each, events: each, keys: each })
})
