import type { Socket } from 'node:net'
import { setTimeout as sleep } from 'node:timers/promises'
import { sql } from 'kysely'
import pg from 'pg'
import { serialize } from 'pg-protocol'
import { Parser } from 'pg-protocol/dist/parser.js'
import type { Test } from 'tap'
import type { TenantTransaction } from '../db/gate/gate.ts'
import type { GateSettings } from '../db/gate/gate-query.ts'
import { statement } from '../db/gate/statement.ts'
import { createFramer, messageType } from '../db/gate/wire-format.ts'
import { recordAudit } from '../db/queries/audit.ts'
import type { Environment } from '../src/config/environment.ts'
import { type DatabaseUrls, withClient } from './databases.ts'
import { allRows, createTestDatabase, eventually, startApp } from './harness.ts'
import { createRandom } from './random.ts'

/*
 * Parts of the tests of the tenant gate. They run over direct connections and through PgBouncer.
 */

/** A UUID that ends in these digits. */
export const id = (digits: string) => `00000000-0000-7000-8000-${digits.padStart(12, '0')}`
export const members = 3
export const tenants = [id('a'), id('b')] as const
export const memberOf = (tenant: string, index: number) => id(tenant.slice(-1) + index)
export const gateOf = (tenant: string | null): GateSettings => ({
  tenant_id: tenant,
  user_id: tenant && memberOf(tenant, 1),
  request: ''
})
export const [inA, inB] = [gateOf(tenants[0]), gateOf(tenants[1])]

/** A database with two agencies of three members each. */
export async function prepare(t: Test): Promise<DatabaseUrls> {
  const database = await createTestDatabase(t)
  await withClient(database.postgres, async (client) => {
    for (const tenant of tenants) {
      await client.query("insert into tenants (id, slug, name) values ($1, 'agency-' || $2, 'Agency')", [
        tenant,
        tenant.slice(-1)
      ])
      for (let index = 1; index <= members; index++) {
        const user = memberOf(tenant, index)
        await client.query("insert into users (id, email, name) values ($1, $2 || '@example.com', 'X')", [user, user])
        await client.query("insert into memberships (tenant_id, user_id, role) values ($1, $2, 'member')", [
          tenant,
          user
        ])
      }
    }
  })
  return database
}

export type Row = { tenant_id: string; setting: string; one: number }

// one query twice: on the pipelined connections, and on a connection of the pool
const read = (_: unknown, $: { divisor: number | string }) => sql<Row>`
  select m.tenant_id, current_setting('app.tenant_id') as setting, 1 / ${$.divisor}::int as one from memberships m`
export const rowsByPipeline = statement('test_rows_by_pipeline', read)
export const rowsByPool = statement('test_rows_by_pool', read, { writes: true })
export const rowsInTransaction = (trx: TenantTransaction) =>
  sql<Row>`select tenant_id, current_setting('app.tenant_id') as setting, 1 as one from memberships`
    .execute(trx)
    .then(({ rows }) => rows)

/** The number of rows that are wrong: rows of another tenant, and rows that are missing or too many. */
export function foreign(tenant: string | null, rows: Row[]): number {
  const wrong = rows.filter((row) => row.tenant_id !== tenant || row.setting !== tenant).length
  return wrong + Math.abs(rows.length - (tenant === null ? 0 : members))
}

/** A message of PostgreSQL's protocol, as bytes. */
export function message(type: string, body: string | Buffer): Buffer {
  const bytes = Buffer.from(body)
  const head = Buffer.from(`${type}0000`)
  head.writeUInt32BE(bytes.length + 4, 1)
  return Buffer.concat([head, bytes])
}

export const codeOf = (err: unknown) => (err as { code?: string }).code ?? (err as Error).message

export type Leftover = { tenant: string; user: string; request: string; rows: number }
export const leftoverText = `select coalesce(current_setting('app.tenant_id', true), '') as tenant,
  coalesce(current_setting('app.user_id', true), '') as "user", coalesce(current_setting('app.request', true), '') as request,
  (select count(*)::int from memberships) as rows`
export const isClean = ({ tenant, user, request, rows }: Leftover) => !tenant && !user && !request && rows === 0

/**
 * Asks a pipelined connection, past the gate, which settings it still has and which rows it sees. The pipeline has
 * taken over the socket from pg, so the query is written to the socket itself. Waits until the connection is idle, and
 * delays what the product sends meanwhile.
 */
export async function leftoverOn(client: pg.Client, isIdle: () => boolean): Promise<Leftover> {
  await eventually(isIdle, 10_000)
  const { stream } = (client as unknown as { connection: { stream: Socket } }).connection
  const readers = stream.listeners('data') as ((chunk: Buffer) => void)[]
  const held: Buffer[] = []
  const write = stream.write
  const parser = new Parser()
  let row: string[] = []
  stream.removeAllListeners('data')
  write.call(stream, serialize.query(leftoverText))
  Object.assign(stream, { write: (bytes: Buffer) => held.push(bytes) })
  await new Promise<void>((resolve) => {
    let begun = false
    const read = createFramer((bytes, start, end) => {
      const message = bytes.subarray(start, end)
      begun ||= bytes[start] === messageType.rowDescription
      // the rest of the answer to an earlier query
      if (!begun) for (const reader of readers) reader(message)
      else {
        parser.parse(message, (parsed) => {
          if (parsed.name === 'dataRow') row = (parsed as unknown as { fields: string[] }).fields
          if (parsed.name === 'readyForQuery') resolve()
        })
      }
    })
    stream.on('data', read)
  })
  stream.removeAllListeners('data')
  for (const reader of readers) stream.on('data', reader)
  Object.assign(stream, { write })
  for (const bytes of held) stream.write(bytes)
  const [tenant = '?', user = '?', request = '?', rows] = row
  return { tenant, user, request, rows: Number(rows) }
}

/** Ends at most `most` backends of an application. Resolves to how many were ended. */
export async function terminate(database: DatabaseUrls, application: string, most = 1000): Promise<number> {
  const ended = await allRows(
    database,
    `select pg_terminate_backend(pid) from (select pid from pg_stat_activity
      where datname = current_database() and application_name = $1 order by random() limit $2) victims`,
    [application, most]
  )
  return ended.length
}

/**
 * Sends hundreds of requests of two tenants through a pool of two connections, and makes many fail, in every way. No
 * request may see a row of the other tenant, each connection that the pool gives out must have empty settings, and
 * every change that was acknowledged must be there. `env` says how the product connects to the database.
 */
export async function tryEveryFailure(t: Test, database: DatabaseUrls, env: Environment = {}): Promise<void> {
  const next = createRandom(2)
  const seen = { checkouts: 0, leftovers: [] as Leftover[], foreign: 0, answered: 0, ended: 0 }
  const failures: Record<string, number> = {}
  const acknowledged: string[] = []

  // looks at each connection before the pool gives it out
  const original = pg.Pool.prototype.connect as () => Promise<pg.PoolClient>
  const watched = async function (this: pg.Pool) {
    const client = await original.call(this)
    try {
      const { rows } = await client.query<Leftover>(leftoverText)
      seen.checkouts++
      if (!isClean(rows[0] as Leftover)) seen.leftovers.push(rows[0] as Leftover)
      return client
    } catch (err) {
      client.release(true)
      throw err
    }
  }
  Object.defineProperty(pg.Pool.prototype, 'connect', { value: watched, configurable: true, writable: true })
  t.teardown(() => Reflect.deleteProperty(pg.Pool.prototype, 'connect'))

  const app = await startApp(t, { DATABASE_POOL: '2', ...env }, database)
  const mark = (trx: TenantTransaction, settings: GateSettings, marker: string) =>
    recordAudit(trx, { action: marker, detail: { tenant: settings.tenant_id } })

  async function request(number: number): Promise<void> {
    const settings = next() < 0.5 ? inA : inB
    const kind = next()
    const keep = (rows: Row[]) => {
      seen.foreign += foreign(settings.tenant_id, rows)
    }
    if (kind < 0.3) {
      keep(await app.gate.query(settings, rowsByPool, { divisor: kind < 0.05 ? 0 : 1 }))
      return
    }
    await app.gate.transaction(settings, async (trx) => {
      keep(await rowsInTransaction(trx))
      await mark(trx, settings, `request ${number}`)
      if (kind < 0.5) keep(await rowsInTransaction(trx))
      else if (kind < 0.6) throw new Error('changed its mind')
      else if (kind < 0.7) await sql`select 1 / 0`.execute(trx)
      else if (kind < 0.8) {
        await sql`set local statement_timeout = '15ms'`.execute(trx)
        await sql`select pg_sleep(1)`.execute(trx)
      } else if (kind < 0.85) await sql`select pg_terminate_backend(pg_backend_pid())`.execute(trx)
      else if (kind < 0.9) {
        // the error is ignored: PostgreSQL turns the commit into a rollback
        await sql`select 1 / 0`.execute(trx).catch(() => {})
      } else {
        await sql`savepoint s`.execute(trx)
        await sql`select 1 / 0`.execute(trx).catch(() => {})
        await sql`rollback to s`.execute(trx)
        keep(await rowsInTransaction(trx))
      }
    })
    acknowledged.push(`request ${number}`)
  }
  const send = (first: number, count: number) =>
    Promise.all(
      Array.from({ length: count }, (_, index) =>
        request(first + index).then(
          () => void seen.answered++,
          (err) => {
            failures[codeOf(err)] = (failures[codeOf(err)] ?? 0) + 1
          }
        )
      )
    )
  let running = true
  const killer = (async () => {
    while (running) {
      seen.ended += await terminate(database, 'aggios-pool', 1)
      await sleep(60)
    }
  })()
  await send(0, 400)
  // on a slow machine more requests time out while they wait for a connection
  for (let sent = 400; (seen.checkouts < 200 || seen.answered < 100) && sent < 2000; sent += 50) await send(sent, 50)
  running = false
  await killer

  t.comment(seen.answered, seen.checkouts, seen.ended, failures)
  t.ok(seen.answered >= 100, `${seen.answered} were answered`)
  t.ok(seen.ended >= 3, `${seen.ended} backends were killed from outside`)
  t.equal(seen.foreign, 0, 'no row of the other tenant, and none too few')
  t.ok(seen.checkouts >= 200, `${seen.checkouts} checkouts`)
  t.strictSame(seen.leftovers, [], 'and each found the settings empty')
  for (const code of ['22012', '57014', 'changed its mind']) t.ok(Number(failures[code]) > 5, `${code} happened`)

  const written = await allRows(database, "select tenant_id, action, detail ->> 'tenant' as tenant from audit_events")
  t.strictSame(
    written.filter((row) => row.tenant_id !== row.tenant),
    [],
    'each row is where it was meant to be'
  )
  const stored = new Set(written.map((row) => row.action))
  t.equal(stored.size, written.length, 'none is there twice')
  t.strictSame(
    acknowledged.filter((marker) => !stored.has(marker)),
    [],
    'and what was acknowledged is there'
  )
  const after = await Promise.all([inA, inB].map((settings) => app.gate.query(settings, rowsByPool, { divisor: 1 })))
  t.strictSame(
    after.map((rows, index) => foreign(tenants[index] as string, rows)),
    [0, 0],
    'then all is well again'
  )
}

/** A read on the pipelined connections that takes this long. */
export const slowRead = statement(
  'test_slow_read',
  (_, $: { seconds: number }) => sql<{ tenant_id: string }>`
  select m.tenant_id from memberships m, (select pg_sleep(${$.seconds}) offset 0) s`
)
