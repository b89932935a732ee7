import { execFile } from 'node:child_process'
import { mkdtempSync, rmSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import t from 'tap'
import { readRoles, startEmbedded } from '../db/embedded.ts'
import { refuseUnsafeRole } from '../db/gate/role-check.ts'
import { migrate } from '../db/migrate.ts'
import { withClient } from './databases.ts'
import { root } from './harness.ts'
import { findProgram } from './parts.ts'

/*
 * db/roles.sql, run by an administrator who is no superuser, as on a managed PostgreSQL.
 */

const psql = findProgram('psql')

const dir = mkdtempSync(join(tmpdir(), 'aggios-roles-'))
const server = await startEmbedded(dir, { durable: false })
t.teardown(async () => {
  await server.stop()
  rmSync(dir, { recursive: true, force: true })
})
const superuser = server.url('postgres', 'postgres')

/** Creates a role with these attributes and a database of it, in a cluster without the product's roles. Returns the URL. */
async function createOwned(attributes: string): Promise<string> {
  await withClient(superuser, async (admin) => {
    for (const name of ['aggios', 'owned']) await admin.query(`drop database if exists ${name} with (force)`)
    const ours = ['aggios_app_b', 'aggios_app', 'aggios_owner', 'aggios_directory', 'aggios_backup']
    for (const role of [...ours, 'steward', 'stranger']) await admin.query(`drop role if exists ${role}`)
    await admin.query(`create role steward login password 'steward' ${attributes}`)
    await admin.query("create role stranger login password 'stranger'")
    await admin.query('create database owned owner steward')
  })
  return as('steward')
}

function as(role: string): string {
  const url = new URL(superuser)
  Object.assign(url, { username: role, password: role, pathname: '/owned' })
  return url.href
}

const everybodysRights = (url: string) =>
  withClient(url, async (client) => {
    const { rows } = await client.query(`select privilege_type from pg_database,
      aclexplode(coalesce(datacl, acldefault('d', datdba))) where datname = current_database() and grantee = 0`)
    return rows.map((row) => row.privilege_type as string).sort()
  })

const byPsql = (url: string, file = join(root, 'db', 'roles.sql')) =>
  new Promise<{ code: number; stderr: string }>((resolve) =>
    execFile(psql.path, ['--no-psqlrc', '--quiet', '--file', file, url], (err, _stdout, stderr) =>
      resolve({ code: err ? Number(err.code) : 0, stderr })
    )
  )

t.test('a role with CREATEROLE and CREATEDB that owns the database shuts everybody else out', async (t) => {
  const url = await createOwned('createrole createdb')
  t.strictSame(await everybodysRights(url), ['CONNECT', 'TEMPORARY'], 'as PostgreSQL makes it')
  for (const round of ['once', 'and again']) {
    await withClient(url, (client) => client.query(readRoles()))
    t.strictSame(await everybodysRights(url), [], round)
    await t.rejects(
      withClient(as('stranger'), async () => {}),
      { code: '42501', message: /permission denied for database/ }
    )
  }
  await withClient(superuser, async (admin) => {
    for (const role of ['aggios_owner', 'aggios_app', 'aggios_app_b']) {
      await admin.query(`alter role ${role} login password '${role}'`)
    }
  })
  t.ok((await migrate(as('aggios_owner'))).length > 0, 'the owner migrates')
  const found = await withClient(as('aggios_app'), (client) =>
    client.query("select current_user, has_database_privilege(current_database(), 'temp') as temp")
  )
  t.strictSame(found.rows, [{ current_user: 'aggios_app', temp: false }])
  await withClient(as('aggios_app_b'), async (client) => {
    await refuseUnsafeRole(client, 'DATABASE_URL')
    await client.query('select id from users')
    for (const role of ['aggios_app', 'aggios_owner', 'aggios_directory']) {
      await t.rejects(client.query(`set role ${role}`), { code: '42501' }, `the other login can't become ${role}`)
    }
  })
  const exempt = await withClient(url, (client) => client.query("select from pg_roles where rolname = 'aggios_backup'"))
  t.equal(exempt.rowCount, 0, 'only a superuser makes a role that skips row security')
})

t.test('who can not do it is told why, and nothing is left behind', async (t) => {
  for (const [attributes, reason] of [
    ['createrole', /steward can't give the database owned to aggios_owner/],
    ['createdb', /permission denied to create role/]
  ] as const) {
    const url = await createOwned(attributes)
    await t.rejects(
      withClient(url, (client) => client.query(readRoles())),
      { code: '42501', message: reason }
    )
    const { rows } = await withClient(url, (client) =>
      client.query("select rolname from pg_roles where rolname like 'aggios%'")
    )
    t.strictSame(rows, [])
  }
})

t.test('psql ends with what it came to', { skip: psql.skip }, async (t) => {
  const failed = await byPsql(await createOwned('createrole'))
  t.equal(failed.code, 3)
  t.match(failed.stderr, /ERROR: .*steward can't give.*\n(.*\n)*HINT: .*superuser/)
  const url = await createOwned('createrole createdb')
  const done = await byPsql(url)
  t.equal(done.code, 0, done.stderr)
  t.notMatch(done.stderr, /WARNING|ERROR/)
  t.match(done.stderr, /NOTICE: .*aggios_backup.*steward is no superuser/)
  t.strictSame(await everybodysRights(url), [])
})
