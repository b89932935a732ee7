import { execFile } from 'node:child_process'
import { existsSync, promises as fs, readdirSync, readFileSync, writeFileSync } from 'node:fs'
import path from 'node:path'
import { Kysely, PostgresDialect, sql } from 'kysely'
import { FileMigrationProvider, Migrator } from 'kysely/migration'
import pg from 'pg'
import t, { type Test } from 'tap'
import { createDatabase, type DatabaseUrls, dropDatabase } from './databases.ts'
import {
  allRows,
  commandFile,
  createTestDatabase,
  elsewhere,
  eventually,
  root,
  startServer,
  temporaryFolder,
  testEnvironment
} from './harness.ts'
import { registerAgency } from './oracle.ts'
import { freePort } from './ports.ts'

// rehearsal: processes of an older version on a newer schema

/*
 * A process of an older version on a newer schema, and which processes know the owner's credentials.
 */

/** Applies all migrations, and one of a future version. */
async function migrateToNext(urls: DatabaseUrls, statement: string): Promise<void> {
  const files = new FileMigrationProvider({ fs, path, migrationFolder: path.join(root, 'db', 'migrations') })
  const pool = new pg.Pool({ connectionString: urls.owner, max: 1 })
  const db = new Kysely<unknown>({ dialect: new PostgresDialect({ pool }) })
  const next = { up: async (db: Kysely<unknown>) => void (await sql.raw(statement).execute(db)) }
  const provider = { getMigrations: async () => ({ ...(await files.getMigrations()), '9999_next': next }) }
  const { error } = await new Migrator({ db, provider }).migrateToLatest()
  await db.destroy()
  if (error) throw error
}

/** Two ways in which a process that serves meets its database. */
const ways = (urls: DatabaseUrls) => ({
  'with DATABASE_OWNER_URL': testEnvironment(urls, { DATABASE_OWNER_URL: urls.owner, DATABASE_POOL: '3' }),
  'without DATABASE_OWNER_URL': testEnvironment(urls, { DATABASE_POOL: '3' })
})

t.test('an older version starts, ends and starts again on the schema of a newer one', async (t) => {
  const urls = await createTestDatabase(t)
  await migrateToNext(urls, 'create table next_things (id integer)')
  const each = Object.entries(ways(urls)).map(async ([way, env]) => {
    for (const start of ['first', 'second']) {
      const server = await startServer(t, env)
      const slug = `${start}-${way.split(' ', 1)}`
      t.equal((await registerAgency(server.url, slug)).status, 201, `${way}: serves after the ${start} start`)
      server.child.kill('SIGTERM')
      t.match(await server.exited, { code: 0 })
    }
  })
  await Promise.all(each)
  const applied = await allRows(urls, "select from kysely_migration where name = '9999_next'")
  t.equal(applied.length, 1, 'the newer step is still recorded')
})

t.test('a version that a newer step breaks refuses to start, and says why', async (t) => {
  const urls = await createTestDatabase(t)
  await migrateToNext(urls, "update schema_compatibility set required_step = '9999_next'")
  const each = Object.entries(ways(urls)).map(async ([way, env]) => {
    const server = await startServer(t, env, { ready: false })
    t.match(await server.exited, { code: 1 }, way)
    t.match(server.output(), /this version is too old for its database: .*9999_next is required/)
  })
  await Promise.all(each)
})

/** Runs `npm run migrate` with this environment. */
async function runMigrate(env: Record<string, string>, ...args: string[]) {
  return new Promise<{ code: number; stdout: string; stderr: string }>((resolve) => {
    const options = { cwd: elsewhere, env: { PATH: process.env.PATH, ...env } as NodeJS.ProcessEnv }
    execFile(process.execPath, [...process.execArgv, commandFile('migrate'), ...args], options, (err, stdout, stderr) =>
      resolve({ code: err ? Number(err.code) : 0, stdout, stderr })
    )
  })
}

async function createEmpty(t: Test): Promise<DatabaseUrls> {
  const name = `m_${process.pid}`
  const urls = await createDatabase(name, 'template1')
  t.teardown(() => dropDatabase(name))
  return urls
}

t.test('the schema is brought up to date by a job of its own', async (t) => {
  const urls = await createEmpty(t)
  const folder = temporaryFolder(t)

  const first = await runMigrate({ DATABASE_OWNER_URL: urls.owner })
  t.match(first, {
    code: 0,
    stdout: /^applied 0001_core\n[\s\S]*\nthe schema is up to date\naudit events are kept for ever\n$/
  })
  const file = path.join(folder, 'owner_url')
  writeFileSync(file, `${urls.owner}\n`)
  t.match(await runMigrate({ DATABASE_OWNER_URL_FILE: file }), { code: 0, stdout: 'the schema is up to date\n' })

  const server = await startServer(t, testEnvironment(urls, { DATABASE_POOL: '3' }))
  t.equal((await registerAgency(server.url, 'acme')).status, 201, 'who serves needs no owner credentials')
  server.child.kill('SIGTERM')
  await server.exited

  t.match(await runMigrate({}, '--help'), {
    code: 0,
    stdout: /^Usage: npm run migrate -- .*DATABASE_OWNER_URL.*Exit codes:/s
  })
  t.match(await runMigrate({}, '--wrong'), { code: 2, stderr: /^error: unknown option '--wrong'/ })
  t.match(await runMigrate({}), { code: 78, stderr: /DATABASE_OWNER_URL: must be set/ })
  const remote = { NODE_ENV: 'production', DATABASE_OWNER_URL: 'postgres://aggios_owner:secret@db.example/aggios' }
  t.match(await runMigrate(remote), { code: 78, stderr: /DATABASE_OWNER_URL: must ask for TLS/ })
  await allRows(urls, "insert into kysely_migration values ('9999_next', now()::text)")
  await allRows(urls, "update schema_compatibility set required_step = '9999_next'")
  t.match(await runMigrate({ DATABASE_OWNER_URL: urls.owner }), { code: 1, stderr: /too old for its database/ })
})

const hasProc = existsSync(`/proc/${process.pid}/environ`)

t.test(
  'no worker knows the credentials that the primary migrated with',
  { skip: !hasProc && 'no /proc' },
  async (t) => {
    const urls = await createTestDatabase(t)
    const folder = temporaryFolder(t)
    const metricsPort = await freePort()
    const server = await startServer(
      t,
      testEnvironment(urls, {
        DATABASE_OWNER_URL: urls.owner,
        DATABASE_POOL: '3',
        WEB_CONCURRENCY: '2',
        METRICS_PORT: String(metricsPort),
        NODE_OPTIONS: `--heapsnapshot-signal=SIGUSR2 --diagnostic-dir=${folder}`
      })
    )
    const health = await fetch(`http://127.0.0.1:${metricsPort}/health`)
    const { workers } = (await health.json()) as { workers: { pid: number }[] }
    const [{ pid }] = workers as [{ pid: number }]
    t.not(pid, server.child.pid)
    const owner = new URL(urls.owner).password
    t.notOk(readFileSync(`/proc/${pid}/environ`, 'utf8').includes(owner), 'not in the environment')

    process.kill(pid, 'SIGUSR2')
    let heap = ''
    await eventually(() => {
      const [name] = readdirSync(folder)
      heap = name === undefined ? '' : readFileSync(path.join(folder, name), 'utf8')
      return heap.trimEnd().endsWith(']}')
    }, 30_000)
    t.ok(heap.includes(new URL(urls.app).password), 'what it serves with is in its memory')
    t.notOk(heap.includes(owner), 'what it must not know is not')
  }
)
