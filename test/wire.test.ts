import { setTimeout as sleep } from 'node:timers/promises'
import { sql } from 'kysely'
import pg from 'pg'
import { serialize } from 'pg-protocol'
import { Parser } from 'pg-protocol/dist/parser.js'
import t, { type Test } from 'tap'
import { systemScope } from '../db/gate/gate-query.ts'
import { statement } from '../db/gate/statement.ts'
import { createBatchWriter, createFramer, readRow } from '../db/gate/wire-format.ts'
import { withClient } from './databases.ts'
import {
  codeOf,
  foreign,
  inA,
  inB,
  memberOf,
  message,
  prepare,
  type Row,
  rowsByPipeline,
  rowsByPool,
  tenants,
  terminate
} from './gate-trials.ts'
import { eventually, startApp, withoutPooler } from './harness.ts'
import { stopwatch } from './machine.ts'

// bounded in time: when a connection counts as dead

t.test('messages to PostgreSQL', async (t) => {
  const bound = (name: string, values: (string | Buffer | null)[]) =>
    Buffer.concat([serialize.bind({ statement: name, values }), serialize.execute({})])
  const all: [string, (string | Buffer | null)[]][] = [
    ['plain', ['one', 'two']],
    ['nothing', []],
    ['empty', ['']],
    ['nulls', [null, 'between', null]],
    ['nothing but nulls', Array(4000).fill(null)],
    ['bytes', [Buffer.from([0, 255, 128]), 'text']],
    ['characters', ['äöü€𝄞', 'NUL \0 stays']],
    ['long', ['x'.repeat(100_000), Buffer.alloc(70_000, 7), '€'.repeat(50_000)]]
  ]

  t.test('are what pg writes, with one Sync behind them', async (t) => {
    const writer = createBatchWriter()
    for (const [name, values] of all) {
      writer.run(name, values)
      t.ok(writer.take().equals(Buffer.concat([bound(name, values), serialize.sync()])), name)
    }
    for (const [name, values] of all) writer.run(name, values)
    const together = all.map(([name, values]) => bound(name, values))
    t.ok(writer.take().equals(Buffer.concat([...together, serialize.sync()])), 'all of them together')
  })
  t.test('keep nothing of what was taken before', async (t) => {
    const writer = createBatchWriter()
    writer.run('first', ['a secret'])
    const first = writer.take()
    const before = Buffer.from(first)
    writer.run('second', ['something else'])
    t.notOk(writer.take().includes('secret'))
    t.ok(first.equals(before), 'and what was taken stays as it was')
  })
})

t.test('messages from PostgreSQL', async (t) => {
  const rowOf = (values: (string | null)[]) => {
    const parts: Buffer[] = [Buffer.alloc(2)]
    ;(parts[0] as Buffer).writeUInt16BE(values.length)
    for (const value of values) {
      const length = Buffer.alloc(4)
      length.writeInt32BE(value === null ? -1 : Buffer.byteLength(value))
      parts.push(length, Buffer.from(value ?? ''))
    }
    return message('D', Buffer.concat(parts))
  }
  const sent = [message('2', ''), rowOf(['äöü', null, '']), message('C', 'SELECT 1\0')]
  const stream = Buffer.concat([...sent, ...sent])

  t.test('are found wherever the network cuts them', async (t) => {
    for (let size = 1; size <= stream.length; size++) {
      const found: Buffer[] = []
      const read = createFramer((bytes, start, end) => found.push(Buffer.from(bytes.subarray(start, end))))
      for (let at = 0; at < stream.length; at += size) read(stream.subarray(at, at + size))
      if (!Buffer.concat(found).equals(stream) || found.length !== 6) t.fail(`in pieces of ${size}`)
    }
    t.pass(`in pieces of 1 to ${stream.length} bytes`)
  })
  t.test('take time by their length and not by its square', async (t) => {
    const long = message('D', Buffer.alloc(64 * 1024 * 1024))
    let found = 0
    const read = createFramer((_bytes, start, end) => {
      found += end - start
    })
    const startedAt = process.cpuUsage()
    for (let at = 0; at < long.length; at += 16_384) read(long.subarray(at, at + 16_384))
    const { user, system } = process.cpuUsage(startedAt)
    t.equal(found, long.length)
    // joining the buffer with each of the 4,096 pieces would copy 128 GiB
    t.ok((user + system) / 1e6 < 5, `${(user + system) / 1e6} s of CPU`)
  })
  t.test('are the rows that pg reads', async (t) => {
    const values = ['äöü€𝄞', null, '', '42']
    const [bytes] = [rowOf(values)]
    let fields: unknown
    new Parser().parse(bytes, (parsed) => {
      fields = (parsed as unknown as { fields: unknown }).fields
    })
    t.strictSame(fields, values)
    const shape = { names: ['a', 'b', 'c', 'd'], readers: [String, String, String, Number] }
    t.strictSame(readRow(bytes, 0, shape), { a: values[0], b: null, c: '', d: 42 })
  })
})

t.test('reads that share a connection', withoutPooler, async (t) => {
  const app = await startApp(t, {}, await prepare(t))
  const read = (index: number) => app.gate.query(index % 2 ? inA : inB, rowsByPipeline, { divisor: 1 })
  await Promise.all(Array.from({ length: 40 }, (_, index) => read(index)))

  t.test('a slow one keeps only its own batch waiting', async (t) => {
    const slow = statement(
      'test_slow_one',
      (_, $: { seconds: number }) => sql<{ slept: string }>`select pg_sleep(${$.seconds})::text as slept`
    )
    await app.gate.query(inA, slow, { seconds: 0 })
    const sleeping = app.gate.query(inA, slow, { seconds: 0.8 }).then(() => 'slept')
    await sleep(20)
    const others = Promise.all(Array.from({ length: 60 }, (_, index) => read(index))).then(() => 'answered')
    t.equal(await Promise.race([sleeping, others]), 'answered')
    t.equal(await sleeping, 'slept')
  })
  t.test('one that takes too long is ended, and those behind it are sent again', async (t) => {
    const slow = statement(
      'test_endless_one',
      (_, $: { seconds: number }) => sql<{ slept: string }>`select pg_sleep(${$.seconds})::text as slept`
    )
    await app.gate.query(inA, slow, { seconds: 0 })
    const elapsed = stopwatch()
    const asked = Array.from({ length: 12 }, (_, index) =>
      index === 5
        ? app.gate.query(inA, slow, { seconds: 30 }).then(() => 'slept', codeOf)
        : read(index).then((rows) => rows)
    )
    const outcomes = await Promise.all(asked)
    t.equal(outcomes[5], '57014')
    const ms = elapsed()
    t.ok(ms < 3000, `${ms} ms`)
    for (const [index, rows] of outcomes.entries()) {
      if (index !== 5) t.equal(foreign(tenants[index % 2 ? 0 : 1], rows as Row[]), 0)
    }
  })
  t.test('what one of a batch does wrong is its own', async (t) => {
    const asked = Array.from({ length: 48 }, (_, index) => {
      const settings = index % 2 ? inA : inB
      const divisor = index % 5 === 0 ? 0 : 1
      return app.gate
        .query(settings, rowsByPipeline, { divisor })
        .then((rows) => (foreign(settings.tenant_id, rows) === 0 ? 'right' : 'foreign'), codeOf)
    })
    const outcomes = await Promise.all(asked)
    t.strictSame(
      outcomes,
      outcomes.map((_, index) => (index % 5 === 0 ? '22012' : 'right'))
    )
  })
  t.test('each sees its own settings, all of them, whoever stood before it', async (t) => {
    const settingsOf = statement(
      'test_settings',
      () => sql<{ tenant: string; user: string; request: string; work: string }>`
      select current_setting('app.tenant_id') as tenant, current_setting('app.user_id') as "user",
        current_setting('app.request') as request, pg_backend_pid()::text as work`
    )
    const scopes = [
      inA,
      { tenant_id: tenants[1], user_id: null, request: '' },
      { tenant_id: null, user_id: memberOf(tenants[0], 2), request: '' },
      systemScope,
      { ...inB, request: '{"id":"x"}' }
    ]
    const asked = Array.from({ length: 160 }, (_, index) => scopes[index % scopes.length] as (typeof scopes)[number])
    const rows = await Promise.all(asked.map((scope) => app.gate.query(scope, settingsOf, {})))
    t.strictSame(
      rows.map(([row]) => [row?.tenant, row?.user, row?.request]),
      asked.map(({ tenant_id, user_id, request }) => [tenant_id ?? '', user_id ?? '', request])
    )
    t.ok(new Set(rows.map(([row]) => row?.work)).size <= 2)
  })
  t.test('a value that can not be written is refused, and nobody else waits for it', async (t) => {
    const circular: Record<string, unknown> = {}
    circular.self = circular
    const echo = statement(
      'test_echo',
      (_, $: { given: unknown }) => sql<{ given: string }>`select ${$.given}::text as given`
    )
    for (let turn = 0; turn < 250; turn++) await t.rejects(app.gate.query(inA, echo, { given: circular }), TypeError)
    t.strictSame(await app.gate.query(inA, echo, { given: 'äöü€𝄞' }), [{ given: 'äöü€𝄞' }])
    const inFlight = () => app.gate.stats().pipelines.reduce((sum, { in_flight }) => sum + in_flight, 0)
    // the process has reads of its own
    t.ok((await eventually(() => inFlight() === 0)) < 5000)
  })
  t.test('a value that has no JSON is null, and the others of its batch are what they are', async (t) => {
    const echo = statement(
      'test_echo_next_to_nothing',
      (_, $: { given: unknown }) => sql<{ given: string; tenant: string }>`
        select ${$.given}::text as given, current_setting('app.tenant_id') as tenant`
    )
    const given = Array.from({ length: 40 }, (_, index) => (index % 4 ? `${index}` : { toJSON: () => undefined }))
    const asked = given.map((value, index) => app.gate.query(index % 2 ? inA : inB, echo, { given: value }))
    t.strictSame(
      (await Promise.all(asked)).flat(),
      given.map((value, index) => ({
        given: typeof value === 'string' ? value : null,
        tenant: tenants[index % 2 ? 0 : 1]
      }))
    )
  })
  t.test('a batch that is slow as a whole is not taken for silence', async (t) => {
    const slow = statement(
      'test_slow_batch',
      (_, $: { seconds: number }) => sql<{ slept: string }>`select pg_sleep(${$.seconds})::text as slept`
    )
    await Promise.all([1, 2, 3, 4].map(() => app.gate.query(inA, slow, { seconds: 0 })))
    // all in one batch, whose answers PostgreSQL sends together at its end
    const asked = Array.from({ length: 14 }, () =>
      app.gate.query(inA, slow, { seconds: 0.3 }).then(() => 'answered', codeOf)
    )
    t.strictSame([...new Set(await Promise.all(asked))], ['answered'])
  })
  t.test('an answer of many megabytes arrives whole, between others', async (t) => {
    const long = statement(
      'test_long',
      (_, $: { length: number }) => sql<{ text: string }>`select repeat('ä', ${$.length}::int) as text`
    )
    const [[row]] = await Promise.all([app.gate.query(inA, long, { length: 8_000_000 }), read(0), read(1), read(2)])
    t.equal(row?.text.length, 8_000_000)
    t.equal(row?.text, 'ä'.repeat(8_000_000))
  })
})

t.test('a connection serves alone while the other can not be opened', withoutPooler, async (t) => {
  const database = await prepare(t)
  const app = await startApp(t, { DATABASE_POOL: '1' }, database)
  await app.gate.query(inA, rowsByPool, { divisor: 1 })
  await withClient(database.postgres, async (client) => {
    // the connection of the pool, and one more
    await client.query(`alter database ${client.database} connection limit 2`)
    await terminate(database, 'aggios-pipeline')
    const left = `select from pg_stat_activity where datname = current_database() and application_name = 'aggios-pipeline'`
    await eventually(async () => (await client.query(left)).rowCount === 0)
  })
  const attempts = countConnections(t)
  // both are opened at once, and PostgreSQL may count and refuse both
  const asked = () => app.gate.query(inA, rowsByPipeline, { divisor: 1 })
  await eventually(() => asked().then(Boolean, () => false))
  const startedAt = Date.now()
  const ended = await Promise.all(
    Array.from({ length: 20 }, async (_, index) => {
      const settings = index % 2 ? inA : inB
      let wrong = 0
      while (Date.now() - startedAt < 1500) {
        wrong += foreign(settings.tenant_id, await app.gate.query(settings, rowsByPipeline, { divisor: 1 }))
      }
      return wrong
    })
  )
  t.strictSame(
    ended,
    ended.map(() => 0)
  )
  t.equal(app.gate.stats().pipelines.filter(({ connected }) => connected).length, 1)
  const ms = Date.now() - startedAt
  t.ok(attempts() >= 3 && attempts() <= 4 + ms / 500, `${attempts()} attempts in ${ms} ms`)
})

/** Counts how often pg connects from now on. */
function countConnections(t: Test): () => number {
  const original = pg.Client.prototype.connect
  let count = 0
  pg.Client.prototype.connect = function (this: pg.Client, ...given: Parameters<typeof original>) {
    count++
    return original.apply(this, given)
  } as typeof original
  t.teardown(() => {
    pg.Client.prototype.connect = original
  })
  return () => count
}
