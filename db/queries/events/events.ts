import { sql } from 'kysely'
import { statement } from '../../gate/statement.ts'

/*
 * Queries for events: db/migrations/0031_events.ts. Positions are exact numbers up to 2^53.
 */

/** Gives positions to the next events that have none, and returns their agencies with the newest position of each. */
export const placeEvents = statement(
  'place_events',
  (_, $: { batch: number }) => sql<{ tenant_id: string; placed: number; newest: number }>`
  select tenant_id, placed, newest::float8 as newest from place_events(${$.batch})`,
  { writes: true }
)

/** The agencies of the next `batch` events after a position, with the newest position of each among these. */
export const eventsAfter = statement(
  'events_after',
  (_, $: { reached: number; batch: number }) => sql<{ tenant_id: string; newest: number }>`
  select tenant_id, newest::float8 as newest from events_after(${$.reached}::bigint, ${$.batch}::int)`
)

/** The position of the newest event of all. */
export const newestEvent = statement(
  'newest_event',
  (_, __: Record<never, never>) => sql<{ position: number }>`select newest_event()::float8 as position`
)

export type AgencyEvent = {
  id: string
  position: number
  created_at: Date
  type: string
  actor_id: string | null
  target_id: string | null
  session_id: string | null
  detail: Record<string, unknown> | null
}

/**
 * The agency's events after a position, in their order. Each row of the audit log is looked up by itself: a join would be
 * planned for all events that follow, of which there may be a million.
 */
export const readEvents = statement(
  'read_events',
  (_, $: { tenant_id: string; reached: number; limit: number }) => sql<AgencyEvent>`
  select e.id, e.position::float8 as position, e.created_at, a.type, a.actor_id, a.target_id, a.session_id, a.detail
  from (
    select id, position, created_at from events
    where tenant_id = ${$.tenant_id} and position > ${$.reached}::bigint
    order by position limit ${$.limit}
  ) e
  cross join lateral (
    select action as type, actor_id, target_id, session_id, detail from audit_events
    where tenant_id = ${$.tenant_id} and created_at = e.created_at and id = e.id limit 1
  ) a
  order by e.position`
)

/** The position of an event of the agency. No row when there is none, and null when it has none yet. */
export const findEventPosition = statement(
  'find_event_position',
  (_, $: { tenant_id: string; id: string }) => sql<{ position: number | null }>`
  select position::float8 as position from events where tenant_id = ${$.tenant_id} and id = ${$.id}`
)

/** Removes events thirty days after they happened. */
export const sweepEvents = statement(
  'sweep_events',
  (_, $: { batch: number }) => sql<{ removed: number }>`select sweep_events(${$.batch})::int as removed`,
  { writes: true }
)
