import pg from 'pg'
import { connectionTo } from '../../../db/gate/connection-settings.ts'
import { refuseUnsafeRole } from '../../../db/gate/role-check.ts'
import { isLoopback } from '../../config/production.ts'
import { askOne, CannotLook, type Check, type Examination, medianMs, openDatabase, reasonOf } from './examination.ts'
import { findHoles } from './known-holes.ts'

/*
 * The database server, its clock, its connections and its replica.
 */

export const databaseChecks: readonly Check[] = [
  { name: 'database', run: checkReachable },
  { name: 'version of the database', run: checkVersion },
  { name: 'latency of the database', run: checkLatency },
  { name: 'encryption of the database', run: checkEncrypted },
  { name: 'durability', run: checkDurability },
  { name: 'connections', run: checkConnections },
  { name: 'clock of the database', run: checkClock },
  { name: 'replica', run: checkReplica }
]

async function checkReachable(exam: Examination): Promise<void> {
  let database: ReturnType<Examination['database']>
  try {
    database = exam.database()
  } catch {
    return exam.found(
      'database_unreachable',
      'there is no DATABASE_URL, and no server runs with its own PostgreSQL here'
    )
  }
  await database.connect().catch((err) => exam.found('database_unreachable', reasonOf(err)))
}

async function checkVersion(exam: Examination): Promise<void> {
  const { version, number } = await askOne<{ version: string; number: number }>(
    exam,
    "select current_setting('server_version') as version, current_setting('server_version_num')::int as number"
  )
  // without the name of the distribution
  const plain = version.split(' ')[0] as string
  exam.learned('database', { version: plain })
  if (number < 160_000) exam.found('database_unsupported', `PostgreSQL ${plain}`)
  const { open, unknown } = findHoles(exam.holes, 'PostgreSQL', plain)
  if (open) exam.found('database_outdated', open)
  if (unknown) exam.skipped('version of the database', unknown)
}

async function checkLatency(exam: Examination): Promise<void> {
  const { connect } = exam.database()
  await connect()
  // a statement and the transaction around it
  const ms = (await medianMs(() => exam.database().ask('select 1'))) / 4
  const latency = Math.round(ms * 10) / 10
  exam.learned('database', { latency_ms: latency })
  if (ms > exam.limits.slowDatabaseMs) exam.found('database_slow', `a round trip takes ${latency} ms`)
}

async function checkEncrypted(exam: Examination): Promise<void> {
  const { ssl, address } = await askOne<{ ssl: boolean; address: string | null }>(
    exam,
    `select coalesce((select s.ssl from pg_stat_ssl s where s.pid = pg_backend_pid()), false) as ssl,
      host(inet_server_addr()) as address`
  )
  // no address: a Unix socket
  if (!ssl && address !== null && !isLoopback(address)) {
    exam.found('database_not_encrypted', `the connection to ${address} has no TLS`)
  }
}

type Settings = Record<'fsync' | 'pages' | 'commit' | 'read_only' | 'checksums' | 'passwords', string> & {
  standby: boolean
}

async function checkDurability(exam: Examination): Promise<void> {
  const settings = await askOne<Settings>(
    exam,
    `select current_setting('fsync') as fsync, current_setting('full_page_writes') as pages,
      current_setting('synchronous_commit') as commit, current_setting('default_transaction_read_only') as read_only,
      current_setting('data_checksums') as checksums, current_setting('password_encryption') as passwords,
      pg_is_in_recovery() as standby`
  )
  const { fsync, pages, commit } = settings
  const off = Object.entries({ fsync, full_page_writes: pages, synchronous_commit: commit })
    .filter(([, value]) => value === 'off')
    .map(([name]) => name)
  if (off.length > 0) exam.found('database_not_durable', `${off.join(', ')}: off`)
  if (settings.standby) exam.found('database_read_only', 'DATABASE_URL leads to a standby')
  else if (settings.read_only === 'on') exam.found('database_read_only', 'default_transaction_read_only is on')
  if (settings.checksums === 'off') exam.found('database_checksums_off', 'data_checksums is off')
  if (settings.passwords === 'md5') exam.found('passwords_stored_as_md5', 'password_encryption is md5')
}

const pipelined = 2

async function checkConnections(exam: Examination): Promise<void> {
  const { webConcurrency, databasePool, databasePooler } = exam.config
  if (databasePooler === 'transaction') throw new CannotLook('a pooler stands in front, and only it knows its limits')
  const { most } = await askOne<{ most: number }>(
    exam,
    `select least(
        current_setting('max_connections')::int - current_setting('superuser_reserved_connections')::int
          - current_setting('reserved_connections')::int,
        nullif((select rolconnlimit from pg_roles where rolname = current_user), -1),
        nullif((select datconnlimit from pg_database where datname = current_database()), -1)) as most`
  )
  const wanted = webConcurrency * (databasePool + pipelined)
  if (wanted > most) {
    exam.found(
      'too_few_connections',
      `${webConcurrency} processes may open ${wanted} connections, and PostgreSQL accepts ${most}`
    )
  }
}

async function checkClock(exam: Examination): Promise<void> {
  const before = exam.now()
  const { ms } = await askOne<{ ms: number }>(
    exam,
    'select (extract(epoch from clock_timestamp()) * 1000)::float8 as ms'
  )
  const after = exam.now()
  reportSkew(exam, 'the database', ms - (before + after) / 2, (after - before) / 2)
}

/** Reports a clock that differs by more than the error of the measurement explains. */
export function reportSkew(exam: Examination, whose: string, skewMs: number, errorMs: number): void {
  if (Math.abs(skewMs) - errorMs <= exam.limits.clockSkewMs) return
  const seconds = Math.round(Math.abs(skewMs) / 1000)
  exam.found(
    'clock_skew',
    `the clock of ${whose} is ${seconds} s ${skewMs > 0 ? 'ahead of' : 'behind'} that of this machine`
  )
}

async function checkReplica(exam: Examination): Promise<void> {
  const url = exam.config.databaseReplicaUrl
  if (url === undefined) return
  const replica = openDatabase(url)
  try {
    await replica.connect()
    await refuseUnsafe(url, 'DATABASE_REPLICA_URL').catch((err) => exam.found('role_unsafe', reasonOf(err)))
    const [first] = await replica.ask<{ standby: boolean }>('select pg_is_in_recovery() as standby')
    if (first?.standby === false) return exam.found('replica_is_primary', 'DATABASE_REPLICA_URL leads to a primary')
    await checkLag(exam, replica)
  } catch (err) {
    exam.found('replica_unreachable', reasonOf(err))
  } finally {
    await replica.close()
  }
}

/** Waits until the replica has what the primary has now. */
async function checkLag(exam: Examination, replica: ReturnType<typeof openDatabase>): Promise<void> {
  const { lsn } = await askOne<{ lsn: string }>(exam, 'select pg_current_wal_lsn()::text as lsn')
  const deadline = performance.now() + exam.limits.replicaMs
  for (;;) {
    const [row] = await replica.ask<{ bytes: number }>(
      'select pg_wal_lsn_diff($1::pg_lsn, pg_last_wal_replay_lsn())::float8 as bytes',
      [lsn]
    )
    if (row && row.bytes <= 0) return
    if (performance.now() > deadline) return exam.found('replica_behind', `it lacks ${row?.bytes} bytes of the log`)
    await new Promise((resolve) => setTimeout(resolve, 200))
  }
}

/** Rejects for a role that could skip row security, as a server does at its start. */
export async function refuseUnsafe(url: string, setting: string): Promise<void> {
  const client = new pg.Client({ ...connectionTo(url, undefined), connectionTimeoutMillis: 3000 })
  client.on('error', () => {})
  await client.connect()
  try {
    await refuseUnsafeRole(client, setting)
  } finally {
    await client.end()
  }
}
