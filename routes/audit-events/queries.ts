import { sql } from 'kysely'
import { statement } from '../../db/statement.ts'

export type AuditRow = {
  id: string
  created_at: Date
  action: string
  actor_id: string | null
  target_id: string | null
  session_id: string | null
  ip: string | null
  user_agent: string | null
  request_id: string | null
  detail: unknown
  /** created_at with its microseconds, which a Date has not: the first half of the position. */
  at: string
}

/**
 * Events, the newest first, after a position. The order is the primary key's, so a page costs as much at the end as at the
 * beginning; partitions outside `from` and `to` are not looked at.
 */
export const listAuditEvents = statement(
  'list_audit_events',
  (
    _,
    $: {
      tenant_id: string
      action: string | null
      actor_id: string | null
      from: string | null
      to: string | null
      after_at: string | null
      after_id: string | null
      limit: number
    }
  ) => sql<AuditRow>`
  select id, created_at, action, actor_id, target_id, session_id, host(ip) as ip, user_agent, request_id, detail,
    to_char(created_at at time zone 'utc', 'YYYY-MM-DD"T"HH24:MI:SS.US"Z"') as at
  from audit_events
  where tenant_id = ${$.tenant_id}
    and (${$.action}::text is null or action = ${$.action})
    and (${$.actor_id}::uuid is null or actor_id = ${$.actor_id})
    and created_at >= coalesce(${$.from}::timestamptz, '-infinity')
    and created_at < coalesce(${$.to}::timestamptz, 'infinity')
    and (created_at, id) < (coalesce(${$.after_at}::timestamptz, 'infinity'), coalesce(${$.after_id}::uuid, 'ffffffff-ffff-ffff-ffff-ffffffffffff'))
  order by created_at desc, id desc limit ${$.limit}`,
  { slow: true }
)
