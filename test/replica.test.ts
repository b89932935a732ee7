import { mkdtempSync, rmSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { sql } from 'kysely'
import pg from 'pg'
import t, { type Test } from 'tap'
import { startEmbedded } from '../db/embedded.ts'
import { prepareGate, systemScope } from '../db/gate/gate-query.ts'
import { createReplica } from '../db/gate/replica.ts'
import { statement } from '../db/gate/statement.ts'
import { migrate } from '../db/migrate.ts'
import { walPosition } from '../db/queries/directory.ts'
import type { Environment } from '../src/config/environment.ts'
import { type DatabaseUrls, withClient } from './databases.ts'
import { createTenant, eventually, post, startApp, type Tenant, type TestApp } from './harness.ts'
import { makeStandby, type Standby } from './standby.ts'

// bounded in time: when a replica is left
// rehearsal: a streaming replica of PostgreSQL

/*
 * The product with a streaming replica: which reads go there, which never do, and what happens when the replica is away or behind.
 */

const countEvents = statement(
  'test_count_events',
  () => sql<{ n: number }>`select count(*)::int as n from audit_events`
)
const writes = statement(
  'test_writes',
  () => sql<{ id: string }>`insert into audit_events (action) values ('x') returning id`
)

type World = { database: DatabaseUrls; standby: Standby; env: Environment }

async function createWorld(t: Test): Promise<World> {
  const folder = mkdtempSync(join(tmpdir(), 'aggios-replica-'))
  const primary = await startEmbedded(join(folder, 'primary'), { durable: false })
  t.teardown(async () => {
    await primary.stop()
    rmSync(folder, { recursive: true, force: true, maxRetries: 20, retryDelay: 200 })
  })
  await migrate(primary.url('aggios_owner'))
  const standby = await makeStandby(primary, join(folder, 'primary'), join(folder, 'standby'))
  await standby.start()
  t.teardown(() => standby.kill())
  const app = primary.url('aggios_app')
  const database = {
    postgres: primary.url('postgres'),
    owner: primary.url('aggios_owner'),
    backup: primary.url('aggios_backup'),
    app,
    serving: app
  }
  return { database, standby, env: { DATABASE_REPLICA_URL: standby.url('aggios_app'), LOG_LEVEL: 'info' } }
}

const exported = async (tenant: Tenant) => (await tenant.send('/api/v1/audit-events/export')).body
const said = (app: TestApp, text: string) => app.logLines.filter((line) => line.includes(text)).length

/** Something that is in the audit log of an agency, and nowhere else. */
async function leaveMark(tenant: Tenant, name: string): Promise<void> {
  const reply = await tenant.send(post('/invitations', { email: `${name}@example.com`, role: 'viewer' }))
  if (reply.statusCode !== 201) throw new Error(reply.body)
}

t.test('a replica', async (t) => {
  const { database, standby, env } = await createWorld(t)
  const app = await startApp(t, env, database)
  const acme = await createTenant(app, 'acme')
  const rival = await createTenant(app, 'rival')
  const onStandby = (text: string) =>
    withClient(standby.url('postgres'), async (client) => (await client.query(text)).rows)
  /** The last query of each connection of the server, from pg_stat_activity. */
  const connections = () =>
    onStandby(
      "select query from pg_stat_activity where usename = 'aggios_app' and backend_type = 'client backend' order by query_start desc"
    )
  const lastQuery = async () => String((await connections()).find(({ query }) => !query.includes('replay'))?.query)

  await t.test('answers exports, behind the same gate', async (t) => {
    await eventually(() => said(app, 'the replica is used') === 1)
    await leaveMark(acme, 'first')
    await leaveMark(rival, 'foreign')
    await eventually(async () => (await exported(rival)).includes('foreign@example.com'))
    t.match(await exported(acme), 'first@example.com')
    // the watch of the replica may have used the same connection since
    const asked = async () => (await exported(acme)) !== '' && (await lastQuery()).includes('from audit_events')
    t.ok((await eventually(asked)) < 5000)
    t.notMatch(await exported(acme), 'foreign@example.com')
    t.equal((await acme.send('/api/v1/audit-events/verify')).json().status, 'intact')
    t.match(await lastQuery(), 'audit_seals')
    const lines = (await acme.send('/api/v1/tenant/export')).body
      .trim()
      .split('\n')
      .map((line) => JSON.parse(line))
    t.match(
      new Set(lines.map(({ table }) => table)),
      new Set(['tenant', 'member', 'session', 'invitation', 'audit_event'])
    )
    t.strictSame([...new Set(lines.map(({ row }) => row.tenant_id ?? acme.id))], [acme.id])
  })

  await t.test('that is behind shows what it has, and nobody else notices', async (t) => {
    await onStandby('select pg_wal_replay_pause()')
    await leaveMark(acme, 'second')
    t.notMatch(await exported(acme), 'second@example.com', 'this one may miss the last seconds')
    t.match((await acme.send('/api/v1/audit-events')).body, 'second@example.com', 'the list is read at once')
    t.match((await acme.send('/api/v1/invitations')).body, 'second@example.com')
    t.match((await acme.send(post('/invitations', { email: 'second@example.com', role: 'viewer' }))).json(), {
      code: 'already_invited'
    })
    const { statusCode } = await acme.send({ method: 'PATCH', url: '/api/v1/tenant', payload: { name: 'Renamed' } })
    t.equal(statusCode, 200)
    t.equal((await acme.send('/api/v1/tenant')).json().name, 'Renamed')
  })
  await t.test('that is ten seconds behind is left alone', async (t) => {
    const ms = await eventually(async () => (await exported(acme)).includes('second@example.com'), 30_000)
    t.comment(`after ${ms} ms`)
    await eventually(() => said(app, 'the replica is away or behind') === 1)
  })
  await t.test('that has caught up is used again', async (t) => {
    await onStandby('select pg_wal_replay_resume()')
    await eventually(() => said(app, 'the replica is used') === 2, 20_000)
    await exported(acme)
    t.match(await lastQuery(), 'from audit_events')
  })

  await t.test('is not asked by whoever has been sent to the primary already', async (t) => {
    const pool = new pg.Pool({ connectionString: standby.url('aggios_app'), onConnect: prepareGate })
    pool.on('error', () => {})
    const replica = createReplica({
      pool,
      inlineTimeouts: undefined,
      async primaryPosition() {
        const [row] = await app.gate.query(systemScope, walPosition, {})
        return Number(row?.position)
      },
      onChange: () => {}
    })
    t.teardown(() => replica.close())
    await replica.start()
    const settings = { tenant_id: acme.id, user_id: null, request: '' }
    const whoWas = {}
    const ask = (reader: object) => replica.query(reader, settings, countEvents, {})
    await eventually(async () => (await ask({})) !== undefined)
    t.ok(await ask(whoWas))
    t.equal(await replica.query(whoWas, settings, writes, {}), undefined, 'a failure sends them to the primary')
    await eventually(async () => (await ask({})) !== undefined)
    t.equal(await ask(whoWas), undefined, 'where they stay: the next page here may lack what the first one had')
    t.ok(await ask({}))
  })

  await t.test('that dies is not missed, and is used again when it is back', async (t) => {
    const away = said(app, 'the replica is away or behind')
    await standby.kill()
    await leaveMark(acme, 'third')
    t.match(await exported(acme), 'third@example.com')
    t.equal((await acme.send('/api/v1/tenant/export')).statusCode, 200)
    t.equal((await acme.send('/api/v1/health')).json().status, 'ok')
    await eventually(() => said(app, 'the replica is away or behind') === away + 1)
    const before = said(app, 'the replica is used')
    await standby.start()
    await eventually(() => said(app, 'the replica is used') === before + 1, 20_000)
    await exported(acme)
    t.match(await lastQuery(), 'from audit_events')
  })
  await t.test('that was promoted is no copy any more', async (t) => {
    await onStandby('select pg_promote()')
    const before = said(app, 'the replica is away or behind')
    await eventually(() => said(app, 'the replica is away or behind') === before + 1, 20_000)
    await leaveMark(acme, 'fourth')
    t.match(await exported(acme), 'fourth@example.com')
  })
})

t.test('a replica at the start', async (t) => {
  const { database, standby } = await createWorld(t)
  await t.test('may be away', async (t) => {
    const app = await startApp(
      t,
      { DATABASE_REPLICA_URL: 'postgres://aggios_app@127.0.0.1:1/aggios', LOG_LEVEL: 'info' },
      database
    )
    const acme = await createTenant(app, 'acme')
    t.match(await exported(acme), 'tenant.registered')
  })
  await t.test('must not be reached as somebody who skips row security', async (t) => {
    for (const role of ['postgres', 'aggios_owner'] as const) {
      await t.rejects(startApp(t, { DATABASE_REPLICA_URL: standby.url(role, 'aggios') }, database), {
        message: /^DATABASE_REPLICA_URL connects as .*, which owns tables or skips row security/
      })
    }
  })
  await t.test('may not be a primary', async (t) => {
    const app = await startApp(t, { DATABASE_REPLICA_URL: database.app }, database)
    const rival = await createTenant(app, 'rival')
    t.match(await exported(rival), 'tenant.registered')
    const lines = app.logLines.filter((line) => line.includes('the replica is used'))
    t.strictSame(lines, [])
  })
})
