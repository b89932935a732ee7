import { type Archive, isArchiveStuck, readArchive } from '../../../db/queries/operations/archive.ts'
import { readUpkeep, type Upkeep } from '../../../db/queries/operations/upkeep.ts'
import { askOne, CannotLook, type Check, type Examination } from './examination.ts'

/*
 * Backups as far as they can be seen from the database, and what keeps tables small.
 */

export const upkeepChecks: readonly Check[] = [
  { name: 'archive', run: checkArchive },
  { name: 'dumps', run: checkDumps },
  { name: 'replication slots', run: checkSlots },
  { name: 'autovacuum', run: checkAutovacuum },
  { name: 'dead rows', run: checkDeadRows },
  { name: 'transaction ids', run: checkTransactionIds },
  { name: 'open transactions', run: checkTransactions },
  { name: 'waiting work', run: checkWaiting },
  { name: 'background jobs', run: checkJobs }
]

async function checkArchive(exam: Examination): Promise<void> {
  const archive = await askOne<Archive>(exam, readArchive.text)
  const { streamed, failed } = await askOne<{ streamed: boolean; failed: string | null }>(
    exam,
    `select last_failed_wal as failed,
      exists (select from pg_replication_slots s where s.active and s.slot_type = 'physical') as streamed
    from pg_stat_archiver`
  )
  if (!archive.archiving) {
    const seen = 'archive_mode is off'
    if (streamed) throw new CannotLook(`${seen}; a replication slot is in use, and whether for a backup can't be seen`)
    if (exam.config.nodeEnv !== 'production') throw new CannotLook(`${seen}, as it is on a laptop`)
    return exam.found(
      'no_backup_seen',
      `${seen}, and nothing streams the log; a backup of the disk can't be seen from here`
    )
  }
  const { archived_seconds: age, waiting_files: waiting } = archive
  exam.learned('backup', { archived_seconds_ago: Math.round(age) })
  if (archive.failing) exam.found('archiving_failing', `${failed} could not be archived`)
  else if (isArchiveStuck(archive, exam.limits.archiveLateSeconds)) {
    exam.found(
      'archiving_failing',
      `${waiting} full files of the log wait, and none was archived for ${Math.round(age / 60)} minutes`
    )
  } else if (age > exam.limits.archiveSeconds) {
    exam.found('archiving_late', `the last archived part of the log is ${(age / 3600).toFixed(1)} hours old`)
  }
}

async function checkDumps(exam: Examination): Promise<void> {
  const [role] = await exam.database().ask<{ exempt: boolean; hidden: string[] }>(
    `select r.rolbypassrls or r.rolsuper as exempt,
      array(select c.relname::text from pg_class c where c.relkind in ('r', 'p') and c.relnamespace = 'public'::regnamespace
        and not has_table_privilege(r.oid, c.oid, 'select') order by c.relname) as hidden
    from pg_roles r where r.rolname = 'aggios_backup'`
  )
  if (!role) {
    throw new CannotLook(
      'there is no role aggios_backup, and what another role dumps may lack the rows of agencies, because row security hides them'
    )
  }
  if (!role.exempt)
    exam.found('backup_role_blind', 'aggios_backup obeys row security, so its dumps have no rows of agencies')
  else if (role.hidden.length > 0)
    exam.found('backup_role_blind', `aggios_backup may not read ${role.hidden.slice(0, 5).join(', ')}`)
}

async function checkSlots(exam: Examination): Promise<void> {
  const rows = await exam.database().ask<{ name: string; bytes: number }>(
    `select slot_name::text as name, pg_wal_lsn_diff(pg_current_wal_lsn(), restart_lsn)::float8 as bytes
    from pg_replication_slots where not active and restart_lsn is not null and not pg_is_in_recovery()`
  )
  for (const { name, bytes } of rows) {
    exam.found('slot_unused', `${name} keeps ${(bytes / 2 ** 20).toFixed(0)} MiB of the log`)
  }
}

async function checkAutovacuum(exam: Examination): Promise<void> {
  const { off } = await askOne<{ off: string[] }>(
    exam,
    `select array(
        select s.name from pg_settings s where s.name in ('autovacuum', 'track_counts') and s.setting = 'off'
        union all
        select c.relname::text from pg_class c, pg_options_to_table(c.reloptions) o
        where c.relnamespace = 'public'::regnamespace and c.relkind in ('r', 'm') and o.option_name = 'autovacuum_enabled'
          and not o.option_value::boolean) as off`
  )
  if (off.length > 0) exam.found('autovacuum_off', off.join(', '))
}

async function checkDeadRows(exam: Examination): Promise<void> {
  const rows = await exam.database().ask<{ name: string; dead: number; live: number }>(
    `select relname::text as name, n_dead_tup::float8 as dead, n_live_tup::float8 as live from pg_stat_user_tables
    where n_dead_tup > $1 and n_dead_tup > 0.5 * n_live_tup
      and coalesce(greatest(last_autovacuum, last_vacuum), '-infinity') < now() - interval '1 hour'`,
    [exam.limits.deadRows]
  )
  for (const { name, dead, live } of rows) exam.found('autovacuum_behind', `${name}: ${dead} dead rows beside ${live}`)
}

async function checkTransactionIds(exam: Examination): Promise<void> {
  const { age } = await askOne<{ age: number }>(
    exam,
    'select age(datfrozenxid)::float8 as age from pg_database where datname = current_database()'
  )
  if (age > exam.limits.transactionIds) exam.found('transaction_ids_old', `${age} of 2,147,483,648 are in use`)
}

async function checkTransactions(exam: Examination): Promise<void> {
  const { age, held, hidden } = await askOne<{ age: number | null; held: number; hidden: number }>(
    exam,
    `select extract(epoch from now() - min(a.xact_start))::float8 as age, count(*) filter (where a.query = '<insufficient privilege>')::int as hidden,
      (select (pg_snapshot_xmax(s)::text::numeric - pg_snapshot_xmin(s)::text::numeric)::float8 from pg_current_snapshot() s) as held
    from pg_stat_activity a where a.datname = current_database() and a.pid <> pg_backend_pid()`
  )
  if ((age ?? 0) > exam.limits.openTransactionSeconds) {
    exam.found('transaction_open', `the oldest transaction of this role began ${Math.round(age ?? 0)} s ago`)
  } else if (held > exam.limits.heldTransactions) {
    exam.found('transaction_open', `${held} transactions began since the oldest one that is still open`)
  }
  if (hidden > 0)
    exam.skipped(
      'open transactions',
      `when the transactions of ${hidden} other connections began can't be seen by this role`
    )
}

async function checkWaiting(exam: Examination): Promise<void> {
  const { mails_due, mail_seconds, seal_seconds } = await askOne<Upkeep>(exam, readUpkeep.text)
  if (mail_seconds > exam.limits.mailSeconds) {
    exam.found('mails_late', `${mails_due} mails are due, the oldest since ${Math.round(mail_seconds / 60)} minutes`)
  }
  if (seal_seconds > exam.limits.sealSeconds) {
    exam.found('audit_not_sealed', `the oldest event without a seal is ${Math.round(seal_seconds / 60)} minutes old`)
  }
}

/** The pauses of the background jobs that run less than once a minute. */
const pauseSeconds: Record<string, number> = { stale_parts: 3600 }

async function checkJobs(exam: Examination): Promise<void> {
  const jobs = await exam
    .database()
    .ask<{ name: string; seconds: number | null; error: string | null }>(
      'select name, extract(epoch from now() - succeeded_at)::float8 as seconds, error from list_jobs()'
    )
  const { sweep, smtpUrl, nodeEnv } = exam.config
  const off = [sweep === 'off' && 'object_sweep', smtpUrl === undefined && nodeEnv === 'production' && 'outbox']
  for (const { name, seconds, error } of jobs) {
    const limit = exam.limits.jobSeconds + (pauseSeconds[name] ?? 0)
    if (off.includes(name) || (seconds !== null && seconds <= limit)) continue
    const since = seconds === null ? 'never succeeded' : `last succeeded ${Math.round(seconds / 60)} minutes ago`
    exam.found('job_late', `${name} ${since}${error === null ? '' : `; its last failure: ${error}`}`)
  }
}
