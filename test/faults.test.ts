import { setTimeout as sleep } from 'node:timers/promises'
import type pg from 'pg'
import t, { type Test } from 'tap'
import { Connection } from '../db/gate/connection.ts'
import { classifyFailure } from '../db/gate/failures.ts'
import { requireStandby } from './cluster.ts'
import { withClient } from './databases.ts'
import { allRows, eventually } from './harness.ts'
import { stopwatch } from './machine.ts'
import { type Answer, ask, prepareAgency, registerAgency } from './oracle.ts'
import { commitAnswered, type FaultName, startStand, tryFaults, urlsOf } from './stand.ts'

// bounded in time: the slowest answer, and how soon a process recovers
// rehearsal: outages of every part, under load

/*
 * Processes that lose their database in many ways, while clients keep a ledger of what they were told (test/oracle.ts).
 * `npm run faults` does the same for any length of time.
 */

const stand = await startStand(t, { env: { DATABASE_POOL: '4' } })
const { cluster, proxy } = stand
const database = urlsOf(cluster)
const url = () => stand.urls()[0] as string

async function holds(t: Test, seed: number, names: FaultName[]) {
  const outcome = await tryFaults(t, stand, { seed, names })
  t.strictSame(outcome.problems, [])
  t.ok(outcome.acknowledged > 20, `${outcome.acknowledged} requests were acknowledged`)
  t.comment(`${outcome.unknown} unknown; recovered within ${outcome.slowestRecoveryMs} ms`)
  return outcome
}

const isUnknown = (answer: Answer) =>
  answer.status === 503 && answer.headers.has('retry-after') && answer.body.code === 'unavailable'

t.test('a database that is killed, or stopped at once, again and again, loses nothing', async (t) => {
  const names: FaultName[] = ['the database is killed', 'the database is stopped at once']
  await holds(t, 1, [...names, ...names])
})

t.test('a process that is killed, again and again, loses nothing', async (t) => {
  await holds(t, 2, Array(2).fill('a process is killed'))
})

t.test('a way to the database that breaks, cuts answers and swallows commits loses nothing', async (t) => {
  await holds(t, 3, [
    'the way to the database breaks',
    'answers of the database are cut',
    'commits are not acknowledged',
    'the way to the database is closed',
    'the way to the database is slow'
  ])
})

t.test('a database that freezes, or is swallowed by the network, is waited for in bounded time', async (t) => {
  const { slowestAnswerMs } = await holds(t, 4, ['the database freezes', 'the way to the database swallows everything'])
  t.ok(slowestAnswerMs < 10_000, `the slowest answer took ${slowestAnswerMs} ms`)
})

t.test('a commit whose acknowledgement is lost', async (t) => {
  const { slug, id, sessions } = await prepareAgency(url(), 'unheard', 1)
  const [session] = sessions
  const token = session?.access ?? ''
  /** Sends a request whose commit gets no answer from the database, and sends it again. `text` is in its transaction only. */
  async function twice(text: string, send: () => Promise<Answer>, pattern = commitAnswered): Promise<Answer> {
    const before = proxy.hits()
    await proxy.add({ type: 'cut_on', pattern, direction: 'downstream', times: 1, after: text })
    const first = await send()
    await proxy.clear()
    t.equal(proxy.hits(), before + 1, 'the answer was cut off')
    t.ok(isUnknown(first), `nobody is told that it failed: ${first.status} ${JSON.stringify(first.body)}`)
    return send()
  }
  const count = async (text: string, ...values: unknown[]) => (await allRows(database, text, values)).length

  t.test('of a conditional change: it is there, and asked for again it is not done again', async (t) => {
    const { headers } = await ask(url(), 'GET', '/tenant', { token })
    const ifMatch = headers.get('etag') as string
    const again = await twice('Unheard', () =>
      ask(url(), 'PATCH', '/tenant', { token, ifMatch, body: { name: 'Unheard' } })
    )
    t.match(again, { status: 412 })
    t.match((await ask(url(), 'GET', '/tenant', { token })).body, { name: 'Unheard' })
    t.equal(await count("select from audit_events where tenant_id = $1 and action = 'tenant.updated'", id), 1)
  })
  t.test('of an invitation: there is one', async (t) => {
    const body = { email: 'unheard@example.com', role: 'viewer' }
    const again = await twice(body.email, () => ask(url(), 'POST', '/invitations', { token, body }))
    t.match(again, { status: 409, body: { code: 'already_invited' } })
    t.equal(await count("select from invitations where email = 'unheard@example.com'"), 1)
    t.equal(await count("select from audit_events where tenant_id = $1 and action = 'invitation.created'", id), 1)
  })
  t.test('of another agency: there is one', async (t) => {
    const body = { name: 'Second', slug: 'unheard-second' }
    const again = await twice(body.slug, () => ask(url(), 'POST', '/tenants', { token, body }))
    t.match(again, { status: 409, body: { code: 'slug_taken' } })
    t.equal(await count("select from tenants where slug = 'unheard-second'"), 1)
  })
  t.test('of a registration: the account is there', async (t) => {
    const again = await twice('unheard-third', () => registerAgency(url(), 'unheard-third'))
    t.match(again, { status: 409 })
    const body = { email: 'owner@unheard-third.example', password: 'correct horse battery' }
    t.match(await ask(url(), 'POST', '/auth/login', { body }), { status: 200 })
  })
  t.test('of a refresh: the same token gives the one successor', async (t) => {
    const body = { refresh_token: session?.refresh }
    const again = await twice(session?.id ?? '', () => ask(url(), 'POST', '/auth/refresh', { body }), 'rotated')
    t.equal(again.status, 200)
    t.strictSame(await allRows(database, 'select counter, revoked_at from sessions where id = $1', [session?.id]), [
      { counter: 1, revoked_at: null }
    ])
    const next = await ask(url(), 'POST', '/auth/refresh', { body: { refresh_token: again.body.refresh_token } })
    t.equal(next.status, 200, `${slug} stays signed in`)
  })
})

t.test('a pool that is used up by those who wait for a lock', async (t) => {
  const [hog, other] = await Promise.all(['hog', 'bystander'].map((slug) => prepareAgency(url(), slug, 1)))
  const tokenOf = (agency: typeof hog) => agency?.sessions[0]?.access ?? ''
  const rename = (agency: typeof hog, name: string) =>
    ask(url(), 'PATCH', '/tenant', { token: tokenOf(agency), body: { name } })
  await withClient(database.postgres, async (holder) => {
    await holder.query('begin')
    await holder.query('select from tenants where id = $1 for update', [hog?.id])
    const crowd = Promise.all(Array.from({ length: 20 }, (_, i) => rename(hog, `hog:${i}`)))
    await sleep(300)
    const elapsed = stopwatch()
    const [write, read, live, missing] = await Promise.all([
      rename(other, 'bystander:1'),
      ask(url(), 'GET', '/tenant', { token: tokenOf(other) }),
      ask(url(), 'GET', '/health/live'),
      ask(url(), 'GET', '/nothing')
    ])
    t.ok(write.status === 200 || (write.status === 503 && write.headers.has('retry-after')), `a write: ${write.status}`)
    t.ok(elapsed() < 5000, 'nobody waits for long')
    t.equal(read.status, 200, 'a read takes another way')
    t.equal(live.status, 200)
    t.equal(missing.status, 404)
    for (const { status, body, headers } of await crowd) {
      // on a very slow machine statement_timeout may end it before lock_timeout
      t.match({ status, code: body.code }, { status: 503, code: /^(overloaded|unavailable)$/ })
      t.ok(headers.has('retry-after'))
    }
    const open = await allRows(
      database,
      "select application_name, count(*)::int from pg_stat_activity where application_name ~ '^aggios-' group by 1"
    )
    for (const { application_name, count } of open) t.ok(count <= 2 * 4, `${count} of ${application_name}`)
    await holder.query('rollback')
  })
  t.equal((await rename(hog, 'hog:after')).status, 200, 'and when the lock is gone all is well')
  t.equal((await rename(other, 'bystander:after')).status, 200)
})

t.test('a database that lets nobody in is away until it does', async (t) => {
  const agency = await prepareAgency(url(), 'locked-out', 1)
  const token = agency.sessions[0]?.access ?? ''
  const read = () => ask(url(), 'GET', '/tenant', { token })
  const ready = () => fetch(`${url()}/api/v1/health/ready`)
  const asSuperuser = (...texts: string[]) =>
    withClient(cluster.url('postgres').replace(/[^/]+$/, 'template1'), async (client) => {
      for (const text of texts) await client.query(text)
    })
  const name = new URL(cluster.url('postgres')).pathname.slice(1)
  const password = new URL(cluster.url('aggios_app')).password
  const disconnect = `select pg_terminate_backend(pid, 5000) from pg_stat_activity where datname = '${name}'`
  const takesConnections = (database: string, verdict: boolean) =>
    `alter database ${database} allow_connections ${verdict}`
  const locks: Record<string, { lock: string[]; open: string }> = {
    'another password': {
      lock: ["alter role aggios_app password 'another'"],
      open: `alter role aggios_app password '${password}'`
    },
    'a role that may not log in': { lock: ['alter role aggios_app nologin'], open: 'alter role aggios_app login' },
    'no right to connect': {
      lock: [`revoke connect on database ${name} from public, aggios_app`],
      open: `grant connect on database ${name} to aggios_app`
    },
    'a database that takes no connections': {
      lock: [takesConnections(name, false)],
      open: takesConnections(name, true)
    },
    'a database of another name': {
      lock: [
        takesConnections(name, false),
        disconnect,
        `alter database ${name} rename to elsewhere`,
        takesConnections('elsewhere', true)
      ],
      open: `alter database elsewhere rename to ${name}`
    }
  }
  for (const [what, { lock, open }] of Object.entries(locks)) {
    await asSuperuser(...lock, disconnect)
    for (const answer of [await read(), await ask(url(), 'PATCH', '/tenant', { token, body: { name: what } })]) {
      t.ok(isUnknown(answer), `${what}: ${answer.status} ${JSON.stringify(answer.body)}`)
    }
    // its knowledge of revocations is a second old at most
    await eventually(async () => (await ready()).status === 503)
    await asSuperuser(open)
    await eventually(async () => (await read()).status === 200 && (await ready()).status === 200)
  }
  // the server has no TLS
  const client: pg.Client = new Connection({ connectionString: `${cluster.url('aggios_app')}?sslmode=verify-full` })
  const refusal = await client.connect().then(
    () => undefined,
    (err: unknown) => err
  )
  t.match(refusal, { message: /SSL/ })
  t.equal(classifyFailure(refusal), 'connection')
})

t.test('a failover', async (t) => {
  const standby = await cluster.addStandby()
  await requireStandby(cluster)
  const old = { ...cluster }

  t.test('loses nothing that was acknowledged', async (t) => {
    // from here on the cluster of the stand is the former standby
    const failOver = async () => {
      await old.kill('SIGKILL')
      await standby.promote()
      Object.assign(cluster, standby)
      proxy.lead(standby.port)
    }
    const outcome = await tryFaults(t, stand, { seed: 5, names: [failOver] })
    t.strictSame(outcome.problems, [])
    t.ok(outcome.acknowledged > 20, `${outcome.acknowledged} requests were acknowledged`)
    t.comment(`recovered within ${outcome.slowestRecoveryMs} ms`)
  })

  t.test('the old primary comes back, and takes no write', async (t) => {
    const agency = await prepareAgency(url(), 'afterwards', 1)
    const token = agency.sessions[0]?.access ?? ''
    const rename = (name: string) => ask(url(), 'PATCH', '/tenant', { token, body: { name } })
    await old.start()
    t.equal((await rename('On the new one')).status, 200)
    const [stale] = await allRows({ postgres: old.url('postgres') }, "select from tenants where slug = 'afterwards'")
    t.equal(stale, undefined, 'what is written goes to the new one')

    // a name server that still leads to the old primary: it waits for a standby that no longer follows it
    proxy.lead(old.port)
    const misled = await registerAgency(url(), 'misled')
    t.ok(isUnknown(misled), `nothing is acknowledged there: ${misled.status}`)
    proxy.lead(cluster.port)
    await eventually(async () => (await rename('Back on the new one')).status === 200, 10_000)
    t.strictSame(await allRows(urlsOf(cluster), "select from tenants where slug = 'misled'"), [])
  })

  t.test('a database that only reads is told by its refusal, and left as soon as another is there', async (t) => {
    const agency = await prepareAgency(url(), 'fenced', 1)
    const token = agency.sessions[0]?.access ?? ''
    const rename = (name: string) => ask(url(), 'PATCH', '/tenant', { token, body: { name } })
    const readOnly = (value: string) =>
      withClient(cluster.url('postgres'), async (client) => {
        await client.query(`alter system set default_transaction_read_only = ${value}`)
        await client.query('select pg_reload_conf()')
      })
    await readOnly('on')
    await eventually(async () => isUnknown(await rename('Refused')), 5000)
    t.equal((await ask(url(), 'GET', '/tenant', { token })).status, 200, 'reads go on')
    await readOnly('off')
    await eventually(async () => (await rename('Accepted')).status === 200, 5000)
  })
})
