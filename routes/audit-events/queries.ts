import { type RawBuilder, sql } from 'kysely'
import { statement } from '../../db/gate/statement.ts'

/** The position of a row: its id and created_at, as text because a Date has no microseconds. */
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
  /** `from`, `to` and `after_at` may be `infinity` or `-infinity`. */
  from: string
  to: string
  after_at: string
  after_id: string
  limit: number
}

/**
 * Lists events after a position, the newest first. The order is that of an index, so the last page costs the same as
 * the first, and partitions outside `from` and `to` are not read.
 *
 * Each set of filters has its own statement: with an optional condition, PostgreSQL would not use the index for the
 * filter.
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

/** Makes the four statements, and returns a function that picks the one for a set of filters. */
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

/** Read from the primary: a cursor from the primary may point to rows that a replica does not have yet. */
export const auditEventsBy = byFilters<AuditRow>(
  'list_audit_events',
  sql`created_at, action, actor_id, target_id, session_id, host(ip) as ip, user_agent, request_id, detail`,
  { replica: false }
)

/**
 * The events as lines of JSON. PostgreSQL makes the text, so a million rows are a million strings instead of ten
 * million values.
 */
export const auditLinesBy = byFilters<AuditLine>(
  'export_audit_events',
  sql`json_build_object('id', id,
    'created_at', to_char(created_at at time zone 'utc', 'YYYY-MM-DD"T"HH24:MI:SS.MS"Z"'),
    'action', action, 'actor_id', actor_id, 'target_id', target_id, 'session_id', session_id, 'ip', host(ip),
    'user_agent', user_agent, 'request_id', request_id, 'detail', detail)::text as line`,
  { replica: true }
)
