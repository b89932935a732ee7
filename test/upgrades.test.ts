import { promises as fs } from 'node:fs'
import path from 'node:path'
import { setTimeout as sleep } from 'node:timers/promises'
import { Kysely, PostgresDialect } from 'kysely'
import { FileMigrationProvider, Migrator } from 'kysely/migration'
import pg from 'pg'
import t, { type Test } from 'tap'
import { migrate } from '../db/migrate.ts'
import { createDatabase, type DatabaseUrls, dropDatabase, withClient } from './databases.ts'
import { allRows, eventually, root, type Server, startServer, testEnvironment } from './harness.ts'
import { ask, registerAgency } from './oracle.ts'

// bounded in time: how long old and new processes work together
// rehearsal: upgrades of several processes at once

/*
 * An upgrade to a new version. All its processes find an older schema at the same moment, and one dies while it migrates. Processes
 * of the old version continue on the new schema until they are replaced.
 */

const folder = path.join(root, 'db', 'migrations')
const steps = (await fs.readdir(folder)).map((file) => path.parse(file).name).sort()
const last = steps.at(-1) as string

async function migrateTo(urls: DatabaseUrls, step: string): Promise<void> {
  const pool = new pg.Pool({ connectionString: urls.owner, max: 1 })
  const db = new Kysely<unknown>({ dialect: new PostgresDialect({ pool }) })
  const migrator = new Migrator({ db, provider: new FileMigrationProvider({ fs, path, migrationFolder: folder }) })
  const { error } = await migrator.migrateTo(step)
  await db.destroy()
  if (error) throw error
}

async function createEmpty(t: Test, name: string): Promise<DatabaseUrls> {
  const full = `u_${process.pid}_${name}`
  const urls = await createDatabase(full, 'template1')
  t.teardown(() => dropDatabase(full))
  return urls
}

/** Delays each command that changes the schema, so that a test can act in the middle. */
function slowDown(urls: DatabaseUrls, seconds: number): Promise<unknown> {
  return withClient(urls.postgres, async (client) => {
    await client.query(`create schema obstacles;
      create function obstacles.pause() returns event_trigger language plpgsql as $$ begin perform pg_sleep(${seconds}); end $$;
      grant usage on schema obstacles to public;
      create event trigger pause on ddl_command_start execute function obstacles.pause()`)
  })
}

for (const [what, before] of [
  ['an empty database', undefined],
  ['the schema of the version before', steps.at(-2)]
] as const) {
  t.test(`five processes meet ${what}, and the one that migrates it is killed`, async (t) => {
    const urls = await createEmpty(t, before === undefined ? 'empty' : 'before')
    if (before !== undefined) await migrateTo(urls, before)
    // a single migration may have few commands
    await slowDown(urls, before === undefined ? 0.03 : 0.2)
    const environment = (name: string) =>
      testEnvironment(urls, { DATABASE_POOL: '3', DATABASE_OWNER_URL: `${urls.owner}?application_name=${name}` })
    const names = ['one', 'two', 'three', 'four', 'five']
    const servers = new Map<string, Server>()
    for (const name of names) servers.set(name, await startServer(t, environment(name), { ready: false }))

    /** The process that holds the lock and has written something. */
    const working = async () => {
      const [row] = await allRows(
        urls,
        `select a.application_name from pg_locks l join pg_stat_activity a on a.pid = l.pid
         where l.locktype = 'advisory' and l.granted and a.datname = current_database() and a.backend_xid is not null`
      )
      return row?.application_name as string | undefined
    }
    let victim: string | undefined
    await eventually(async () => {
      victim = await working()
      return victim !== undefined
    }, 90_000)
    await sleep(Math.random() * 200)
    const killed = servers.get(victim as string) as Server
    killed.child.kill('SIGKILL')
    t.match(await killed.exited, { signal: 'SIGKILL' })
    t.notMatch(killed.output(), 'migrated:', 'it was in the middle')
    servers.delete(victim as string)

    const isReady = ({ url }: Server) =>
      ask(url, 'GET', '/health/ready').then(
        ({ status }) => status === 200,
        () => false
      )
    for (const [name, server] of servers) {
      await eventually(async () => {
        if (server.child.exitCode !== null) throw new Error(`${name} has ended:\n${server.output()}`)
        return isReady(server)
      }, 60_000)
    }
    t.equal([...servers.values()].filter((server) => server.output().includes('migrated:')).length, 1)
    const applied = await allRows(urls, 'select name from kysely_migration order by name')
    t.strictSame(
      applied.map(({ name }) => name),
      steps,
      'each step is there, once'
    )
    const again = await startServer(t, environment('again'))
    t.equal((await registerAgency(again.url, 'acme')).status, 201, 'it comes back and serves')
  })
}

/**
 * The tables by name. A view that takes every statement counts as the table behind it: that is what a table that was renamed
 * leaves for the version before.
 */
const tables = `(
  select c.oid, c.relname, c.oid as behind from pg_class c
  where c.relkind in ('r', 'p') and c.relnamespace = 'public'::regnamespace
  union
  select v.oid, v.relname, d.refobjid from pg_class v
  join pg_rewrite r on r.ev_class = v.oid
  join pg_depend d on d.classid = 'pg_rewrite'::regclass and d.objid = r.oid and d.refclassid = 'pg_class'::regclass
  where v.relkind = 'v' and v.relnamespace = 'public'::regnamespace and d.refobjid <> v.oid
    and pg_relation_is_updatable(v.oid, false) & 28 = 28
)`

/** What a program of an earlier version depends on, one line each. */
async function promisesOf(urls: DatabaseUrls): Promise<Set<string>> {
  const rows = await allRows(
    urls,
    `select 'column ' || c.table_name || '.' || c.column_name || ' ' || c.udt_name as promise
     from information_schema.columns c where c.table_schema = 'public'
     union all
     select 'right ' || privilege_type || ' on ' || table_name || '.' || column_name
     from information_schema.column_privileges where grantee = 'aggios_app' and table_schema = 'public'
     union all
     select 'right delete on ' || table_name from information_schema.role_table_grants
     where grantee = 'aggios_app' and privilege_type = 'DELETE' and table_schema = 'public'
     union all
     select 'function ' || p.oid::regprocedure || ' gives ' || pg_get_function_result(p.oid) from pg_proc p
     where p.pronamespace = 'public'::regnamespace and has_function_privilege('aggios_app', p.oid, 'execute')
     union all
     select 'inserts into ' || c.relname || ' need no ' || a.attname from ${tables} c
     join pg_attribute shown on shown.attrelid = c.oid
     join pg_attribute a on a.attrelid = c.behind and a.attname = shown.attname
     where a.attnum > 0 and not a.attisdropped and (not a.attnotnull or a.atthasdef or a.attidentity <> '')
     union all
     select 'table ' || relname from ${tables} c`
  )
  return new Set(rows.map(({ promise }) => promise as string))
}

/** New columns that an insert by the version before would have to name. */
async function demands(urls: DatabaseUrls): Promise<Set<string>> {
  const rows = await allRows(
    urls,
    `select c.relname || '.' || a.attname as demand from pg_attribute a
     join pg_class c on c.oid = a.attrelid and c.relkind in ('r', 'p') and c.relnamespace = 'public'::regnamespace
     where a.attnum > 0 and not a.attisdropped and a.attnotnull and not a.atthasdef and a.attidentity = ''`
  )
  return new Set(rows.map(({ demand }) => demand as string))
}

t.test('each step leaves what the program before it needs: old and new serve together', async (t) => {
  const urls = await createEmpty(t, 'steps')
  let known = new Set<string>()
  let demanded = new Set<string>()
  for (const step of steps) {
    await migrateTo(urls, step)
    const now = await promisesOf(urls)
    const demandedNow = await demands(urls)
    const tablesBefore = new Set([...known].flatMap((each) => /^table (\S+)/.exec(each)?.[1] ?? []))
    const broken = [...known].filter((each) => !now.has(each))
    const added = [...demandedNow].filter(
      (each) => !demanded.has(each) && tablesBefore.has(each.split('.', 1)[0] as string)
    )
    t.strictSame({ step, broken, added }, { step, broken: [], added: [] })
    known = now
    demanded = demandedNow
  }
  t.ok(known.size > 100, `${known.size} things to rely on`)

  // the control: a violation is found
  await withClient(urls.owner, (client) => client.query('alter table tenants rename column name to title'))
  const renamed = await promisesOf(urls)
  t.ok(
    [...known].some((each) => each.startsWith('column tenants.name ') && !renamed.has(each)),
    `after ${last}`
  )
})

t.test(
  'a step that meets a deadlock with a server, which uses the tables in another order, is tried again',
  async (t) => {
    const urls = await createEmpty(t, 'deadlock')
    await migrateTo(urls, '0017_recovery')
    const lines: string[] = []
    const waiting = `select from pg_locks l join pg_class c on c.oid = l.relation
    where c.relname = 'sessions' and not l.granted and l.database = (select oid from pg_database where datname = current_database())`
    await withClient(urls.postgres, async (server) => {
      await server.query('begin')
      await server.query('select from sessions')
      const migrated = migrate(urls.owner, (line) => void lines.push(line))
      await eventually(async () => (await allRows(urls, waiting)).length > 0)
      // the migration has locked the users. PostgreSQL ends one of the two: this transaction, or the step
      const ended = await server.query('select from users').catch((err) => err as { code: string })
      if ('code' in ended) t.equal(ended.code, '40P01')
      await server.query('rollback')
      const applied = await migrated
      t.ok(applied.includes('0018_second_factor'))
      if (!('code' in ended)) t.match(lines.join(), /tried again/)
    })
  }
)
