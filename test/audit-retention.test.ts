import pg from 'pg'
import t from 'tap'
import { createMonth } from './audit-log.ts'
import { withClient } from './databases.ts'
import { allRows, createTenant, createTestDatabase, startApp, startServer, testEnvironment } from './harness.ts'

/*
 * Months of the audit log are dropped while requests read and write it.
 */

t.test('who reads keeps a month from being dropped, and no writer waits behind the drop', async (t) => {
  const app = await startApp(t, { LOG_LEVEL: 'info' })
  const acme = await createTenant(app, 'acme')
  await createMonth(app.database, "'2001-01-01'::date")
  await withClient(app.database.owner, (client) => client.query('update audit_retention set keep_days = 365'))
  const isThere = async () => {
    const [row] = await allRows(app.database, "select to_regclass('audit_events_2001_01') is not null as there")
    return row?.there as boolean
  }

  const reader = new pg.Client({ connectionString: app.database.postgres })
  await reader.connect()
  t.teardown(() => reader.end())
  await reader.query('begin; select count(*) from audit_events')

  const writer = new pg.Client({ connectionString: app.database.postgres })
  await writer.connect()
  t.teardown(() => writer.end())
  // the server ends a statement that waits for a lock for longer
  await writer.query("set lock_timeout = '1s'")
  let dropping = true
  const other = await startApp(t, { LOG_LEVEL: 'info' }, app.database)
  const drops = Promise.all([app.housekeeping.run(), other.housekeeping.run()]).finally(() => {
    dropping = false
  })
  let written = 0
  for (; dropping; written++) {
    await writer.query('insert into audit_events (tenant_id, action) values ($1, $2)', [acme.id, 'written.meanwhile'])
  }
  await drops
  t.ok(written > 0, `${written} events were written meanwhile, and none waited for long`)
  t.equal(await isThere(), true, 'it is left for a later turn')
  t.match([...app.logLines, ...other.logLines].join(''), 'audit events are being read, and are dropped later')

  await reader.query('commit')
  await app.housekeeping.run()
  t.equal(await isThere(), false)
  t.match((await acme.send('/api/v1/audit-events/verify')).json(), { status: 'intact' })
})

t.test('the function waits for no lock longer than 50 ms, and one process drops at a time', async (t) => {
  const database = await createTestDatabase(t)
  await createMonth(database, "'2001-01-01'::date")
  await withClient(database.owner, (client) => client.query('update audit_retention set keep_days = 365'))
  const [settings] = await allRows(database, "select proconfig from pg_proc where proname = 'drop_audit_months'")
  t.match(settings?.proconfig, ['search_path=public, pg_temp', 'lock_timeout=50ms'])
  await withClient(database.app, async (first) => {
    await first.query('begin')
    t.match((await first.query('select * from drop_audit_months()')).rows, [{ dropped: 1, busy: false }])
    await withClient(database.app, async (second) => {
      t.match((await second.query('select * from drop_audit_months()')).rows, [{ dropped: 0, busy: false }])
    })
    await first.query('rollback')
  })
})

t.test('the retention is what a process with the credentials of the owner was started with', async (t) => {
  const database = await createTestDatabase(t)
  const keepDays = async () => (await allRows(database, 'select keep_days from audit_retention'))[0]?.keep_days
  const start = async (env: Record<string, string>) => {
    const server = await startServer(t, testEnvironment(database, { DATABASE_POOL: '3', LOG_LEVEL: 'warn', ...env }))
    server.child.kill('SIGTERM')
    await server.exited
    return server.output()
  }
  await start({ DATABASE_OWNER_URL: database.owner, AUDIT_RETENTION: '7' })
  t.equal(await keepDays(), 28, 'never less than four weeks')
  await start({ DATABASE_OWNER_URL: database.owner })
  t.equal(await keepDays(), 28, 'as it was where nothing is said')
  const output = await start({ AUDIT_RETENTION: '90' })
  t.equal(await keepDays(), 28)
  t.match(output, 'AUDIT_RETENTION has no effect here')
})
