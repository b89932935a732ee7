import { connect as connectSocket, createServer, type Socket } from 'node:net'
import { setTimeout as sleep } from 'node:timers/promises'
import { sql } from 'kysely'
import t, { type Test } from 'tap'
import type { TenantTransaction } from '../db/gate/gate.ts'
import type { GateSettings } from '../db/gate/gate-query.ts'
import { statement } from '../db/gate/statement.ts'
import { recordAudit } from '../db/queries/audit.ts'
import {
  codeOf,
  foreign,
  inA,
  inB,
  members,
  prepare,
  rowsByPipeline,
  rowsByPool,
  rowsInTransaction,
  slowRead,
  tenants,
  terminate
} from './gate-trials.ts'
import { allRows, eventually, startApp, type TestApp, withoutPooler } from './harness.ts'
import { stopwatch } from './machine.ts'

// bounded in time: how long one may wait for a connection

t.test('a shared connection that breaks', withoutPooler, async (t) => {
  const database = await prepare(t)
  const app = await startApp(t, {}, database)
  const good = async (settings: GateSettings) =>
    foreign(settings.tenant_id, await app.gate.query(settings, rowsByPipeline, { divisor: 1 }))
  await Promise.all([1, 2, 3, 4].map(() => good(inA)))

  await t.test('while nobody uses it is replaced unseen', async (t) => {
    t.equal(await terminate(database, 'aggios-pipeline'), 2)
    await sleep(50)
    t.strictSame(await Promise.all([good(inA), good(inB), good(inA), good(inB)]), [0, 0, 0, 0])
  })
  await t.test('under one read has it asked again', async (t) => {
    for (let turn = 0; turn < 4; turn++) {
      const asked = app.gate.query(inA, slowRead, { seconds: 0.2 }).then((rows) => rows.length, codeOf)
      await sleep(60)
      // the other connection may still be closed from the round before: the next query opens it
      t.ok((await terminate(database, 'aggios-pipeline')) >= 1)
      t.equal(await asked, members)
    }
  })
  await t.test('under many reads has each of them asked again', async (t) => {
    const asked = Array.from({ length: 100 }, (_, index) => {
      const settings = index % 4 < 2 ? inA : inB
      return app.gate
        .query(settings, slowRead, { seconds: 0.005 })
        .then((rows) => rows.length === members && rows.every((row) => row.tenant_id === settings.tenant_id), codeOf)
    })
    await sleep(50)
    t.equal(await terminate(database, 'aggios-pipeline'), 2)
    t.strictSame([...new Set(await Promise.all(asked))], [true])
  })
  await t.test('under more reads than may be in flight loses none either', async (t) => {
    let running = true
    const outcomes: Record<string, number> = {}
    const finished = Array.from({ length: 260 }, () => 0)
    const workers = finished.map(async (_, index) => {
      const settings = index % 2 ? inA : inB
      while (running) {
        const outcome = await good(settings).then((count) => (count === 0 ? 'right' : 'foreign'), codeOf)
        outcomes[outcome] = (outcomes[outcome] ?? 0) + 1
        finished[index] = Number(finished[index]) + 1
      }
    })
    let ended = 0
    for (let turn = 0; turn < 8; turn++) {
      // a read is repeated once, so no read may be cut twice
      const before = [...finished]
      await eventually(() => finished.every((count, index) => count >= Number(before[index]) + 2), 10_000)
      ended += await terminate(database, 'aggios-pipeline')
    }
    running = false
    await Promise.all(workers)
    t.ok(ended >= 10, `${ended} connections were cut`)
    t.strictSame(Object.keys(outcomes), ['right'], JSON.stringify(outcomes))
  })
})

t.test('a connection that breaks in the hands of a transaction', async (t) => {
  const database = await prepare(t)
  const app = await startApp(t, { DATABASE_POOL: '2' }, database)
  const killBackend = (trx: TenantTransaction) =>
    sql<{ pid: number }>`select pg_backend_pid() as pid`
      .execute(trx)
      .then(({ rows }) => allRows(database, 'select pg_terminate_backend($1)', [rows[0]?.pid]))

  await t.test('rejects it, rolls it back, and harms nobody else', async (t) => {
    await t.rejects(
      app.gate.transaction(inA, async (trx) => {
        await recordAudit(trx, { action: 'lost' })
        await killBackend(trx)
        await sleep(50)
        return rowsInTransaction(trx)
      })
    )
    t.strictSame(await allRows(database, "select from audit_events where action = 'lost'"), [])
    for (let turn = 0; turn < 4; turn++)
      t.equal(foreign(inA.tenant_id, await app.gate.transaction(inA, rowsInTransaction)), 0)
  })
  await t.test('is not acknowledged when it was cut before its commit', async (t) => {
    await t.rejects(
      app.gate.transaction(inB, async (trx) => {
        await recordAudit(trx, { action: 'lost' })
        await killBackend(trx)
        await sleep(50)
      })
    )
    t.strictSame(await allRows(database, "select from audit_events where action = 'lost'"), [])
    t.equal(foreign(inB.tenant_id, await app.gate.transaction(inB, rowsInTransaction)), 0)
  })
  await t.test('a write on its own is rejected, and never repeated', async (t) => {
    const suicide = statement(
      'test_suicide',
      () => sql`insert into audit_events (action) select 'cut' from (select pg_terminate_backend(pg_backend_pid())) x`,
      { writes: true }
    )
    await t.rejects(app.gate.query(inA, suicide, {}), { code: '57P01' })
    t.strictSame(await allRows(database, "select from audit_events where action = 'cut'"), [])
    t.equal(foreign(inA.tenant_id, await app.gate.query(inA, rowsByPool, { divisor: 1 })), 0)
  })
})

t.test('when more reads come than two connections can take at once', withoutPooler, async (t) => {
  const database = await prepare(t)
  const app = await startApp(t, {}, database)
  const where = statement(
    'test_where',
    () => sql<{ way: string; tenant_id: string }>`
    select current_setting('application_name') as way, m.tenant_id from memberships m`
  )
  let wrong = 0
  const wayOf = async (settings: GateSettings) => {
    const rows = await app.gate.query(settings, where, {})
    if (rows.length !== members || rows.some((row) => row.tenant_id !== settings.tenant_id)) wrong++
    return String(rows[0]?.way)
  }
  /** Gives each connection a read that takes so long. A read that is sent at the same time would be in the batch of the first. */
  async function occupyBoth(seconds: number): Promise<Promise<unknown>[]> {
    const reads: Promise<unknown>[] = []
    for (let connection = 0; connection < 2; connection++) {
      reads.push(app.gate.query(inA, slowRead, { seconds }))
      await sleep(50)
    }
    return reads
  }
  const countWays = (ways: string[]) => ways.filter((way) => way === 'aggios-pipeline').length
  await Promise.all([1, 2, 3, 4].map(() => wayOf(inA)))

  t.test('they wait for their turn', async (t) => {
    const ways = await Promise.all(Array.from({ length: 900 }, (_, index) => wayOf(index % 3 ? inA : inB)))
    t.equal(countWays(ways), 900)
  })
  t.test('nobody waits behind all that another has asked', async (t) => {
    const busy = await occupyBoth(0.2)
    const answered: string[] = []
    const asked = Array.from({ length: 400 }, () => wayOf(inA).then(() => answered.push('a')))
    const after = Array.from({ length: 4 }, () => wayOf(inB).then(() => answered.push('b')))
    await Promise.all([...busy, ...asked, ...after])
    // in the first batch that is taken; in the order of arrival they would be in the last one
    t.ok(answered.lastIndexOf('b') < 200, `the last one was number ${answered.lastIndexOf('b')} of 404`)
  })
  t.test('more than two thousand go to the pool', async (t) => {
    // a pooled connection is given to an agency's own queries only up to a depth
    const ways = await Promise.all(Array.from({ length: 2060 }, (_, index) => wayOf(index % 3 ? inA : inB)))
    // the process itself may be reading
    t.ok(countWays(ways) <= 2000 && countWays(ways) >= 1996, `${countWays(ways)} on the pipelined connections`)
  })
  t.test('and when both are busy with something slow, what comes goes to the pool', async (t) => {
    const slow = await occupyBoth(0.9)
    const waiting = Array.from({ length: 3 }, () => wayOf(inA))
    // a read of the process itself may wait too
    await eventually(() => [3, 4].includes(app.gate.stats().waiting), 600)
    t.equal(await Promise.race([...waiting, sleep(250, 'nothing yet')]), 'nothing yet')
    const elapsed = stopwatch()
    t.equal(await wayOf(inB), 'aggios-pool')
    t.ok(elapsed() < 400)
    t.strictSame(await Promise.all(waiting), Array(3).fill('aggios-pipeline'), 'what waited was not lost')
    await Promise.all(slow)
    t.equal(await wayOf(inB), 'aggios-pipeline')
  })
  t.equal(wrong, 0)
})

type Proxy = {
  url: string
  /** Stops forwarding in both directions. Connections are still accepted. */
  silence(): void
  /** Silences the connection that sends these bytes next, before they arrive. */
  silenceAt(bytes: string): void
  /** Whether a connection was silenced. */
  caught(): boolean
  /** Delivers what was held back, and forwards again. */
  resume(): void
}

/** A proxy that can stop forwarding without closing connections. */
async function startProxy(t: Test, target: string): Promise<Proxy> {
  const { hostname, port } = new URL(target)
  const quiet = new Set<Socket>()
  const sockets = new Set<Socket>()
  let held: [to: Socket, chunk: Buffer][] = []
  let gone: Socket[] = []
  let silent = false
  let trap: string | undefined
  const server = createServer((near) => {
    const far = connectSocket(Number(port), hostname)
    for (const [from, to] of [
      [near, far],
      [far, near]
    ] as const) {
      sockets.add(from)
      from.on('data', (chunk) => {
        if (trap && from === near && chunk.includes(trap)) {
          trap = undefined
          quiet.add(near)
        }
        if (silent || quiet.has(near)) held.push([to, chunk])
        else to.write(chunk)
      })
      from.on('error', () => {})
      from.on('close', () => {
        sockets.delete(from)
        // a network that is down doesn't report the end of a connection either
        if (silent || quiet.has(near)) gone.push(to)
        else to.destroy()
      })
    }
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
    silence() {
      silent = true
    },
    silenceAt(bytes) {
      trap = bytes
    },
    caught: () => trap === undefined,
    resume() {
      silent = false
      quiet.clear()
      for (const [to, chunk] of held) if (!to.destroyed) to.write(chunk)
      held = []
      for (const to of gone) to.end()
      gone = []
    }
  }
}

t.test('a database that says nothing any more', async (t) => {
  const database = await prepare(t)
  async function behindProxy(pool: string): Promise<{ app: TestApp; proxy: Proxy }> {
    const proxy = await startProxy(t, database.serving)
    const app = await startApp(t, { DATABASE_URL: proxy.url, DATABASE_POOL: pool }, database)
    await Promise.all([1, 2, 3, 4].map(() => app.gate.query(inA, rowsByPipeline, { divisor: 1 })))
    await app.gate.query(inA, rowsByPool, { divisor: 1 })
    return { app, proxy }
  }
  /** The outcome of a promise, and after how long, or that it was still pending after the given time. */
  async function settle(promise: Promise<unknown>, withinMs: number) {
    const startedAt = Date.now()
    const outcome = await Promise.race([
      promise.then(
        () => 'answered' as const,
        (err) => err as Error
      ),
      sleep(withinMs, 'hung' as const, { ref: false })
    ])
    return { outcome, ms: Date.now() - startedAt }
  }
  const mark = statement(
    'test_mark',
    (_, $: { action: string }) =>
      sql<{ id: string }>`insert into audit_events (action) values (${$.action}) returning id`,
    { writes: true }
  )
  const works = (app: TestApp) => async () => {
    const [read, written, transacted] = await Promise.all([
      app.gate.query(inA, rowsByPipeline, { divisor: 1 }),
      app.gate.query(inA, rowsByPool, { divisor: 1 }),
      app.gate.transaction(inA, rowsInTransaction)
    ]).catch(() => [])
    return [read, written, transacted].every((rows) => rows !== undefined && foreign(tenants[0], rows) === 0)
  }

  async function whole(t: Test) {
    const { app, proxy } = await behindProxy('3')
    const begun = app.gate.transaction(inA, async (trx) => {
      await recordAudit(trx, { action: 'silent transaction' })
      proxy.silence()
      return rowsInTransaction(trx)
    })
    await sleep(100)
    const outcomes = await Promise.all([
      settle(app.gate.query(inA, rowsByPipeline, { divisor: 1 }), 8000),
      settle(app.gate.query(inB, rowsByPipeline, { divisor: 1 }), 8000),
      settle(app.gate.query(inA, mark, { action: 'silent write' }), 10_000),
      settle(app.gate.transaction(inB, rowsInTransaction), 16_000),
      settle(begun, 16_000)
    ])
    for (const [index, { outcome, ms }] of outcomes.entries()) {
      t.ok(
        outcome instanceof Error,
        `${['a read', 'another', 'a write', 'a transaction', 'one that had begun'][index]} failed after ${ms} ms`
      )
    }
    proxy.resume()
    t.ok((await eventually(works(app), 10_000)) < 10_000, 'and it works when the database is back')
    t.strictSame(await allRows(database, "select from audit_events where action = 'silent transaction'"), [])
  }

  async function whileOpening(t: Test) {
    const { app, proxy } = await behindProxy('2')
    proxy.silenceAt('set_config')
    await terminate(database, 'aggios-pipeline')
    try {
      const reads = await Promise.all(
        [1, 2, 3, 4].map(() => settle(app.gate.query(inA, rowsByPipeline, { divisor: 1 }), 10_000))
      )
      t.ok(proxy.caught(), 'a connection went silent between its sign-in and its first statement')
      for (const { outcome, ms } of reads) t.not(outcome, 'hung', `a read ended after ${ms} ms`)
      t.ok((await eventually(works(app), 10_000)) < 10_000, 'and later reads find another connection')
    } finally {
      proxy.resume()
    }
  }

  async function atBegin(t: Test) {
    const { app, proxy } = await behindProxy('1')
    proxy.silenceAt('begin')
    const { outcome } = await settle(app.gate.transaction(inA, rowsInTransaction), 16_000)
    t.ok(outcome instanceof Error, 'a transaction that never began failed')
    t.ok(proxy.caught())
    proxy.resume()
    for (let turn = 1; turn <= 3; turn++) {
      const action = `after the silence ${turn}`
      const { outcome } = await settle(app.gate.query(inA, mark, { action }), 10_000)
      const stored = await allRows(database, 'select from audit_events where action = $1', [action])
      t.equal(stored.length, outcome === 'answered' ? 1 : 0, 'what is acknowledged is committed, and nothing else')
    }
    const open = () =>
      allRows(
        database,
        "select query from pg_stat_activity where datname = current_database() and state like 'idle in transaction%'"
      )
    // the bytes that were held back, and the end of the connection, may not have arrived yet
    let looks = 0
    await eventually(async () => {
      looks = (await open()).length === 0 ? looks + 1 : 0
      return looks === 10
    })
    t.equal(looks, 10, 'and no transaction was left open')
  }

  t.jobs = 3
  t.test('fails everybody in bounded time, and never hangs', { buffered: true }, whole)
  t.test('can not hang a connection that is being opened', { buffered: true }, whileOpening)
  t.test('before a transaction has begun leaves no half-open one for the next', { buffered: true }, atBegin)
})
