import { type RawBuilder, sql } from 'kysely'
import { statement } from '../../db/gate/statement.ts'

/** Where a row stands: created_at with its microseconds, which a Date has not, and the id. */
type Position = { at: string; id: string }

export type AuditLine = Position & { line: string }
export type AuditRow = Position & {
  created_at: Date
  action: string
  actor_id: string | null
  target_id: string | null
  session_id: string | null
  ip: string | null
  user_agent: string | null
  request_id: string | null
  detail: unknown
}

type Values = {
  tenant_id: string
  action: string | null
  actor_id: string | null
  /** Of these two, and of `after_at`, infinities are times as well. */
  from: string
  to: string
  after_at: string
  after_id: string
  limit: number
}

/**
 * Events, the newest first, after a position. The order is that of an index, so a page costs as much at the end as at the
 * beginning, and partitions outside `from` and `to` are not looked at. One statement for each set of filters: a condition that
 * may be absent would keep PostgreSQL from using the index that is made for it.
 */
function list<Row>(
  name: string,
  columns: RawBuilder<unknown>,
  options: { replica: boolean },
  filter: (values: Values) => RawBuilder<unknown>
) {
  return statement(
    name,
    (_, $: Values) => sql<Row>`
    select ${columns}, id, to_char(created_at at time zone 'utc', 'YYYY-MM-DD"T"HH24:MI:SS.US"Z"') as at
    from audit_events
    where tenant_id = ${$.tenant_id} ${filter($)}
      and created_at >= ${$.from} and created_at < ${$.to} and (created_at, id) < (${$.after_at}, ${$.after_id})
    order by created_at desc, id desc limit ${$.limit}`,
    { slow: true, ...options }
  )
}

type Filters = Pick<Values, 'action' | 'actor_id'>

/** The statement that is made for a set of filters, out of four. */
function byFilters<Row>(name: string, columns: RawBuilder<unknown>, options: { replica: boolean }) {
  const all = list<Row>(name, columns, options, () => sql``)
  const byAction = list<Row>(`${name}_by_action`, columns, options, ($) => sql`and action = ${$.action}`)
  const byActor = list<Row>(`${name}_by_actor`, columns, options, ($) => sql`and actor_id = ${$.actor_id}`)
  const byBoth = list<Row>(
    `${name}_by_both`,
    columns,
    options,
    ($) => sql`and action = ${$.action} and actor_id = ${$.actor_id}`
  )
  return ({ action, actor_id }: Filters) => {
    if (action !== null) return actor_id === null ? byAction : byBoth
    return actor_id === null ? all : byActor
  }
}

/** Of the primary: a page whose cursor came from it must not be looked for on a copy that has not come so far. */
export const auditEventsBy = byFilters<AuditRow>(
  'list_audit_events',
  sql`created_at, action, actor_id, target_id, session_id, host(ip) as ip, user_agent, request_id, detail`,
  { replica: false }
)

/** The same as text, made in PostgreSQL: a million rows are a million strings and not ten million values. */
export const auditLinesBy = byFilters<AuditLine>(
  'export_audit_events',
  sql`json_build_object('id', id,
    'created_at', to_char(created_at at time zone 'utc', 'YYYY-MM-DD"T"HH24:MI:SS.MS"Z"'),
    'action', action, 'actor_id', actor_id, 'target_id', target_id, 'session_id', session_id, 'ip', host(ip),
    'user_agent', user_agent, 'request_id', request_id, 'detail', detail)::text as line`,
  { replica: true }
)
