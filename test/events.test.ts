import { readdirSync } from 'node:fs'
import { setTimeout as sleep } from 'node:timers/promises'
import pg from 'pg'
import t from 'tap'
import { valuesOf } from '../db/gate/statement.ts'
import { type AgencyEvent, readEvents } from '../db/queries/events/events.ts'
import { attemptActions, eventTypes } from '../src/events/event-types.ts'
import {
  allRows,
  createTenant,
  createTestDatabase,
  eventually,
  readText,
  root,
  startApp,
  type TestApp
} from './harness.ts'

/*
 * The events of an agency have an order that every reader sees alike, whatever order they are committed in.
 */

const commits = 1500
const connections = 12

/** Reads by position, page after page, as a stream does. */
function startReader({ gate }: TestApp, tenant_id: string) {
  const read: AgencyEvent[] = []
  let stopped = false
  async function run(): Promise<void> {
    while (!stopped) {
      const scope = { tenant_id, user_id: null, request: '' }
      const values = { tenant_id, reached: read.at(-1)?.position ?? 0, limit: 7 }
      read.push(...(await gate.query(scope, readEvents, values)))
      await sleep(Math.random() * 5)
    }
  }
  const running = run()
  return {
    read,
    async stop() {
      stopped = true
      await running
    }
  }
}

t.test(`of ${commits} late commits no reader misses one, or sees one twice`, async (t) => {
  const database = await createTestDatabase(t)
  const apps = [await startApp(t, {}, database), await startApp(t, {}, database)] as const
  const acme = await createTenant(apps[0], 'acme')
  const readers = apps.map((app) => startReader(app, acme.id))
  const told = apps.map(() => 0)
  for (const [index, app] of apps.entries()) {
    const unfollow = app.events.follow((tenantId, newest) => {
      if (tenantId === acme.id) told[index] = Math.max(told[index] as number, newest)
    })
    t.teardown(unfollow)
  }

  const written: string[] = []
  let left = commits
  /** Each transaction writes early and commits late, some much later than others. */
  async function write(): Promise<void> {
    const client = new pg.Client({ connectionString: database.postgres })
    await client.connect()
    while (left-- > 0) {
      await client.query('begin')
      const { rows } = await client.query(
        "insert into audit_events (tenant_id, action) values ($1, 'file.created') returning id",
        [acme.id]
      )
      await sleep(Math.random() < 0.05 ? 600 : Math.random() * 20)
      const keeps = Math.random() < 0.95
      await client.query(keeps ? 'commit' : 'rollback')
      if (keeps) written.push(rows[0].id)
    }
    await client.end()
  }
  // both place at once, as often as they can
  let writing = true
  const place = async (app: TestApp) => {
    while (writing) await app.events.run()
  }
  const placing = apps.map(place)
  await Promise.all(Array.from({ length: connections }, write))
  writing = false
  await Promise.all(placing)
  await apps[0].events.run()

  const [last] = await allRows(database, 'select position::float8 from event_horizon')
  await eventually(() => readers.every(({ read }) => read.at(-1)?.position === last?.position))
  await eventually(() => told.every((position) => position === last?.position))
  await Promise.all(readers.map(({ stop }) => stop()))
  for (const { read } of readers) {
    const ids = read.filter(({ type }) => type === 'file.created').map(({ id }) => id)
    t.equal(new Set(ids).size, ids.length, 'each once')
    t.strictSame([...ids].sort(), [...written].sort(), `${ids.length} of ${written.length}`)
  }
  t.strictSame(readers[0]?.read, readers[1]?.read, 'in one order')
  const early = await allRows(
    database,
    'select count(*)::int as count from events a join events b on a.id < b.id and a.position > b.position'
  )
  t.ok(early[0]?.count > 0, `${early[0]?.count} pairs were committed in another order than they began`)
})

t.test('a page of events is found without reading all that follow', async (t) => {
  const app = await startApp(t)
  const acme = await createTenant(app, 'acme')
  await allRows(
    app.database,
    `insert into audit_events (tenant_id, action) select $1, 'file.created' from generate_series(1, 30000)`,
    [acme.id]
  )
  await app.events.run()
  const client = new pg.Client({ connectionString: app.database.app })
  await client.connect()
  t.teardown(() => client.end())
  const values = valuesOf(readEvents, { tenant_id: acme.id, reached: 5, limit: 100 }).map((value) => `'${value}'`)
  for (const statistics of ['missing', 'new']) {
    if (statistics === 'new') await allRows(app.database, 'analyze events; analyze audit_events')
    for (const plan of ['force_generic_plan', 'force_custom_plan']) {
      await client.query('begin')
      await client.query(`set local plan_cache_mode = ${plan}; select set_config('app.tenant_id', '${acme.id}', true)`)
      await client.query(`prepare page as ${readEvents.text}`)
      const explained = await client.query(`explain (analyze, format json) execute page (${values})`)
      const audit = nodesOf(explained.rows[0]['QUERY PLAN'][0].Plan).filter(
        ({ Alias }) => typeof Alias === 'string' && Alias.startsWith('audit_events')
      )
      const looked = audit.reduce((sum, node) => sum + Number(node['Actual Rows']) * Number(node['Actual Loops']), 0)
      t.ok(looked <= 100, `${statistics} statistics, ${plan}: ${looked} rows of the audit log`)
      await client.query('rollback')
      await client.query('deallocate page')
    }
  }
})

type PlanNode = Record<string, unknown> & { Plans?: PlanNode[] }
const nodesOf = (node: PlanNode): PlanNode[] => [node, ...(node.Plans ?? []).flatMap(nodesOf)]

t.test('every action of the audit log is a type of event, or an attempt', async (t) => {
  const known = new Set([...Object.keys(eventTypes), ...attemptActions])
  const files = ['src', 'plugins', 'routes', 'db']
    .flatMap((folder) =>
      readdirSync(`${root}/${folder}`, { recursive: true, encoding: 'utf8' }).map((name) => `${folder}/${name}`)
    )
    .filter((file) => file.endsWith('.ts'))
  const written = new Set<string>()
  for (const file of files) {
    const source = readText(file)
    for (const [, action = ''] of source.matchAll(/\baction: '([a-z_.]+)'/g)) written.add(action)
    // the values of an insert, up to the end of its statement
    for (const [, text = ''] of source.matchAll(/insert into audit_events\b([^;`]*)/g)) {
      for (const [, action = ''] of text.matchAll(/'([a-z_]+\.[a-z_]+)'/g)) written.add(action)
    }
  }
  t.ok(written.size > 50, `${written.size} actions are written`)
  t.strictSame(
    [...written].filter((action) => !known.has(action)),
    []
  )
})

t.test('the trigger leaves out the attempts, and nothing else', async (t) => {
  const app = await startApp(t)
  const acme = await createTenant(app, 'acme')
  const actions = [...Object.keys(eventTypes), ...attemptActions]
  await allRows(app.database, 'delete from events')
  await allRows(
    app.database,
    'insert into audit_events (tenant_id, action) select $1, action from unnest($2::text[]) as action',
    [acme.id, actions]
  )
  const noted = await allRows(
    app.database,
    'select action from events join audit_events using (tenant_id, created_at, id)'
  )
  t.strictSame(noted.map(({ action }) => action).sort(), Object.keys(eventTypes).sort())
})
