import { Kysely } from 'kysely'
import pg from 'pg'
import { findEmbeddedUrl } from '../../db/embedded.ts'
import { connectionTo, type Timeouts } from '../../db/gate/connection-settings.ts'
import { classifyFailure } from '../../db/gate/failures.ts'
import { createTenantGate, type TenantGate } from '../../db/gate/gate.ts'
import { systemScope } from '../../db/gate/gate-query.ts'
import { PoolDialect } from '../../db/gate/pool-dialect.ts'
import type { TenantTables } from '../../db/gate/tables.ts'
import { findTenant } from '../../db/queries/directory.ts'
import { type Config, readConfig } from '../config/config.ts'
import { readEnvironment } from '../config/env-file.ts'
import type { Environment } from '../config/environment.ts'
import { InvalidConfiguration } from '../config/invalid-configuration.ts'
import { describe } from '../error-text.ts'
import { normalizeSlug } from '../tenancy/slugs.ts'
import { call } from './command.ts'

const timeouts = { statement_timeout: 10_000, lock_timeout: 5000 }

/**
 * What a command has found or done. A text alone is printed on stderr. With `data` it is a list or a record, and the text is
 * printed on stdout. With `--json` the data are printed, or what was done.
 */
export type Result = string | { text: string; data: unknown; onStderr?: true }

const lines: string[] = []

/** Prints one line of a long list while the work goes on. */
export function say(line: string): void {
  if (call.json) lines.push(line)
  else process.stdout.write(`${line}\n`)
}

/** Prints why a command failed, or that it is done, and exits with a code of sysexits.h. */
export function end(code: number, line: string): never {
  return finish(code, line)
}

/** Prints what a command has found or done, and exits. */
export function finish(code: number, result: Result): never {
  if (call.json) {
    const said = lines.length > 0 ? { lines } : {}
    const json = typeof result === 'string' ? { ...said, [code === 0 ? 'done' : 'error']: result } : result.data
    process.stdout.write(`${JSON.stringify(json, null, 2)}\n`)
  } else if (typeof result === 'string') process.stderr.write(`${result}\n`)
  else process[result.onStderr ? 'stderr' : 'stdout'].write(`${result.text}\n`)
  process.exit(code)
}

/**
 * Runs an operator's command with the settings of the server. Without DATABASE_URL it uses the embedded PostgreSQL of a
 * running server. Prints the line that `work` resolves to, or the message of its Refusal, and exits the process.
 */
export function operate(work: (gate: TenantGate, config: Config) => Promise<Result>): Promise<never> {
  return operateOn(readSettings(), work)
}

/** Like `operate`, with settings that are already read. */
export async function operateOn<Settings extends Pick<Config, 'databaseUrl' | 'dataDir'>>(
  config: Settings,
  work: (gate: TenantGate, config: Settings) => Promise<Result>
): Promise<never> {
  const url = requireUrl(config)
  const { gate, pool } = openGate(url, timeouts)
  try {
    const result = await work(gate, config)
    await pool.end()
    return finish(0, result)
  } catch (err) {
    return err instanceof Refusal ? end(1, err.message) : endFailed(err)
  }
}

/** Ends a command that has failed: with 69 when it did not reach the database, so that a script can try again. */
export function endFailed(err: unknown): never {
  const causes = err instanceof AggregateError ? err.errors : [err]
  if (causes.some((each) => classifyFailure(each) === 'connection'))
    return end(69, `the database can not be reached: ${describe(causes[0])}; start it, or correct DATABASE_URL`)
  return end(1, `failed: ${describe(err)}`)
}

/** The database of a command: that of the settings, or the embedded one of a running server. Exits the process without one. */
export function requireUrl({ databaseUrl, dataDir }: Pick<Config, 'databaseUrl' | 'dataDir'>): string {
  const url = databaseUrl ?? findEmbeddedUrl(dataDir)
  return url ?? end(69, 'there is no DATABASE_URL, and no server runs with its own PostgreSQL here')
}

/**
 * Opens the gate for a command, on one connection. It prepares no statements and sets the timeouts in each transaction,
 * so that it works through a pooler too. The caller ends the pool.
 */
export function openGate(url: string, limits: Timeouts): { gate: TenantGate; pool: pg.Pool } {
  const pool = new pg.Pool({ ...connectionTo(url, undefined), max: 1 })
  // the pool replaces an idle connection that is lost
  pool.on('error', () => {})
  const db = new Kysely<TenantTables>({ dialect: new PoolDialect({ pool }) })
  return { pool, gate: createTenantGate(db, pool, undefined, { all: limits, keyed: limits }) }
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

/** Finds the agency that a command was called with. */
export async function requireTenant(gate: TenantGate, given: string) {
  const slug = normalizeSlug(given)
  const [tenant] = await gate.query(systemScope, findTenant, { slug })
  if (!tenant) throw new Refusal(`there is no agency called ${slug}`)
  return tenant
}

/** The scope of an operator who acts on an agency, as nobody of its people. */
export const tenantScope = (tenant_id: string) => ({ tenant_id, user_id: null, request: '' })

/** Says on a terminal how far long work is. */
export function progress(line: string): void {
  if (process.stderr.isTTY) process.stderr.write(`\r\u001b[K${line} \u2026`)
}

/** A text of a client, without characters that a terminal would act on. */
export function printable(text: string | null): string {
  return (text ?? '').replaceAll(/[^\x20-\x7e]/g, '?')
}
