import { promises as fs } from 'node:fs'
import path from 'node:path'
import { setTimeout as sleep } from 'node:timers/promises'
import { Kysely, PostgresAdapter, PostgresDialect, sql } from 'kysely'
import { FileMigrationProvider, Migrator } from 'kysely/migration'
import pg from 'pg'
import { classifyFailure } from './failures.ts'
import type { SharedTables } from './tables.ts'

const lockId = '4611686018427387847'
const lockWaitMs = 60_000
const migrationFolder = path.join(import.meta.dirname, 'migrations')

/** Kysely waits an hour for its lock; a replica that waits that long is better restarted. */
class BoundedLockAdapter extends PostgresAdapter {
  override async acquireMigrationLock(db: Kysely<unknown>): Promise<void> {
    await sql`select set_config('lock_timeout', ${String(lockWaitMs)}, false)`.execute(db)
    await sql`select pg_advisory_lock(${sql.lit(lockId)}::bigint)`.execute(db)
    await sql`select set_config('lock_timeout', '10000', false)`.execute(db)
  }
  override async releaseMigrationLock(db: Kysely<unknown>): Promise<void> {
    await sql`select pg_advisory_unlock(${sql.lit(lockId)}::bigint)`.execute(db)
  }
}

class BoundedLockDialect extends PostgresDialect {
  override createAdapter(): PostgresAdapter {
    return new BoundedLockAdapter()
  }
}

/**
 * Brings the schema up to date as `aggios_owner`, exactly once however many processes start together: the others wait up
 * to a minute for the one that works, and then find nothing to do. A step that fails leaves nothing behind.
 *
 * Resolves to the names of the steps that this process applied. `ownerUrl` must lead to PostgreSQL directly: the lock
 * belongs to a connection, which a pooler in transaction mode does not keep.
 */
export async function migrate(ownerUrl: string): Promise<string[]> {
  await waitForServer(ownerUrl)
  const pool = new pg.Pool({ connectionString: ownerUrl, max: 1, connectionTimeoutMillis: 5000 })
  // one that is lost while nobody uses it is replaced by the next that is needed
  pool.on('error', () => {})
  const db = new Kysely<unknown>({ dialect: new BoundedLockDialect({ pool }) })
  try {
    const { error, results } = await createMigrator(db).migrateToLatest()
    if (error) {
      const failed = results?.find((result) => result.status === 'Error')?.migrationName
      throw new Error(failed ? `migration ${failed} failed` : 'migration failed', { cause: error })
    }
    return (results ?? []).map((result) => result.migrationName)
  } finally {
    await db.destroy()
  }
}

function createMigrator(db: Kysely<unknown>): Migrator {
  return new Migrator({ db, provider: new FileMigrationProvider({ fs, path, migrationFolder }) })
}

/** The steps that this program has and the database has not: what a server without the owner's credentials refuses on. */
export async function findMissingMigrations(db: Kysely<SharedTables>): Promise<string[]> {
  const wanted = (await fs.readdir(migrationFolder)).map((file) => path.parse(file).name).sort()
  try {
    const applied = await db.selectFrom('kysely_migration').select('name').execute()
    return wanted.filter((name) => !applied.some((row) => row.name === name))
  } catch (err) {
    const { code } = err as { code?: string }
    // no such table, or no right to it: nothing has been migrated for this role
    if (code === '42P01' || code === '42501') return wanted
    throw err
  }
}

/** A database and a server that start together meet sooner or later; what is misconfigured is said at once. */
async function waitForServer(url: string, patienceMs = 15_000): Promise<void> {
  const deadline = Date.now() + patienceMs
  for (;;) {
    const client = new pg.Client({ connectionString: url, connectionTimeoutMillis: 5000 })
    client.on('error', () => {})
    try {
      await client.connect()
      await client.end()
      return
    } catch (err) {
      await client.end().catch(() => {})
      if (classifyFailure(err) !== 'connection' || Date.now() > deadline) throw err
      await sleep(300)
    }
  }
}
