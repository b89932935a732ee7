import { join } from 'node:path'
import t, { type Test } from 'tap'
import { readBackupConfig } from '../src/config/backups.ts'
import { openStore } from '../src/files/store/configured-store.ts'
import { archiveSkip, startBackupStore } from './archive.ts'
import { seal } from './audit-log.ts'
import { createDatabase, type DatabaseUrls, dropDatabase, withClient } from './databases.ts'
import { readObjects } from './drill-state.ts'
import { createFile, form, onePixel, sweep } from './forms.ts'
import {
  addMember,
  allRows,
  commandFile,
  createTenant,
  elsewhere,
  eventually,
  post,
  run,
  setStatus,
  startApp,
  type Tenant,
  type TestApp,
  temporaryFolder,
  testEnvironment
} from './harness.ts'
import { findPostgresTool } from './parts.ts'

/*
 * `npm run tenant -- rewind`: one agency is brought back to an earlier time, and its neighbours notice nothing. The copy of the
 * database at that time is made by a dump here; test/drill.test.ts makes one from base backup and log.
 */

const [dump, restore] = [findPostgresTool('pg_dump'), findPostgresTool('pg_restore')]

/** A copy of the database as it is now. */
async function copyDatabase(t: Test, database: DatabaseUrls): Promise<DatabaseUrls> {
  const name = `${new URL(database.app).pathname.slice(1)}_then`
  const file = join(temporaryFolder(t), 'then.dump')
  await run(dump.path, ['--format=custom', `--file=${file}`, database.backup])
  const copy = await createDatabase(name, 'template0')
  t.teardown(() => dropDatabase(name))
  await run(restore.path, ['--exit-on-error', `--dbname=${copy.postgres}`, file])
  return copy
}

/** A digest of every row of each table that belongs to an agency, and of its people and its own row. */
async function rowsOf(app: TestApp, tenant: Tenant): Promise<Record<string, string>> {
  // events get their positions a moment after they happened
  await app.events.run()
  return withClient(app.database.postgres, async (client) => {
    const { rows: tables } = await client.query<{ name: string }>(
      `select c.relname as name from pg_class c join pg_attribute a on a.attrelid = c.oid and a.attname = 'tenant_id'
      where c.relkind in ('r', 'p') and not c.relispartition and c.relnamespace = 'public'::regnamespace order by 1`
    )
    const digests: Record<string, string> = {}
    const conditions = [
      ...tables.map(({ name }) => [name, 'r.tenant_id = $1'] as const),
      ['tenants', 'r.id = $1'] as const,
      ['users', 'r.id in (select user_id from memberships where tenant_id = $1)'] as const
    ]
    for (const [name, condition] of conditions) {
      const { rows } = await client.query(
        `select count(*) || ' ' || coalesce(sum(hashtextextended(r::text, 0)::numeric), 0) as digest from ${name} r where ${condition}`,
        [tenant.id]
      )
      digests[name] = rows[0].digest
    }
    return digests
  })
}

t.test('one agency is restored', { skip: archiveSkip || dump.skip || restore.skip, timeout: 540_000 }, async (t) => {
  const { environment } = await startBackupStore(t)
  const app = await startApp(t, { FILE_RESTORE_FOR: '0' })
  const [acme, rival] = [await createTenant(app, 'acme'), await createTenant(app, 'rival')]
  const [bob, carol] = [await createTenant(app, 'bobs'), await createTenant(app, 'carols')]
  const env = { ...testEnvironment(app.database), ...environment, DATABASE_OWNER_URL: app.database.owner }
  const start = (name: string, words: string[], more = {}) =>
    run(process.execPath, [...process.execArgv, commandFile(name), ...words], {
      cwd: elsewhere,
      env: { PATH: process.env.PATH, ...env, ...more } as NodeJS.ProcessEnv
    }).catch((err) => err)
  const files = async (tenant: Tenant): Promise<string[]> =>
    (await tenant.send('/api/v1/files'))
      .json()
      .data.map(({ name }: { name: string }) => name)
      .sort()
  const content = async (id: string) => (await acme.send(`/api/v1/files/${id}/content`)).body
  const store = await openStore(readBackupConfig(env))
  const objectsOf = async (tenant: Tenant) =>
    Object.entries(await readObjects(store)).filter(([key]) => key.startsWith(tenant.id))

  // what is there at the time to restore to
  const [kept, lost] = [await createFile(acme, 'kept', 'kept.txt'), await createFile(acme, 'lost', 'lost.txt')]
  await createFile(rival, 'rival', 'rival.txt')
  const logo = {
    method: 'PUT',
    url: '/api/v1/tenant/logo',
    ...form([{ name: 'file', filename: 'l.png', type: 'image/png', content: onePixel }])
  } as const
  t.equal((await acme.send(logo)).statusCode, 200)
  await addMember(app, acme, bob.owner.id, 'admin')
  const invited = (await acme.send(post('/invitations', { email: 'guest@acme.example', role: 'viewer' }))).json()
  await seal(app)
  const then = await copyDatabase(t, app.database)
  await sweep(app)
  t.match(await start('files', ['backup']), { stdout: /^4 objects copied/ })

  // and what happens afterwards
  await acme.send({ method: 'DELETE', url: `/api/v1/files/${lost.id}` })
  await acme.send({ method: 'DELETE', url: '/api/v1/tenant/logo' })
  await allRows(app.database, "update files set expires_at = now() - interval '1 hour' where status = 'deleted'")
  await sweep(app)
  t.notOk(
    (await objectsOf(acme)).some(([key]) => key.endsWith(lost.id)),
    'its bytes are gone'
  )
  await createFile(acme, 'later', 'later.txt')
  await acme.send({ method: 'DELETE', url: `/api/v1/users/${bob.owner.id}` })
  await allRows(app.database, 'delete from memberships where tenant_id = $1 and user_id = $2', [acme.id, bob.owner.id])
  await addMember(app, acme, carol.owner.id, 'member')
  await acme.send({ method: 'DELETE', url: `/api/v1/invitations/${invited.id}` })
  await allRows(app.database, "update tenants set name = 'Defaced' where id = $1", [acme.id])
  await createFile(rival, 'later', 'later.txt')
  const neighbour = { rows: await rowsOf(app, rival), objects: await objectsOf(rival) }
  const events = await allRows(app.database, 'select count(*)::int as n from audit_events where tenant_id = $1', [
    acme.id
  ])

  await t.test('with its files, members, invitations and settings, by one command', async (t) => {
    const { stdout, stderr, code } = await start('tenant', ['rewind', 'acme'], {
      RESTORE_DATABASE_URL: then.owner,
      FILE_RESTORE_FOR: '3600'
    })
    t.match(stdout, /members: 1 added, 0 changed, 1 removed, 0 without an account/)
    t.match(stdout, /files: 2 restored, 1 of later set aside as deleted; 2 objects copied back/)
    t.match(stderr, /acme is as it was at 20/)
    t.equal(code, undefined, stderr)
    t.strictSame(await files(acme), ['kept.txt', 'lost.txt'])
    t.equal(await content(kept.id), 'kept')
    t.equal(await content(lost.id), 'lost')
    const newest = { url: '/api/v1/tenant', headers: { 'cache-control': 'no-cache' } }
    const tenant = (await acme.send(newest)).json()
    t.match(tenant, { name: 'The acme agency', slug: 'acme', status: 'active' })
    t.equal((await acme.anonymous(new URL(tenant.logo_url, 'http://acme.localhost').pathname)).statusCode, 200)
    const people = await allRows(
      app.database,
      'select user_id, role from memberships where tenant_id = $1 order by joined_at',
      [acme.id]
    )
    t.strictSame(people, [
      { user_id: acme.owner.id, role: 'owner' },
      { user_id: bob.owner.id, role: 'admin' }
    ])
    const [invitation] = (await acme.send('/api/v1/invitations')).json().data
    t.match(invitation, { id: invited.id, email: 'guest@acme.example' })
  })

  await t.test('and its neighbours are what they were, to the row and the byte', async (t) => {
    t.strictSame(await rowsOf(app, rival), neighbour.rows)
    t.strictSame(await objectsOf(rival), neighbour.objects)
  })

  await t.test('the audit log goes on and says so, and counts are right', async (t) => {
    const [event] = (await acme.send('/api/v1/audit-events')).json().data
    t.match(event, { action: 'tenant.restored', actor_id: null, target_id: acme.id, detail: { by: 'operator' } })
    const [now] = await allRows(app.database, 'select count(*)::int as n from audit_events where tenant_id = $1', [
      acme.id
    ])
    t.equal(now.n, events[0].n + 1, 'nothing of it was taken away')
    await seal(app)
    t.match((await acme.send('/api/v1/audit-events/verify')).json(), { status: 'intact' })
    t.strictSame(await allRows(app.database, 'select * from miscounted_storage()'), [])
  })

  await t.test('also after it was purged, unless somebody has its address', async (t) => {
    await acme.send({ method: 'DELETE', url: '/api/v1/tenant', payload: { slug: 'acme' } })
    await allRows(app.database, "update tenants set purge_at = now() - interval '1 hour' where id = $1", [acme.id])
    await eventually(async () => {
      await app.housekeeping.run()
      await allRows(app.database, 'update files set expires_at = now() where tenant_id = $1', [acme.id])
      await sweep(app)
      return (await allRows(app.database, 'select from tenants where id = $1', [acme.id])).length === 0
    })
    t.strictSame(
      (await objectsOf(acme)).filter(([key]) => key.includes('/files/')),
      []
    )
    const other = await createTenant(app, 'acme', 'another@example.com')
    const before = await rowsOf(app, other)
    const refused = await start('tenant', ['rewind', 'acme'], { RESTORE_DATABASE_URL: then.owner })
    t.match(refused, { code: 1, stderr: /nothing is restored: another agency has its address/ })
    t.strictSame(await rowsOf(app, other), before)
    await allRows(app.database, "update tenants set slug = 'acme-two' where id = $1", [other.id])
    await setStatus(app, other, 'active')
    const done = await start('tenant', ['rewind', 'acme'], { RESTORE_DATABASE_URL: then.owner })
    t.match(done.stdout, /members: 2 added/)
    t.equal(done.code, undefined)
    // a process remembers for a second whose the address was, and for half of one that the agency was suspended
    await app.revocations.readNow()
    await eventually(async () => (await acme.signIn()).access_token !== undefined)
    const { access_token } = await acme.signIn()
    const reply = await acme.with(access_token, `/api/v1/files/${kept.id}/content`)
    t.strictSame([reply.statusCode, reply.body], [200, 'kept'], 'its people sign in as ever, and have their files')
  })

  await t.test('not without what it needs', async (t) => {
    t.match(await start('tenant', ['rewind', 'acme']), { code: 78, stderr: /RESTORE_DATABASE_URL: must be set/ })
    t.match(await start('tenant', ['rewind', 'acme'], { RESTORE_DATABASE_URL: app.database.owner }), {
      code: 78,
      stderr: /is the database of the product itself/
    })
    const nowhere = await start('tenant', ['rewind', 'nowhere'], { RESTORE_DATABASE_URL: then.owner })
    t.match(nowhere, { code: 1, stderr: /the copy of the database has no agency called nowhere/ })
  })
})
