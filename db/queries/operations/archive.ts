import { sql } from 'kysely'
import { statement } from '../../gate/statement.ts'

export type Archive = {
  /** Whether PostgreSQL archives its log (`archive_mode`). Without it, backups can't be seen from here. */
  archiving: boolean
  failing: boolean
  /** Since when nothing was archived, in seconds: from the last part of the log, or from the start of the statistics. */
  archived_seconds: number
}

/** Reads how old the archive of the database's log is, as far as PostgreSQL knows it. */
export const readArchive = statement(
  'read_archive',
  (_, __: Record<never, never>) => sql<Archive>`
  select current_setting('archive_mode') <> 'off' as archiving,
    failed_count > 0 and last_failed_time > coalesce(last_archived_time, '-infinity') as failing,
    greatest(extract(epoch from now() - coalesce(last_archived_time, stats_reset)), 0)::float8 as archived_seconds
  from pg_stat_archiver`,
  { slow: true }
)
