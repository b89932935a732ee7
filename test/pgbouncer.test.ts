import { sql } from 'kysely'
import t, { type Test } from 'tap'
import type { Timeouts } from '../db/gate/connection-settings.ts'
import { GateQuery } from '../db/gate/gate-query.ts'
import { keyedTimeouts } from '../db/gate/pipeline.ts'
import { statement } from '../db/gate/statement.ts'
import { type DatabaseUrls, withClient } from './databases.ts'
import {
  codeOf,
  foreign,
  inA,
  inB,
  leftoverText,
  prepare,
  rowsByPipeline,
  rowsByPool,
  tryEveryFailure
} from './gate-trials.ts'
import { allRows, createTenant, createTestDatabase, eventually, post, send, startApp } from './harness.ts'
import { type PgBouncer, pgbouncer, startPgBouncer } from './pgbouncer.ts'
import { freePort } from './ports.ts'

// rehearsal: the product through a real PgBouncer

/*
 * The product with PgBouncer in transaction mode in front of PostgreSQL. Every transaction may get another connection, and may
 * leave nothing on it.
 */

const poolSize = 2

async function behindPooler(t: Test, database: DatabaseUrls) {
  const port = await freePort()
  let running: PgBouncer = await startPgBouncer(database.app, { poolSize, port })
  t.teardown(() => running.stop())
  return {
    url: running.through(database.app),
    env: { DATABASE_URL: running.through(database.app), DATABASE_POOLER: 'transaction' },
    stop: () => running.stop(),
    async start() {
      running = await startPgBouncer(database.app, { poolSize, port })
    }
  }
}

type Settings = { statement: string; lock: string; idle: string }
const settingsText = `select current_setting('statement_timeout') as statement, current_setting('lock_timeout') as lock,
  current_setting('idle_in_transaction_session_timeout') as idle`
const keyedSettings = statement('test_keyed_settings', () => sql<Settings>`${sql.raw(settingsText)}`)
const poolSettings = statement('test_pool_settings', () => sql<Settings>`${sql.raw(settingsText)}`, { slow: true })
const keyedSleep = statement(
  'test_keyed_sleep',
  (_, $: { seconds: number }) => sql<{ one: number }>`select 1 as one from pg_sleep(${$.seconds})`
)
const keyedLock = statement('test_keyed_lock', () => sql<{ one: number }>`select 1 as one from memberships for update`)

t.test('through PgBouncer', { skip: pgbouncer.skip }, async (t) => {
  const database = await prepare(t)
  const pooler = await behindPooler(t, database)
  const app = await startApp(t, { ...pooler.env, DATABASE_POOL: '20' }, database)
  const servers = () =>
    allRows(
      database,
      "select pid from pg_stat_activity where datname = current_database() and usename = 'aggios_app' order by pid"
    )

  await t.test('every kind of query sees its own tenant, on connections that all share', async (t) => {
    const wrong = await Promise.all(
      Array.from({ length: 400 }, async (_, index) => {
        const settings = index % 3 ? inA : inB
        const way = index % 2 ? rowsByPipeline : rowsByPool
        const divisor = index % 10 ? 1 : 0
        const outcome = await app.gate
          .query(settings, way, { divisor })
          .then((rows) => foreign(settings.tenant_id, rows), codeOf)
        return outcome === (divisor ? 0 : '22012') ? undefined : outcome
      })
    )
    t.strictSame(
      wrong.filter((outcome) => outcome !== undefined),
      []
    )
    t.equal((await servers()).length, poolSize)
  })
  await t.test('the time-outs are those of a connection of our own, and go with the transaction', async (t) => {
    const [keyed] = await app.gate.query(inA, keyedSettings, {})
    t.match(keyed, { statement: '1s', lock: '250ms' })
    const [all] = await app.gate.query(inA, poolSettings, {})
    t.strictSame(all, { statement: '3s', lock: '2s', idle: '10s' })
    const inTransaction = await app.gate.transaction(
      inA,
      async (trx) => (await sql.raw(settingsText).execute(trx)).rows
    )
    t.strictSame(inTransaction, [all])
    t.strictSame(await outside(pooler.url, settingsText), [{ statement: '0', lock: '0', idle: '0' }])
  })
  await t.test('the time-outs hold', async (t) => {
    await t.rejects(app.gate.query(inA, keyedSleep, { seconds: 20 }), { code: '57014' })
    await withClient(database.postgres, async (blocker) => {
      await blocker.query('begin; select from memberships for update')
      await t.rejects(app.gate.query(inA, keyedLock, {}), { code: '55P03' })
      await blocker.query('rollback')
    })
    t.equal(foreign(inA.tenant_id, await app.gate.query(inA, rowsByPipeline, { divisor: 1 })), 0)
  })
  await t.test('no statement and no setting stays on a connection', async (t) => {
    const text = `select (select count(*)::int from pg_prepared_statements) as statements, l.* from (${leftoverText}) l`
    for (let turn = 0; turn < 10; turn++) {
      t.strictSame(await outside(pooler.url, text), [{ statements: 0, tenant: '', user: '', request: '', rows: 0 }])
    }
  })
  await t.test('without the setting it is refused at the start, and not found out later', async (t) => {
    const env = { DATABASE_URL: pooler.url, DATABASE_POOLER: 'none' }
    await t.rejects(startApp(t, env, database), { message: /unsupported startup parameter: options/ })
  })
  await t.test('a pooler that was killed is 503, and then all is well again', async (t) => {
    await pooler.stop()
    await t.rejects(app.gate.query(inA, rowsByPipeline, { divisor: 1 }))
    t.match((await send(app, 'localhost', '/api/v1/health')).statusCode, 503)
    await pooler.start()
    await eventually(async () => {
      const rows = await app.gate.query(inB, rowsByPool, { divisor: 1 }).catch(() => [])
      return foreign(inB.tenant_id, rows) === 0
    }, 10_000)
  })
  await t.test('connections that PostgreSQL ends under it are replaced', async () => {
    for (let turn = 0; turn < 5; turn++) {
      await allRows(
        database,
        "select pg_terminate_backend(pid) from pg_stat_activity where datname = current_database() and usename = 'aggios_app'"
      )
      await eventually(async () => {
        const rows = await app.gate.query(inA, rowsByPipeline, { divisor: 1 }).catch(() => [])
        return foreign(inA.tenant_id, rows) === 0
      })
    }
  })
})

/** The settings and rows that a connection shows after others have used it. */
function outside(url: string, text: string) {
  return withClient(url, async (client) => (await client.query(text)).rows)
}

t.test('requests that fail in every way, through PgBouncer', { skip: pgbouncer.skip }, async (t) => {
  const database = await prepare(t)
  const { env } = await behindPooler(t, database)
  await tryEveryFailure(t, database, env)
})

t.test('the product through PgBouncer', { skip: pgbouncer.skip }, async (t) => {
  const database = await createTestDatabase(t)
  const { env } = await behindPooler(t, database)
  const app = await startApp(t, { ...env, SMTP_URL: 'smtp://127.0.0.1:9' }, database)
  const acme = await createTenant(app, 'acme')
  const rival = await createTenant(app, 'rival')
  const invite = (name: string) =>
    post('/invitations', { email: `${name}@example.com`, role: 'viewer' }, { 'idempotency-key': name })

  const replies = await Promise.all(Array.from({ length: 20 }, () => acme.send(invite('ada'))))
  const made = replies.filter(({ statusCode }) => statusCode === 201)
  t.equal(new Set(made.map(({ body }) => body)).size, 1, `${made.length} replies, all the same`)
  t.equal((await rival.send(invite('ada'))).statusCode, 201)
  t.equal((await acme.send('/api/v1/invitations')).json().data.length, 1)
  t.equal((await acme.send(post('/tenants', { name: 'More', slug: 'more' }))).statusCode, 201)
  const refreshed = await acme.anonymous(post('/auth/refresh', { refresh_token: acme.owner.tokens.refresh_token }))
  t.equal(refreshed.statusCode, 200)
  t.equal((await acme.send({ method: 'DELETE', url: '/api/v1/users/me/sessions' })).statusCode, 204)
  t.match((await acme.send('/api/v1/audit-events/export')).body, /"action"\s*:\s*"invitation.created"/)
  t.equal((await send(app, 'localhost', '/api/v1/health')).json().status, 'ok')
})

t.test('what goes over the wire in one flush', async (t) => {
  const config = { name: 'known', text: 'select 1', values: [] }
  const sent: string[] = []
  const names = ['parse', 'bind', 'describe', 'execute', 'sync', 'flush', 'close']
  /** A connection that has prepared the statement. */
  const wire = {
    ...Object.fromEntries(names.map((name) => [name, () => sent.push(name)])),
    stream: { cork() {}, uncork() {} },
    parsedStatements: { [config.name]: config.text },
    submittedNamedStatements: {}
  }
  function messagesOf(inlineTimeouts?: Timeouts): string {
    const query = new GateQuery(inA, config, () => {}, inlineTimeouts)
    query.submit(wire as never)
    query.handleRowDescription({ fields: [] })
    return sent.splice(0).join(' ')
  }
  t.equal(messagesOf(), 'bind execute bind describe execute sync', 'the first time the columns are asked for')
  t.equal(messagesOf(), 'bind execute bind execute sync', 'and nothing more after it')
  t.equal(messagesOf(keyedTimeouts), 'parse bind execute parse bind describe execute sync')
})
