import { type ChildProcess, spawn } from 'node:child_process'
import { once } from 'node:events'
import { writeFileSync } from 'node:fs'
import { join } from 'node:path'
import pg from 'pg'
import t, { type Test } from 'tap'
import { buildIndexes, declaredIndexes, type IndexDeclaration } from '../db/index-builds.ts'
import { type DatabaseUrls, withClient } from './databases.ts'
import { allRows, createTestDatabase, eventually } from './harness.ts'
import { copySources } from './source-copy.ts'

/*
 * Indexes that a migration declares: they are built while others write, a killed build is continued, and what is left of a failed
 * one is replaced.
 */

const byName: IndexDeclaration = { name: 'tenants_by_name', table: 'tenants', on: '(name)' }
const wanting = (...wanted: IndexDeclaration[]) => ({ wanted, retired: [] })
const quiet = () => {}

async function stateOf(urls: DatabaseUrls, name: string): Promise<string> {
  const [row] = await allRows(
    urls,
    `select indisvalid as valid from pg_index where indexrelid = to_regclass('${name}')`
  )
  return row === undefined ? 'missing' : row.valid ? 'valid' : 'invalid'
}

/** A transaction that has written to the table and stays open, for which every build waits. `end` commits it. */
async function holdOpen(t: Test, urls: DatabaseUrls) {
  const client = new pg.Client({ connectionString: urls.postgres })
  await client.connect()
  t.teardown(() => client.end())
  await client.query('begin')
  await client.query("update tenants set name = name || '.' where false")
  return { pid: (client as unknown as { processID: number }).processID, end: () => client.query('commit') }
}

const add = (slug: string) => `insert into tenants (id, slug, name) values (uuid_v7(), '${slug}', 'The ${slug} agency')`
const builders = (urls: DatabaseUrls) =>
  allRows(
    urls,
    `select p.pid from pg_stat_progress_create_index p where p.datname = current_database() and p.phase like 'waiting for %'`
  )
const waitForBuilder = (urls: DatabaseUrls) => eventually(async () => (await builders(urls)).length > 0)

t.test('an index is built while others write, and a second run finds nothing to do', async (t) => {
  const urls = await createTestDatabase(t)
  const held = await holdOpen(t, urls)
  const lines: string[] = []
  const built = buildIndexes(urls.owner, wanting(byName), (line) => void lines.push(line))
  await waitForBuilder(urls)
  await withClient(urls.postgres, async (writer) => {
    await writer.query("set lock_timeout = '1s'")
    await writer.query(add('acme'))
  })
  t.equal(await stateOf(urls, 'tenants_by_name'), 'invalid', 'it is still being built')
  await eventually(() => lines.length > 1)
  t.match(lines[1], new RegExp(`: waiting for writers.*, for the transaction of process ${held.pid} to end$`))
  await held.end()
  await built
  t.equal(await stateOf(urls, 'tenants_by_name'), 'valid')
  t.match(lines[0], /^building the index tenants_by_name: tenants has \d+ kB/)
  t.equal(lines.at(-1), 'built the index tenants_by_name')
  const found = await withClient(urls.postgres, async (client) => {
    await client.query('set enable_seqscan = off')
    return client.query("select slug from tenants where name = 'The acme agency'")
  })
  t.strictSame(found.rows, [{ slug: 'acme' }], 'with what was written meanwhile')

  const again: string[] = []
  await buildIndexes(urls.owner, wanting(byName), (line) => void again.push(line))
  t.strictSame(again, [])

  // the control: an index that is built in a transaction keeps writers waiting
  await withClient(urls.owner, async (client) => {
    await client.query('begin; create index blocking on tenants (name)')
    const writing = withClient(urls.postgres, async (writer) => {
      await writer.query("set lock_timeout = '200ms'")
      await writer.query(add('rival'))
    })
    await t.rejects(writing, { code: '55P03' })
    await client.query('rollback')
  })
})

t.test('an index that PostgreSQL left unfinished is removed and built again', async (t) => {
  const urls = await createTestDatabase(t)
  const held = await holdOpen(t, urls)
  const first = buildIndexes(urls.owner, wanting(byName), quiet).then(
    () => undefined,
    (err) => err as Error
  )
  await waitForBuilder(urls)
  for (const { pid } of await builders(urls)) await allRows(urls, 'select pg_terminate_backend($1)', [pid])
  t.match(await first, { message: /^the index tenants_by_name could not be built, and the next run tries again/ })
  t.equal(await stateOf(urls, 'tenants_by_name'), 'invalid')
  await held.end()
  const lines: string[] = []
  await buildIndexes(urls.owner, wanting(byName), (line) => void lines.push(line))
  t.equal(lines[0], 'removing what is left of the index tenants_by_name')
  t.equal(await stateOf(urls, 'tenants_by_name'), 'valid')
})

t.test('a build that fails leaves no index behind, and says why', async (t) => {
  const urls = await createTestDatabase(t)
  await allRows(urls, add('acme'))
  const broken = { ...byName, on: '((1 / (length(name) - length(name))))' }
  const failed = await buildIndexes(urls.owner, wanting(broken), quiet).catch((err) => err)
  t.match(failed, { message: /^the index tenants_by_name/, cause: { message: /division by zero/ } })
  t.equal(await stateOf(urls, 'tenants_by_name'), 'missing')
  const nowhere = buildIndexes(urls.owner, wanting({ ...byName, table: 'nothing' }), quiet)
  await t.rejects(nowhere, { cause: { message: 'there is no table nothing' } })
})

t.test('a table in partitions gets the index on each of them, and later ones by themselves', async (t) => {
  const urls = await createTestDatabase(t)
  const byAction: IndexDeclaration = { name: 'audit_by_action', table: 'audit_events', on: '(tenant_id, action)' }
  await buildIndexes(urls.owner, wanting(byAction), quiet)
  t.equal(await stateOf(urls, 'audit_by_action'), 'valid')
  await withClient(urls.owner, (client) =>
    client.query("create table audit_later partition of audit_events for values from ('2199-01-01') to ('2199-02-01')")
  )
  const parts = await allRows(
    urls,
    `select (select count(*) from pg_inherits where inhparent = 'audit_events'::regclass) as tables,
       (select count(*) from pg_inherits where inhparent = 'audit_by_action'::regclass) as indexes`
  )
  t.ok(Number(parts[0]?.tables) >= 3)
  t.equal(parts[0]?.tables, parts[0]?.indexes)
  await buildIndexes(urls.owner, { wanted: [], retired: ['audit_by_action'] }, quiet)
  t.equal(await stateOf(urls, 'audit_by_action'), 'missing')
})

t.test('an index is retired by a later step, and its name is not used again', async (t) => {
  const steps = {
    '0040_one': { indexes: [byName, { ...byName, name: 'tenants_by_slug', on: '(slug)' }] },
    '0041_two': { retiredIndexes: ['tenants_by_name'] }
  }
  const declared = declaredIndexes(steps)
  t.match(declared, { wanted: [{ name: 'tenants_by_slug' }], retired: ['tenants_by_name'] })
  t.throws(() => declaredIndexes({ ...steps, '0042_three': { indexes: [byName] } }), /was used before/)
  t.throws(() => declaredIndexes({ '0040_one': { retiredIndexes: ['other'] } }), /no earlier step declares/)
  t.throws(() => declaredIndexes({ '0040_one': { indexes: [{ ...byName, name: 'Two words' }] } }), /is no name/)

  const urls = await createTestDatabase(t)
  await buildIndexes(urls.owner, declaredIndexes({ '0040_one': steps['0040_one'] }), quiet)
  await buildIndexes(urls.owner, declared, quiet)
  t.equal(await stateOf(urls, 'tenants_by_name'), 'missing')
  t.equal(await stateOf(urls, 'tenants_by_slug'), 'valid')
})

t.test('npm run migrate builds what a step declares, also when a run is killed in the middle', async (t) => {
  const urls = await createTestDatabase(t)
  const folder = copySources(t)
  writeFileSync(
    join(folder, 'db', 'migrations', '9998_names.ts'),
    `export const indexes = [${JSON.stringify(byName)}]\nexport async function up() {}\n`
  )
  const outputs = new Map<ChildProcess, string>()
  const start = () => {
    const child = spawn(process.execPath, [...process.execArgv, join(folder, 'src', 'cli', 'migrate.ts')], {
      cwd: folder,
      env: { PATH: process.env.PATH, DATABASE_OWNER_URL: urls.owner }
    })
    outputs.set(child, '')
    for (const stream of [child.stdout, child.stderr])
      stream.on('data', (text) => outputs.set(child, `${outputs.get(child)}${text}`))
    return { child, output: () => outputs.get(child) as string, ended: once(child, 'exit') }
  }
  const held = await holdOpen(t, urls)
  const killed = start()
  await waitForBuilder(urls)
  t.match(killed.output(), /building the index tenants_by_name/)
  killed.child.kill('SIGKILL')
  await killed.ended

  const next = start()
  await eventually(() => next.output().includes('waiting for another process that builds indexes'))
  await held.end()
  t.strictSame(await next.ended, [0, null], next.output())
  t.match(next.output(), /the schema is up to date/)
  t.equal(await stateOf(urls, 'tenants_by_name'), 'valid', 'PostgreSQL went on with it, and the next run waited')

  // beside the steps of a newer version, which may have retired the index, this program builds nothing
  await allRows(urls, 'drop index tenants_by_name')
  await allRows(urls, "insert into kysely_migration values ('9999_next', now()::text)")
  const older = start()
  t.strictSame(await older.ended, [0, null])
  t.equal(await stateOf(urls, 'tenants_by_name'), 'missing')
})
