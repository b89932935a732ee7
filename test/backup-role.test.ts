import t from 'tap'
import { createDatabase, dropDatabase, withClient } from './databases.ts'
import { createTenant, run, startApp, temporaryFolder } from './harness.ts'
import { findPostgresTool } from './parts.ts'

/*
 * Dumps of the database: a dump by aggios_backup has the rows of all agencies. One by the owner has none, because forced row security
 * holds for the owner too.
 */

const dump = findPostgresTool('pg_dump')
const restore = findPostgresTool('pg_restore')

/** The number of rows of each table, and a digest of them that does not depend on their order. */
async function digests(url: string): Promise<Record<string, string>> {
  return withClient(url, async (client) => {
    const tables = await client.query<{ name: string }>(
      "select relname as name from pg_class where relkind = 'r' and relnamespace = 'public'::regnamespace order by 1"
    )
    const found: Record<string, string> = {}
    for (const { name } of tables.rows) {
      const { rows } = await client.query<{ digest: string }>(
        `select count(*) || ' ' || coalesce(md5(string_agg(r::text, ' ' order by r::text)), '') as digest from "${name}" r`
      )
      found[name] = rows[0]?.digest as string
    }
    return found
  })
}

t.test('dumps', { skip: dump.skip || restore.skip }, async (t) => {
  const app = await startApp(t)
  for (const slug of ['acme', 'rival']) await createTenant(app, slug)
  // its background work, such as the positions of events, would change rows between the dump and the comparison
  await app.close()
  const folder = temporaryFolder(t)
  const { owner, backup } = app.database

  t.test('a dump by aggios_backup brings back every row of every agency', async (t) => {
    const file = `${folder}/all.dump`
    await run(dump.path, ['--format=custom', `--file=${file}`, backup])
    const name = `${new URL(owner).pathname.slice(1)}_restored`
    const restored = await createDatabase(name, 'template0')
    t.teardown(() => dropDatabase(name))
    await run(restore.path, ['--exit-on-error', `--dbname=${restored.postgres}`, file])
    const before = await digests(app.database.postgres)
    t.match(before, { tenants: /^2 /, users: /^2 /, memberships: /^2 /, sessions: /^2 / })
    t.strictSame(await digests(restored.postgres), before)
    const forced = await withClient(restored.postgres, (client) =>
      client.query("select from pg_class where relname = 'sessions' and relrowsecurity and relforcerowsecurity")
    )
    t.equal(forced.rowCount, 1, 'with row security')
    const seen = await withClient(restored.app, (client) => client.query('select from memberships'))
    t.equal(seen.rowCount, 0, 'the server sees nothing without an agency')
  })

  t.test('the server can not dump', async (t) => {
    await t.rejects(run(dump.path, ['--format=plain', app.database.app]), { message: /permission denied/ })
  })

  t.test('a dump by the owner fails, or ends with 0 and has no row of any agency', async (t) => {
    await t.rejects(run(dump.path, ['--format=plain', owner]), { message: /row-level security/ })
    const { stdout } = await run(dump.path, ['--data-only', '--enable-row-security', owner], { maxBuffer: 2 ** 26 })
    t.match(stdout, /COPY public\.memberships \(.*\) FROM stdin;\n\\\.\n/)
    t.match(stdout, /COPY public\.users \(.*\) FROM stdin;\n\\\.\n/)
    t.notMatch(stdout, 'acme')
  })

  t.test('the role of backups changes nothing', async (t) => {
    await withClient(backup, async (client) => {
      t.equal((await client.query('select from memberships')).rowCount, 2, 'it sees all agencies')
      for (const text of [
        ...[
          'delete from memberships',
          "update users set name = 'x'",
          'truncate sessions',
          'create table mine (id uuid)'
        ],
        ...["select * from find_tenant('acme')", 'set role aggios_owner', 'set role aggios_directory']
      ]) {
        await t.rejects(client.query(text), { code: '42501' }, text)
      }
    })
  })
})
