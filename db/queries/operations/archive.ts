import { sql } from 'kysely'
import { statement } from '../../gate/statement.ts'

export type Archive = {
  /** Whether PostgreSQL archives its log (`archive_mode`). Without it, backups can't be seen from here. */
  archiving: boolean
  failing: boolean
  /** Since when nothing was archived, in seconds: from the last part of the log, or from the start of the statistics. */
  archived_seconds: number
  /** How many full files of the log are not in the archive, where that can be seen. */
  waiting_files: number | null
}

/** Seconds in which a full file of the log should be in the archive. */
export const archiveLateSeconds = 600

/**
 * Whether full files of the log wait and none was archived for long. PostgreSQL does not count an archive_command as
 * failing that ends by a signal, or with more than 125: it starts its archiver anew, and so on for ever.
 *
 * One file alone may have become full a moment ago, after hours without a write.
 */
export const isArchiveStuck = ({ archived_seconds, waiting_files }: Archive, lateSeconds: number) =>
  (waiting_files ?? 0) > 1 && archived_seconds > lateSeconds

/** Reads how old the archive of the database's log is, as far as PostgreSQL knows it. */
export const readArchive = statement(
  'read_archive',
  (_, __: Record<never, never>) => sql<Archive>`
  select current_setting('archive_mode') <> 'off' as archiving,
    failed_count > 0 and last_failed_time > coalesce(last_archived_time, '-infinity') as failing,
    greatest(extract(epoch from now() - coalesce(last_archived_time, stats_reset)), 0)::float8 as archived_seconds,
    case when last_archived_wal ~ '^[0-9A-F]{24}' and not pg_is_in_recovery() then
      (div(pg_current_wal_lsn() - '0/0'::pg_lsn, pg_size_bytes(current_setting('wal_segment_size'))) - 1
        - (pg_split_walfile_name(left(last_archived_wal, 24))).segment_number)::float8
    end as waiting_files
  from pg_stat_archiver`,
  { slow: true }
)
