/** Timeouts that PostgreSQL enforces itself, in milliseconds. */
export type Timeouts = { statement_timeout: number; lock_timeout: number; idle_in_transaction_session_timeout?: number }

/**
 * The settings that decide how PostgreSQL reads and writes values, and what a statement means. Role, database and server
 * may have other defaults, so every connection sets them. Settings that only concern speed or logging are left to the
 * operator.
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
  // pg_temp comes last, so that a temporary table can't shadow one of ours
  search_path: 'public, pg_temp',
  row_security: 'on',
  exit_on_error: 'off',
  'plpgsql.extra_errors': 'none'
}

/**
 * Settings that take effect with the next transaction, so they can't be set inside one. `default_transaction_read_only` is
 * left alone on purpose: operators, and hosts with a full disk, use it to stop writes, and the product then answers 503.
 */
const sessionOnlySettings = {
  default_transaction_isolation: 'read committed',
  default_transaction_deferrable: 'off',
  idle_session_timeout: '0'
}

/**
 * Builds pg's connection options, with all settings as start-up parameters. Start-up parameters override the defaults of
 * role and database; ours also come after, and override, the `options` in the URL.
 *
 * Without `timeouts` no settings are sent. This is for a pooler in transaction mode, which refuses start-up parameters and
 * keeps no session state. Behind such a pooler each transaction sets them again (`localSettings`).
 */
export function connectionTo(
  databaseUrl: string,
  timeouts: Timeouts | undefined
): { connectionString: string; options?: string } {
  const url = new URL(databaseUrl)
  // pg would prefer the options of the URL to ours
  const given = url.searchParams.get('options') ?? ''
  url.searchParams.delete('options')
  const ours = timeouts ? startUpOptions(timeouts) : ''
  const options = `${given} ${ours}`.trim()
  return { connectionString: url.href, ...(options !== '' && { options }) }
}

/** All settings as command-line arguments of the server, one `-c name=value` each. */
export function startUpOptions(timeouts: Timeouts): string {
  return Object.entries({ ...fixedSettings, ...sessionOnlySettings, ...timeouts })
    .map(([name, value]) => `-c ${name}=${String(value).replaceAll(' ', '\\ ')}`)
    .join(' ')
}

const rows = Object.entries(fixedSettings).map(([name, value]) => `('${name}', '${value}')`)

/**
 * A SQL condition that applies the fixed settings to the current transaction; it is never true, so its select returns no
 * row. It sets only what differs and names each function once, which takes a quarter of the time of one call per setting.
 */
export const localSettings = `exists (select from (values ${rows.join(', ')}) as s (name, value)
  where current_setting(name, true) is distinct from value and set_config(name, value, true) is null)`

/** The first statement of a transaction that writes behind a pooler, whose connections may have another default. */
export const transactionIsolation = "set transaction_isolation to 'read committed'"
