import { sql } from 'kysely'
import { statement } from '../../gate/statement.ts'

export type Upkeep = {
  mails_due: number
  /** How long the oldest mail that is due has waited, in seconds. */
  mail_seconds: number
  /** The age of the oldest audit event without a seal, in seconds. Events of the last minute or two have none. */
  seal_seconds: number
  /** For how many months after this one the audit log has partitions, of the two that are made ahead. -1: none for this month. */
  months_ahead: number
  /** The partitions that are missing, first the earliest. */
  months_missing: string[]
}

/**
 * Reads how far the background jobs are behind, over all agencies: numbers and times, and nothing of any agency. The
 * database subtracts the times, so that no clock but its own is asked.
 */
export const readUpkeep = statement(
  'read_upkeep',
  (_, __: Record<never, never>) => sql<Upkeep>`
  select mails_due::float8 as mails_due,
    greatest(coalesce(extract(epoch from now() - mails_due_since), 0), 0)::float8 as mail_seconds,
    greatest(coalesce(extract(epoch from now() - unsealed_since), 0), 0)::float8 as seal_seconds,
    months.ahead as months_ahead, months.missing as months_missing
  from upkeep() cross join lateral (
    select coalesce(min(m.ahead), 3) - 1 as ahead, coalesce(array_agg(m.name order by m.ahead), '{}') as missing
    from (select ahead, 'audit_events_' || to_char((now() at time zone 'utc') + make_interval(months => ahead), 'yyyy_mm') as name
      from generate_series(0, 2) as ahead) m
    where not exists (select from pg_inherits i join pg_class c on c.oid = i.inhrelid
      where i.inhparent = 'audit_events'::regclass and c.relname = m.name)) months`,
  { slow: true }
)
