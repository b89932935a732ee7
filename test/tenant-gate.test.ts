import { setTimeout as sleep } from 'node:timers/promises'
import { sql } from 'kysely'
import pg from 'pg'
import t, { type Test } from 'tap'
import { maxNames } from '../db/gate/connection.ts'
import type { TenantTransaction } from '../db/gate/gate.ts'
import { type GateSettings, systemScope } from '../db/gate/gate-query.ts'
import { statement } from '../db/gate/statement.ts'
import { recordAudit } from '../db/queries/audit.ts'
import { type DatabaseUrls, withClient } from './databases.ts'
import {
  codeOf,
  foreign,
  inA,
  inB,
  isClean,
  leftoverOn,
  memberOf,
  members,
  prepare,
  type Row,
  rowsByPipeline,
  slowRead,
  tenants,
  tryEveryFailure
} from './gate-trials.ts'
import { allRows, eventually, startApp, withoutPooler } from './harness.ts'
import { createRandom } from './random.ts'

type Wired = pg.Client & { database: string; processID: number; connectionParameters: { application_name: string } }
const isPipelined = ({ connectionParameters }: Wired) => connectionParameters.application_name === 'aggios-pipeline'

/** Records the connections that the process opens to a database. */
function listen(t: Test, database: DatabaseUrls): Set<Wired> {
  const opened = new Set<Wired>()
  const name = new URL(database.app).pathname.slice(1)
  const original = pg.Client.prototype.connect
  pg.Client.prototype.connect = function (this: Wired, ...given: Parameters<typeof original>) {
    if (this.database === name) opened.add(this.once('end', () => opened.delete(this)))
    return original.apply(this, given)
  } as typeof original
  t.teardown(() => {
    pg.Client.prototype.connect = original
  })
  return opened
}

t.test('many queries of two tenants on the same few connections', withoutPooler, async (t) => {
  const database = await prepare(t)
  const opened = listen(t, database)
  const app = await startApp(t, {}, database)
  await eventually(async () => {
    await Promise.all(Array.from({ length: 20 }, () => app.gate.query(inA, rowsByPipeline, { divisor: 1 })))
    return app.gate.stats().pipelines.every(({ connected }) => connected)
  })
  const shared = [...opened].filter(isPipelined)
  t.equal(shared.length, 2, 'two shared connections')

  // each with its own name, or the next would be sent before the first is known to fail
  const nonsense = (number: number) =>
    statement(`test_nonsense_${number}`, () => sql<Row>`select no_such_column from memberships`)
  const next = createRandom(1)
  const seen = { queries: 0, foreign: 0, unexpected: [] as unknown[], leftovers: 0, checks: 0 }
  const failures: Record<string, number> = {}

  async function ask(settings: GateSettings, divisor: number | string, expected?: string): Promise<void> {
    seen.queries++
    try {
      seen.foreign += foreign(settings.tenant_id, await app.gate.query(settings, rowsByPipeline, { divisor }))
      if (expected) seen.unexpected.push(`no ${expected}`)
    } catch (err) {
      if (codeOf(err) !== expected) seen.unexpected.push(codeOf(err))
      failures[codeOf(err)] = (failures[codeOf(err)] ?? 0) + 1
    }
  }
  async function one(): Promise<void> {
    const settings = next() < 0.5 ? inA : inB
    const kind = next()
    if (kind < 0.7) await ask(settings, 1)
    else if (kind < 0.78) await ask(settings, 0, '22012')
    else if (kind < 0.84) await ask(settings, 'not a number', '22P02')
    else if (kind < 0.89) await ask({ ...settings, tenant_id: 'not a uuid' }, 1, '22P02')
    else if (kind < 0.94) await ask(systemScope, 1)
    else {
      seen.queries++
      await app.gate.query(settings, nonsense(seen.queries), {}).then(
        () => seen.unexpected.push('no 42703'),
        (err) => codeOf(err) === '42703' || seen.unexpected.push(codeOf(err))
      )
    }
  }
  for (let turn = 0; turn < 60; turn++) {
    await Promise.all(Array.from({ length: 100 }, one))
    // on the same connections, without the gate
    for (const client of shared) {
      const left = await leftoverOn(client, () => app.gate.stats().pipelines.every(({ in_flight }) => in_flight === 0))
      seen.checks++
      if (!isClean(left)) seen.leftovers++
    }
  }

  t.ok(seen.queries > 5000, `${seen.queries} queries`)
  t.equal(seen.foreign, 0, 'no row of the other tenant, and none too few')
  t.strictSame(seen.unexpected, [], 'each failed that had to, with its own error')
  t.ok(Number(failures['22012']) > 300 && Number(failures['22P02']) > 300, JSON.stringify(failures))
  t.ok(seen.checks > 100, `${seen.checks} looks at what is left`)
  t.equal(seen.leftovers, 0, 'no setting was left behind')
  t.strictSame([...opened].filter(isPipelined), shared, 'and no error cost a connection')
})

t.test('a pool of two under requests that fail in every way', async (t) => tryEveryFailure(t, await prepare(t)))

t.test('a statement that could not be parsed can be parsed later', async (t) => {
  const database = await prepare(t)
  const opened = listen(t, database)
  const app = await startApp(t, {}, database)
  const pipelined = () => [...opened].filter(isPipelined)
  await Promise.all([1, 2, 3, 4].map(() => app.gate.query(inA, rowsByPipeline, { divisor: 1 })))
  const before = pipelined()

  await t.test('after a lock that was not given in time', async (t) => {
    const locked = statement('test_locked', () => sql<Row>`select m.tenant_id from memberships m`)
    await withClient(database.postgres, async (blocker) => {
      await blocker.query('begin; lock table memberships in access exclusive mode')
      for (const settings of [inA, inB]) {
        await t.rejects(app.gate.query(settings, locked, {}), { code: '55P03' })
      }
      await blocker.query('rollback')
    })
    for (const settings of [inA, inB, inA, inB]) {
      t.equal((await app.gate.query(settings, locked, {})).length, members)
    }
    t.strictSame(pipelined(), before, 'on the same connections')
  })
  await t.test('also when others had been sent behind it already', async (t) => {
    const crowd = statement('test_crowd', () => sql<Row>`select m.tenant_id from memberships m`)
    await withClient(database.postgres, async (blocker) => {
      await blocker.query('begin; lock table memberships in access exclusive mode')
      const waiting = Array.from({ length: 40 }, () => app.gate.query(inA, crowd, {}).then(() => 'answered', codeOf))
      await sleep(100)
      await blocker.query('rollback')
      t.strictSame([...new Set(await Promise.all(waiting))], ['answered'], 'the lock came in time')
      const late = statement('test_late', () => sql<Row>`select m.tenant_id from memberships m`)
      await blocker.query('begin; lock table memberships in access exclusive mode')
      const refused = Array.from({ length: 10 }, () => app.gate.query(inA, late, {}).then(() => 'answered', codeOf))
      const outcomes = new Set(await Promise.all(refused))
      await blocker.query('rollback')
      t.notOk(outcomes.has('26000'), `nobody hears of statements: ${[...outcomes]}`)
      const then = await Promise.all(Array.from({ length: 40 }, () => app.gate.query(inB, late, {})))
      t.ok(then.every((rows) => rows.length === members && rows.every((row) => row.tenant_id === tenants[1])))
    })
  })
  await t.test('after a table that was not there yet, by either way', async (t) => {
    const early = (_: unknown) => sql<{ n: number }>`select n from late_table`
    const ways = [statement('test_early_read', early), statement('test_early_write', early, { writes: true })] as const
    for (let turn = 0; turn < 3; turn++) {
      for (const way of ways) await t.rejects(app.gate.query(inA, way, {}), { code: '42P01' })
    }
    await withClient(database.owner, (owner) =>
      owner.query(
        'create table late_table (n int); insert into late_table values (1); grant select on late_table to aggios_app'
      )
    )
    for (let turn = 0; turn < 6; turn++) {
      for (const way of ways) t.strictSame(await app.gate.query(inA, way, {}), [{ n: 1 }])
    }
  })
})

t.test('a plan that the schema has outgrown heals', async (t) => {
  const database = await prepare(t)
  const app = await startApp(t, { DATABASE_POOL: '2' }, database)
  await withClient(database.owner, (owner) =>
    owner.query('create table wide (n int); insert into wide values (1); grant select, insert on wide to aggios_app')
  )
  const all = (_: unknown) => sql<Record<string, number>>`select * from wide`
  const byPipeline = statement('test_all_by_pipeline', all)
  const byPool = statement('test_all_by_pool', all, { writes: true })
  const ask = (way: typeof byPool, times: number) =>
    Promise.all(Array.from({ length: times }, () => app.gate.query(inA, way, {}).then((rows) => rows[0], codeOf)))

  const inTransactions = (times: number) =>
    Promise.all(
      Array.from({ length: times }, () =>
        app.gate
          .transaction(inA, async (trx) => (await sql`select * from wide where n > ${0}`.execute(trx)).rows[0])
          .catch(codeOf)
      )
    )

  t.strictSame(new Set((await inTransactions(20)).map((row) => JSON.stringify(row))), new Set(['{"n":1}']))
  t.strictSame(new Set((await ask(byPipeline, 20)).map((row) => JSON.stringify(row))), new Set(['{"n":1}']))
  t.strictSame(new Set((await ask(byPool, 20)).map((row) => JSON.stringify(row))), new Set(['{"n":1}']))
  await withClient(database.owner, (owner) => owner.query('alter table wide add column more int default 2'))
  await t.test('a transaction runs again, and nobody notices', async (t) => {
    for (const row of await inTransactions(20)) t.strictSame(row, { n: 1, more: 2 })
  })
  await t.test('a read is asked again, and nobody notices', async (t) => {
    for (const row of await ask(byPipeline, 60)) t.strictSame(row, { n: 1, more: 2 })
  })
  await t.test('a write costs each connection its plan once at most', async (t) => {
    const outcomes = await ask(byPool, 20)
    const stale = outcomes.filter((row) => row === '0A000')
    t.ok(stale.length <= 2, `${stale.length} of them on two connections`)
    for (const row of outcomes) if (row !== '0A000') t.strictSame(row, { n: 1, more: 2 })
    for (const row of await ask(byPool, 10)) t.strictSame(row, { n: 1, more: 2 })
  })
  await t.test('and so does a read that took a connection of the pool, as the others were busy', async (t) => {
    const whilePipelineIsBusy = async () => {
      const busy: Promise<unknown>[] = []
      for (let connection = 0; connection < 3; connection++) {
        busy.push(app.gate.query(inA, slowRead, { seconds: 0.7 }).catch(() => {}))
        await sleep(50)
      }
      await sleep(300)
      const rows = await ask(byPipeline, 8)
      await Promise.all(busy)
      return rows
    }
    for (const row of await whilePipelineIsBusy()) t.strictSame(row, { n: 1, more: 2 })
    await withClient(database.owner, (owner) => owner.query('alter table wide add column most int default 3'))
    for (const row of await whilePipelineIsBusy()) t.strictSame(row, { n: 1, more: 2, most: 3 })
  })
})

t.test('statements of transactions are parsed once a connection', withoutPooler, async (t) => {
  const database = await prepare(t)
  const app = await startApp(t, { DATABASE_POOL: '1' }, database)
  type Prepared = { statement: string; uses: number }
  const prepared = (trx: TenantTransaction) =>
    sql<Prepared>`select statement, (generic_plans + custom_plans)::int as uses from pg_prepared_statements
      where name like 'transaction_%'`
      .execute(trx)
      .then(({ rows }) => rows)
  const run = (text: string, times: number) =>
    app.gate.transaction(inA, async (trx) => {
      for (let time = 0; time < times; time++) await sql`select ${sql.raw(text)}, ${time}::int`.execute(trx)
      return prepared(trx)
    })

  await t.test('those that are sent again and again, and no others', async (t) => {
    t.strictSame(
      (await run("'rare'", 3)).filter(({ statement }) => statement.includes('rare')),
      []
    )
    const long = `'${'long '.repeat(2_000)}'`
    t.strictSame(
      (await run(long, 20)).filter(({ statement }) => statement.includes('long')),
      []
    )
    t.match(
      (await run("'often'", 20)).filter(({ statement }) => statement.includes('often')),
      [{ uses: 16 }]
    )
  })
  await t.test('and not without bounds', async (t) => {
    let all: Prepared[] = []
    for (let text = 0; text < maxNames + 10; text++) all = await run(`'text ${text}'`, 5)
    t.equal(all.length, maxNames)
  })
})

t.test('a transaction', async (t) => {
  const database = await prepare(t)
  const app = await startApp(t, {}, database)
  const audited = async (action: string) =>
    (await allRows(database, 'select tenant_id from audit_events where action = $1', [action])).map(
      (row) => row.tenant_id
    )

  await t.test('that is rejected leaves nothing behind', async (t) => {
    const refusal = new Error('no')
    await t.rejects(
      app.gate.transaction(inA, async (trx) => {
        await recordAudit(trx, { action: 'rejected' })
        await trx.updateTable('tenants').set({ name: 'Changed' }).execute()
        throw refusal
      }),
      refusal
    )
    t.strictSame(await audited('rejected'), [])
    t.strictSame(await allRows(database, "select from tenants where name = 'Changed'"), [])
  })
  await t.test('whose failure was overlooked is not acknowledged', async (t) => {
    await t.rejects(
      app.gate.transaction(inA, async (trx) => {
        await recordAudit(trx, { action: 'overlooked' })
        await sql`select 1 / 0`.execute(trx).catch(() => {})
      })
    )
    t.strictSame(await audited('overlooked'), [])
  })
  await t.test('that meets a deadlock runs again with its settings', async (t) => {
    const attempts: { tenant: string; user: string }[] = []
    let arrived = 0
    let open: () => void = () => {}
    const bothHold = new Promise<void>((resolve) => {
      open = resolve
    })
    const touch = (trx: TenantTransaction, index: number) =>
      trx
        .updateTable('memberships')
        .set({ last_used_at: new Date() })
        .where('user_id', '=', memberOf(tenants[0], index))
        .execute()
    const cross = (first: number, second: number) =>
      app.gate.transaction(inA, async (trx) => {
        const { rows } = await sql<{ tenant: string; user: string }>`
          select current_tenant_id() as tenant, current_user_id() as "user"`.execute(trx)
        attempts.push(...rows)
        await recordAudit(trx, { action: `cross ${first}` })
        await touch(trx, first)
        if (++arrived === 2) open()
        await bothHold
        await touch(trx, second)
        return 'done'
      })
    t.strictSame(await Promise.all([cross(1, 2), cross(2, 1)]), ['done', 'done'])
    // who comes back may be quicker than who was waiting, and meet them again
    t.ok(attempts.length >= 3 && attempts.length <= 8, `${attempts.length} attempts`)
    for (const attempt of attempts) t.strictSame(attempt, { tenant: inA.tenant_id, user: inA.user_id })
    for (const first of [1, 2])
      t.strictSame(await audited(`cross ${first}`), [tenants[0]], 'and its rows are there once')
  })
  await t.test('that fails in this way for ever is given up after four attempts', async (t) => {
    for (const code of ['40001', '40P01']) {
      let attempts = 0
      await t.rejects(
        app.gate.transaction(inA, async (trx) => {
          attempts++
          await recordAudit(trx, { action: `for ever ${code}` })
          await sql`do ${sql.lit(`begin raise exception 'again' using errcode = '${code}'; end`)}`.execute(trx)
        }),
        { code }
      )
      t.equal(attempts, 4)
      t.strictSame(await audited(`for ever ${code}`), [])
    }
  })
  await t.test('that fails in another way is not repeated', async (t) => {
    let attempts = 0
    const work = async (trx: TenantTransaction) => {
      attempts++
      await sql`select 1 / 0`.execute(trx)
    }
    await t.rejects(app.gate.transaction(inA, work), { code: '22012' })
    t.equal(attempts, 1)
  })
})

t.test('transactions that can not be put in an order run again until they can', async (t) => {
  const database = await prepare(t)
  const app = await startApp(t, {}, database)
  let attempts = 0
  let arrived = 0
  let open: () => void = () => {}
  const bothHoldOne = new Promise<void>((resolve) => {
    open = resolve
  })
  /** Two transactions, each of which holds the lock that the other one waits for. */
  const increment = (settings: GateSettings, [first, second]: [number, number]) =>
    app.gate.transaction(settings, async (trx) => {
      attempts++
      await sql`select pg_advisory_xact_lock(${first}::bigint)`.execute(trx)
      if (++arrived === 2) open()
      await bothHoldOne
      await sql`select pg_advisory_xact_lock(${second}::bigint)`.execute(trx)
      const changed = await trx
        .updateTable('tenants')
        .set((eb) => ({ version: eb('version', '+', 1) }))
        .returning('id')
        .executeTakeFirst()
      return changed?.id
    })
  const done = await Promise.all([increment(inA, [1, 2]), increment(inB, [2, 1])])
  t.strictSame(done, [tenants[0], tenants[1]])
  t.equal(attempts, 3)
  const versions = await allRows(database, 'select version from tenants order by id')
  t.strictSame(versions, [{ version: 2 }, { version: 2 }], 'no change was lost, and none made twice')
})
