import { Kysely } from 'kysely'
import pg from 'pg'
import { findEmbeddedUrl } from '../../db/embedded.ts'
import { connectionTo } from '../../db/gate/connection-settings.ts'
import { createTenantGate, type TenantGate } from '../../db/gate/gate.ts'
import { PoolDialect } from '../../db/gate/pool-dialect.ts'
import type { TenantTables } from '../../db/tables.ts'
import { type Config, readConfig } from '../config/config.ts'
import { readEnvironment } from '../config/env-file.ts'
import { InvalidConfiguration } from '../config/invalid-configuration.ts'
import { describe } from '../error-text.ts'

/** For statements of the directory, which need no tenant. */
export const nobody = { tenant_id: null, user_id: null, request: '' }

const timeOuts = { statement_timeout: 10_000, lock_timeout: 5000 }

/** Says a line on stderr and ends with one of the codes of sysexits.h. */
export function end(code: number, line: string): never {
  process.stderr.write(`${line}\n`)
  process.exit(code)
}

/**
 * Runs an operator's command with the server's own settings, and finds its embedded PostgreSQL while it runs. Ends the process
 * with the line that `work` resolves to, or with its refusal.
 */
export async function operate(work: (gate: TenantGate, config: Config) => Promise<string>): Promise<never> {
  const config = readSettings()
  const url = config.databaseUrl ?? findEmbeddedUrl(config.dataDir)
  if (!url) end(69, 'there is no DATABASE_URL, and no server runs with its own PostgreSQL here')
  // one act and no hurry: nothing is prepared and every setting carried, so it goes by way of a pooler too
  const pool = new pg.Pool({ ...connectionTo(url, undefined), max: 1 })
  // one that is lost while nobody uses it is replaced by the next that is needed
  pool.on('error', () => {})
  const db = new Kysely<TenantTables>({ dialect: new PoolDialect({ pool }) })
  const gate = createTenantGate(db, pool, undefined, { all: timeOuts, keyed: timeOuts })
  try {
    const said = await work(gate, config)
    await pool.end()
    return end(0, said)
  } catch (err) {
    return end(1, err instanceof Refusal ? err.message : `failed: ${describe(err)}`)
  }
}

/** Thrown by an operator's command that can't do what it was asked. */
export class Refusal extends Error {}

/** The server's own settings. Ends the process when they can't be used. */
export function readSettings(): Config {
  try {
    return readConfig(readEnvironment())
  } catch (err) {
    if (err instanceof InvalidConfiguration) end(78, err.message)
    throw err
  }
}
