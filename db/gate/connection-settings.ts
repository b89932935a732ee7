/** PostgreSQL's own limits, in milliseconds. */
export type Timeouts = { statement_timeout: number; lock_timeout: number; idle_in_transaction_session_timeout?: number }

/**
 * How PostgreSQL reads what the product writes, and writes what it reads. A role, a database and a server may have other
 * defaults, so nothing is left to them. What only makes the server slower or more talkative is its operator's.
 */
const fixedSettings = {
  client_encoding: 'UTF8',
  DateStyle: 'ISO, MDY',
  TimeZone: 'UTC',
  IntervalStyle: 'postgres',
  bytea_output: 'hex',
  extra_float_digits: '1',
  standard_conforming_strings: 'on',
  backslash_quote: 'safe_encoding',
  quote_all_identifiers: 'off',
  array_nulls: 'on',
  transform_null_equals: 'off',
  // nobody's temporary table may stand in front of a table
  search_path: 'public, pg_temp',
  row_security: 'on',
  exit_on_error: 'off',
  'plpgsql.extra_errors': 'none'
}

/**
 * These hold from the next transaction on, so they can't be set inside of one. `default_transaction_read_only` is none of ours:
 * by it operators, and hosts whose disks are full, keep a database from being written, and we answer 503.
 */
const sessionOnlySettings = {
  default_transaction_isolation: 'read committed',
  default_transaction_deferrable: 'off',
  idle_session_timeout: '0'
}

/**
 * How pg reaches a database, with all settings as start-up parameters: they come after, and win over, the defaults of role and
 * database and what the URL itself gives as `options`.
 *
 * Without `timeOuts` it carries no settings. That is for a pooler in transaction mode, which refuses them and keeps nothing: there
 * they go along with each transaction (`localSettings`).
 */
export function connectionTo(
  databaseUrl: string,
  timeouts: Timeouts | undefined
): { connectionString: string; options?: string } {
  const url = new URL(databaseUrl)
  // pg would take the URL's instead of ours
  const given = url.searchParams.get('options') ?? ''
  url.searchParams.delete('options')
  const ours = timeouts ? startUpOptions(timeouts) : ''
  const options = `${given} ${ours}`.trim()
  return { connectionString: url.href, ...(options !== '' && { options }) }
}

/** All settings, as an argument of the server for each. */
export function startUpOptions(timeouts: Timeouts): string {
  return Object.entries({ ...fixedSettings, ...sessionOnlySettings, ...timeouts })
    .map(([name, value]) => `-c ${name}=${String(value).replaceAll(' ', '\\ ')}`)
    .join(' ')
}

const rows = Object.entries(fixedSettings).map(([name, value]) => `('${name}', '${value}')`)

/**
 * The same as a condition of a select that is never true, for the transaction that it stands in. It looks before it sets, and
 * names each function once: that takes a quarter of the time of a call for each.
 */
export const localSettings = `exists (select from (values ${rows.join(', ')}) as s (name, value)
  where current_setting(name, true) is distinct from value and set_config(name, value, true) is null)`

/** Before anything else of a transaction that writes: the default of a pooler's connection may be another. */
export const transactionIsolation = "set transaction_isolation to 'read committed'"
