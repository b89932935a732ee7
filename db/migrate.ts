import { promises as fs } from 'node:fs'
import path from 'node:path'
import { setTimeout as sleep } from 'node:timers/promises'
import { Kysely, PostgresAdapter, PostgresDialect, type PostgresDialectConfig, type RawBuilder, sql } from 'kysely'
import { FileMigrationProvider, type Migration, type MigrationResultSet, Migrator } from 'kysely/migration'
import pg from 'pg'
import { describe } from '../src/error-text.ts'
import { connectionTo } from './gate/connection-settings.ts'
import { connectWhenUp } from './gate/start-up.ts'
import type { SharedTables } from './gate/tables.ts'
import { buildIndexes, type DeclaredIndexes, type Declaring, declaredIndexes } from './index-builds.ts'
import { noTimeouts, withOwner } from './owner-connection.ts'

const lockId = '4611686018427387847'
const lockWaitMs = 60_000
/** Deadlock detected, and lock not available: a later attempt may succeed. */
const lockFailures = ['40P01', '55P03']
const mostAttempts = 5
const attemptPauseMs = 200
const migrationFolder = path.join(import.meta.dirname, 'migrations')
const files = new FileMigrationProvider({ fs, path, migrationFolder })

/** Bounds the wait for the migration lock. Kysely waits an hour; a process that waits that long should rather restart. */
class BoundedLockAdapter extends PostgresAdapter {
  readonly #onLocked: (db: Kysely<unknown>) => Promise<void>
  constructor(onLocked: (db: Kysely<unknown>) => Promise<void>) {
    super()
    this.#onLocked = onLocked
  }
  override async acquireMigrationLock(db: Kysely<unknown>): Promise<void> {
    await sql`select set_config('lock_timeout', ${String(lockWaitMs)}, false)`.execute(db)
    await sql`select pg_advisory_lock(${sql.lit(lockId)}::bigint)`.execute(db)
    await sql`select set_config('lock_timeout', '10000', false)`.execute(db)
    await this.#onLocked(db)
  }
  override async releaseMigrationLock(db: Kysely<unknown>): Promise<void> {
    await sql`select pg_advisory_unlock(${sql.lit(lockId)}::bigint)`.execute(db)
  }
}

class BoundedLockDialect extends PostgresDialect {
  readonly #onLocked: (db: Kysely<unknown>) => Promise<void>
  constructor(config: PostgresDialectConfig, onLocked: (db: Kysely<unknown>) => Promise<void>) {
    super(config)
    this.#onLocked = onLocked
  }
  override createAdapter(): PostgresAdapter {
    return new BoundedLockAdapter(this.#onLocked)
  }
}

/** The schema requires a newer program than this one. */
export class ProgramTooOld extends Error {}

/**
 * Applies the missing migrations as `aggios_owner`. Resolves to the names of the steps that this process applied.
 *
 * Each step is applied exactly once, however many processes start together: the others wait up to a minute for the lock, and
 * then find nothing to do. A step that fails is rolled back. A database that is just starting is waited for.
 *
 * Then the indexes are built that the steps declare, however long that takes, while other processes serve.
 *
 * Applied steps of a newer version are ignored, so that an older process can restart beside newer ones. Throws ProgramTooOld
 * when a newer step is declared incompatible with programs as old as this one.
 *
 * `ownerUrl` must lead to PostgreSQL directly: the lock belongs to a session, which a pooler in transaction mode does not keep.
 */
export async function migrate(ownerUrl: string, progress: (line: string) => void = () => {}): Promise<string[]> {
  await waitForServer(ownerUrl, progress)
  const pool = new pg.Pool({ ...connectionTo(ownerUrl, noTimeouts), max: 1, connectionTimeoutMillis: 5000 })
  // an idle connection that breaks is replaced by the next one that is needed
  pool.on('error', () => {})
  const applied: string[] = []
  // read under the lock: a newer process may have applied its steps while this one waited
  const readApplied = async (db: Kysely<unknown>) => {
    const { rows } = await sql<{ name: string }>`select name from kysely_migration`.execute(db)
    applied.push(...rows.map(({ name }) => name))
    await refuseOldProgram(db, sql`(select required_step from schema_compatibility)`)
  }
  const db = new Kysely<unknown>({ dialect: new BoundedLockDialect({ pool }, readApplied) })
  try {
    const { error, results } = await applySteps(() => createMigrator(db, applied).migrateToLatest(), progress)
    if (error) {
      if (error instanceof ProgramTooOld) throw error
      const failed = results?.find((result) => result.status === 'Error')?.migrationName
      throw new Error(failed ? `migration ${failed} failed` : 'migration failed', { cause: error })
    }
    const steps = await listSteps()
    // with a newer version's steps, its own run decides which indexes there are
    if (applied.every((name) => steps.includes(name))) await buildIndexes(ownerUrl, await readIndexes(), progress)
    return (results ?? []).map((result) => result.migrationName)
  } finally {
    await db.destroy()
  }
}

/** The indexes that the steps of this program declare. */
export async function readIndexes(): Promise<DeclaredIndexes> {
  return declaredIndexes((await files.getMigrations()) as Record<string, Declaring>)
}

/**
 * Sets for how many days audit events are kept, which only the owner may. 0 means for ever, and less than 28 is raised to 28;
 * undefined changes nothing. Resolves to the value now in force.
 */
export async function setAuditRetention(ownerUrl: string, days: number | undefined): Promise<number> {
  return withOwner(ownerUrl, async (client) => {
    const wanted = days === undefined || days === 0 ? days : Math.max(28, days)
    if (wanted !== undefined) {
      const text = 'update audit_retention set keep_days = $1, changed_at = now() where keep_days <> $1'
      await client.query(text, [wanted])
    }
    const { rows } = await client.query<{ keep_days: number }>('select keep_days from audit_retention')
    return rows[0]?.keep_days ?? 0
  })
}

/**
 * Applies the steps. All of them are one transaction, which is repeated when a server that runs meanwhile held a lock for
 * too long, or PostgreSQL ended a deadlock with it.
 */
async function applySteps(
  apply: () => Promise<MigrationResultSet>,
  progress: (line: string) => void
): Promise<MigrationResultSet> {
  for (let attempt = 1; ; attempt++) {
    const result = await apply()
    const { code } = (result.error ?? {}) as { code?: string }
    // without a failed step it is the lock of the migration that was not available
    const isStep = result.results?.some(({ status }) => status === 'Error')
    if (attempt === mostAttempts || !isStep || !lockFailures.includes(code ?? '')) return result
    progress('a lock was held by a server that runs: the migration is tried again')
    await sleep(attempt * attemptPauseMs)
  }
}

function createMigrator(db: Kysely<unknown>, applied: readonly string[]): Migrator {
  const provider = {
    /**
     * Adds an empty step for each applied one without a file (a newer version's), which Kysely would otherwise refuse.
     */
    async getMigrations(): Promise<Record<string, Migration>> {
      const unknown = applied.map((name) => [name, { up: async () => {} }] as const)
      return { ...Object.fromEntries(unknown), ...(await files.getMigrations()) }
    }
  }
  return new Migrator({ db, provider, allowUnorderedMigrations: true })
}

const listSteps = async () => (await fs.readdir(migrationFolder)).map((file) => path.parse(file).name).sort()

/**
 * Throws ProgramTooOld when the schema requires a step that this program lacks. `required` is SQL that the role of `db`
 * may run.
 */
async function refuseOldProgram(db: Kysely<unknown>, required: RawBuilder<unknown>): Promise<void> {
  const { rows: found } = await sql`select from pg_proc where proname = 'required_step'
    and pronamespace = 'public'::regnamespace`.execute(db)
  if (found.length === 0) return
  const { rows } = await sql<{ step: string }>`select ${required} as step`.execute(db)
  const newest = (await listSteps()).at(-1) as string
  const step = rows[0]?.step ?? ''
  if (step > newest) {
    throw new ProgramTooOld(
      `this version is too old for its database: it knows the schema up to ${newest}, and ${step} is required`
    )
  }
}

/**
 * Throws when the schema lacks a step that this program has, or requires a newer program. A schema with more steps than the
 * program knows is accepted: the steps of one version keep what the version before needs.
 */
export async function checkSchema(db: Kysely<SharedTables>): Promise<void> {
  const missing = await findMissingMigrations(db)
  if (missing.length > 0) {
    throw new Error(
      `the schema lacks ${missing.join(', ')}: run "npm run migrate", or set DATABASE_OWNER_URL on one start`
    )
  }
  await refuseOldProgram(db as unknown as Kysely<unknown>, sql`required_step()`)
}

/** The steps of this program that the database lacks. */
async function findMissingMigrations(db: Kysely<SharedTables>): Promise<string[]> {
  const wanted = await listSteps()
  try {
    const applied = await db.selectFrom('kysely_migration').select('name').execute()
    return wanted.filter((name) => !applied.some((row) => row.name === name))
  } catch (err) {
    const { code } = err as { code?: string }
    // no such table, or no right to read it: nothing has been migrated for this role
    if (code === '42P01' || code === '42501') return wanted
    throw err
  }
}

/** The steps of the database that this program does not know: those of a newer version. */
export async function findUnknownSteps(db: Kysely<SharedTables>): Promise<string[]> {
  const known = await listSteps()
  const applied = await db.selectFrom('kysely_migration').select('name').execute()
  return applied.map(({ name }) => name).filter((name) => !known.includes(name))
}

/** Waits until the server accepts connections; reports once that it waits. */
function waitForServer(url: string, progress: (line: string) => void): Promise<void> {
  return connectWhenUp(
    () => withOwner(url, async () => {}),
    (err) => progress(`waiting for the database: ${describe(err)}`)
  )
}
