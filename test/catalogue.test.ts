import pg from 'pg'
import t, { type Test } from 'tap'
import { rememberedColumns } from '../db/catalogue/change-checks.ts'
import { definerFunctions } from '../db/catalogue/reviewed.ts'
import { readTenant } from '../db/queries/tenants.ts'
import { readUser } from '../db/queries/users.ts'
import { checks } from './catalogue-checks.ts'
import { withClient } from './databases.ts'
import { createTestDatabase } from './harness.ts'

t.test('the catalogue of the migrated database', async (t) => {
  const database = await createTestDatabase(t)
  // a copy of the database. Plants are rolled back, with their roles, so no other test sees them
  const client = new pg.Client({ connectionString: database.postgres })
  await client.connect()
  t.teardown(() => client.end())
  const findings = async (text: string) => (await client.query<{ name: string }>(text)).rows.map((row) => row.name)

  for (const { id, title, text, defects } of checks) {
    t.test(`${id}: ${title}`, async (t) => {
      t.strictSame(await findings(text), [], 'nothing is wrong')
      t.not(defects.length, 0, 'there is a defect to find')
      for (const { title, plant, finds, as = 'aggios_owner' } of defects) {
        await client.query('begin')
        try {
          await client.query(`set local role ${as}; ${plant}; reset role`)
          t.ok((await findings(text)).includes(finds), `finds: ${title}`)
        } finally {
          await client.query('rollback')
        }
      }
      t.strictSame(await findings(text), [], 'nothing planted is left')
    })
  }

  t.test('the list of functions with rights of their own is exact, and the server may call each', async (t) => {
    const names = await findings(`select p.oid::regprocedure::text as name from pg_proc p
      where p.prosecdef and p.pronamespace = 'public'::regnamespace and has_function_privilege('aggios_app', p.oid, 'execute')`)
    t.strictSame(names.sort(), definerFunctions)
  })

  t.test('remembered statements read the columns whose changes are noted, and no others', async (t) => {
    const found: Record<string, Set<string>> = {}
    for (const { name, text, remembered } of [readUser, readTenant]) {
      const shown: string[] = []
      await client.query('begin')
      // a view depends on every column that its query names
      await client.query(`create temporary view asked as ${text.replaceAll(/\$\d+/g, 'null')}`)
      const { rows } = await client.query<{ relation: string; attribute: string }>(`
        select distinct d.refobjid::regclass::text as relation, a.attname as attribute
        from pg_rewrite r join pg_depend d on d.classid = 'pg_rewrite'::regclass and d.objid = r.oid
        join pg_attribute a on a.attrelid = d.refobjid and a.attnum = d.refobjsubid
        where r.ev_class = 'asked'::regclass and d.refclassid = 'pg_class'::regclass and d.refobjid <> r.ev_class`)
      await client.query('rollback')
      for (const { relation, attribute } of rows) {
        shown.push(relation)
        found[relation] = (found[relation] ?? new Set()).add(attribute)
      }
      t.strictSame([...remembered.reads].sort(), [...new Set(shown)].sort(), name)
    }
    const columns = Object.entries(found).map(([relation, names]) => [relation, [...names].sort()])
    const listed = Object.entries(rememberedColumns).map(([relation, { columns }]) => [relation, columns])
    t.strictSame(Object.fromEntries(columns), Object.fromEntries(listed))
  })

  t.test('nobody can sign in as the directory', async (t) => {
    t.strictSame(
      await findings("select rolname as name from pg_roles where rolname = 'aggios_directory' and rolcanlogin"),
      []
    )
    t.strictSame(await findings("select rolname as name from pg_roles where rolname = 'aggios_app' and rolcanlogin"), [
      'aggios_app'
    ])
  })
})

t.test('what the server is refused', async (t) => {
  const database = await createTestDatabase(t)
  await withClient(database.app, async (client) => {
    const refused = async (t: Test, text: string) => t.rejects(client.query(text), { code: '42501' }, text)

    await t.test('to become somebody else', async (t) => {
      for (const role of ['aggios_owner', 'aggios_directory', 'aggios_backup', 'postgres']) {
        await refused(t, `set role ${role}`)
        await refused(t, `set session authorization ${role}`)
      }
    })
    await t.test('to rewrite or remove history', async (t) => {
      const months = await client.query<{ name: string }>(
        "select inhrelid::regclass::text as name from pg_inherits where inhparent = 'audit_events'::regclass"
      )
      t.ok(months.rows.length >= 3, 'this month and the next two')
      for (const { name } of [{ name: 'audit_events' }, ...months.rows]) {
        await refused(t, `update ${name} set detail = null`)
        await refused(t, `delete from ${name}`)
        await refused(t, `truncate ${name}`)
      }
      for (const { name } of months.rows) {
        await refused(t, `select from ${name}`)
        await refused(t, `insert into ${name} (action) values ('x')`)
      }
    })
    await t.test('to read a password hash, also by way of a condition or what an update returns', async (t) => {
      for (const column of ['password_hash', 'pepper_id']) {
        await refused(t, `select ${column} from users`)
        await refused(t, `select id from users where ${column} is not null`)
        await refused(t, `update users set name = name returning ${column}`)
        await refused(t, `copy users (${column}) to stdout`)
      }
      await refused(t, 'select * from users')
      await refused(t, 'select users from users')
    })
    await t.test('to create, truncate or switch off anything', async (t) => {
      await refused(t, 'create table mine (id uuid)')
      await refused(t, 'create temporary table memberships (id uuid)')
      await refused(t, 'create schema mine')
      await refused(t, 'create function mine() returns integer language sql return 1')
      await refused(t, 'truncate memberships')
      await refused(t, 'alter table sessions disable row level security')
      await refused(t, 'drop policy tenant_isolation on sessions')
      await refused(t, 'create policy mine on sessions using (true)')
      await refused(t, "set session_replication_role = 'replica'")
      await refused(t, "copy (select 1) to program 'true'")
      await refused(t, "select pg_read_file('PG_VERSION')")
    })
  })
})
