import { Kysely } from 'kysely'
import pg from 'pg'
import { findEmbeddedUrl } from '../../db/embedded.ts'
import { connectionTo } from '../../db/gate/connection-settings.ts'
import { createTenantGate, type TenantGate } from '../../db/gate/gate.ts'
import { PoolDialect } from '../../db/gate/pool-dialect.ts'
import type { TenantTables } from '../../db/gate/tables.ts'
import { type Config, readConfig } from '../config/config.ts'
import { readEnvironment } from '../config/env-file.ts'
import type { Environment } from '../config/environment.ts'
import { InvalidConfiguration } from '../config/invalid-configuration.ts'
import { describe } from '../error-text.ts'

/** For statements of the directory, which need no tenant. */

const timeouts = { statement_timeout: 10_000, lock_timeout: 5000 }

/** Prints a line on stderr and exits with a code of sysexits.h. */
export function end(code: number, line: string): never {
  process.stderr.write(`${line}\n`)
  process.exit(code)
}

/**
 * Runs an operator's command with the settings of the server. Without DATABASE_URL it uses the embedded PostgreSQL of a
 * running server. Prints the line that `work` resolves to, or the message of its Refusal, and exits the process.
 */
export function operate(work: (gate: TenantGate, config: Config) => Promise<string>): Promise<never> {
  return operateOn(readSettings(), work)
}

/** Like `operate`, with settings that are already read. */
export async function operateOn<Settings extends Pick<Config, 'databaseUrl' | 'dataDir'>>(
  config: Settings,
  work: (gate: TenantGate, config: Settings) => Promise<string>
): Promise<never> {
  const url = config.databaseUrl ?? findEmbeddedUrl(config.dataDir)
  if (!url) end(69, 'there is no DATABASE_URL, and no server runs with its own PostgreSQL here')
  // without prepared statements, and with the timeouts inline in each transaction, so that it works through a pooler
  // too
  const pool = new pg.Pool({ ...connectionTo(url, undefined), max: 1 })
  // the pool replaces an idle connection that is lost
  pool.on('error', () => {})
  const db = new Kysely<TenantTables>({ dialect: new PoolDialect({ pool }) })
  const gate = createTenantGate(db, pool, undefined, { all: timeouts, keyed: timeouts })
  try {
    const result = await work(gate, config)
    await pool.end()
    return end(0, result)
  } catch (err) {
    return end(1, err instanceof Refusal ? err.message : `failed: ${describe(err)}`)
  }
}

/** The reason why a command can't do its work. Its message is printed as it is. */
export class Refusal extends Error {}

/** Reads the settings of the server, or those of a reader of its own. Exits the process when they are not valid. */
export function readSettings(): Config
export function readSettings<T>(read: (env: Environment) => T): T
export function readSettings(read: (env: Environment) => unknown = readConfig): unknown {
  try {
    return read(readEnvironment())
  } catch (err) {
    if (err instanceof InvalidConfiguration) end(78, err.message)
    throw err
  }
}
