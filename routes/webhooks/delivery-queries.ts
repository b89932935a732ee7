import { sql } from 'kysely'
import type { TenantTransaction } from '../../db/gate/gate.ts'
import { statement } from '../../db/gate/statement.ts'
import type { Attempt } from '../../db/queries/webhooks/deliveries.ts'
import { testType } from '../../src/events/webhook-messages.ts'
import type { WebhookDelivery } from './schemas.ts'

export type DeliveryRow = Omit<WebhookDelivery, 'due_at'> & { due_at: Date }

const columns = sql`id, endpoint_id as webhook_id, event_id, event_type, cause, status, attempts, due_at, created_at, finished_at`

/** The newest first, those of one status or all. `before`: the id of the last one on the page before. */
export const listDeliveries = statement(
  'list_webhook_deliveries',
  (_, $: { tenant_id: string; id: string; status: string | null; before: string; limit: number }) => sql<DeliveryRow>`
  select ${columns} from webhook_deliveries
  where tenant_id = ${$.tenant_id} and endpoint_id = ${$.id} and id < ${$.before}
    and (${$.status}::text is null or status = ${$.status}::text)
  order by id desc limit ${$.limit}`,
  { slow: true }
)

type Key = { tenant_id: string; id: string; delivery_id: string }

export const readDelivery = statement(
  'read_webhook_delivery',
  (_, $: Key) => sql<DeliveryRow>`
  select ${columns} from webhook_deliveries
  where tenant_id = ${$.tenant_id} and id = ${$.delivery_id} and endpoint_id = ${$.id}
    and exists (select from webhook_endpoints w where w.tenant_id = ${$.tenant_id} and w.id = ${$.id} and w.deleted_at is null)`
)

export const listAttempts = statement(
  'list_webhook_attempts',
  (_, $: { tenant_id: string; delivery_id: string }) => sql<Attempt>`
  select number, started_at, duration_ms, status, error, reply from webhook_attempts
  where tenant_id = ${$.tenant_id} and delivery_id = ${$.delivery_id} order by number`
)

const target = sql`webhook_deliveries (endpoint_id, cause, event_id, event_type, event_at, position)`

/** Has the deliveries of a locked webhook looked for. */
async function wakeWebhook(trx: TenantTransaction, id: string): Promise<void> {
  await sql`update webhook_endpoints set next_at = least(next_at, now()) where id = ${id}`.execute(trx)
}

/** Whether at least `most` deliveries wait for a webhook. Reads no more than that. */
export async function hasWaiting(trx: TenantTransaction, id: string, most: number): Promise<boolean> {
  const { rows } = await sql`
    select from webhook_deliveries where tenant_id = current_tenant_id() and endpoint_id = ${id} and status = 'waiting'
    order by due_at offset ${most - 1} limit 1`.execute(trx)
  return rows.length > 0
}

/** Makes a test of a locked webhook. */
export async function insertTest(trx: TenantTransaction, id: string): Promise<DeliveryRow> {
  const { rows } = await sql<DeliveryRow>`
    insert into ${target} values (${id}, 'test', uuid_v7(), ${testType}, now(), null) returning ${columns}`.execute(trx)
  await wakeWebhook(trx, id)
  return rows[0] as DeliveryRow
}

/** Delivers what a delivery of a locked webhook was about again. Resolves to undefined when there is no such delivery. */
export async function insertReplay(
  trx: TenantTransaction,
  id: string,
  deliveryId: string
): Promise<DeliveryRow | undefined> {
  const { rows } = await sql<DeliveryRow>`
    insert into ${target}
    select d.endpoint_id, case d.cause when 'test' then 'test' else 'replay' end, d.event_id, d.event_type, d.event_at, d.position
    from webhook_deliveries d where d.id = ${deliveryId} and d.endpoint_id = ${id}
    returning ${columns}`.execute(trx)
  if (rows[0]) await wakeWebhook(trx, id)
  return rows[0]
}

/**
 * Delivers the events of a time that a locked webhook wants, in their order. Resolves to how many these are, and makes no
 * delivery when there are more than `most`.
 */
export async function insertReplays(
  trx: TenantTransaction,
  id: string,
  { from, to, most }: { from: string; to: string; most: number }
): Promise<number> {
  const { rows } = await sql<{ n: number }>`
    with wanted as materialized (
      select w.id as endpoint_id, a.id, a.action, a.created_at, e.position
      from audit_events a
      join events e on e.tenant_id = a.tenant_id and e.id = a.id and e.position is not null
      join webhook_endpoints w on w.tenant_id = a.tenant_id and w.id = ${id}
        and (cardinality(w.event_types) = 0 or a.action = any (w.event_types))
      where a.tenant_id = current_tenant_id() and a.created_at >= ${from}::timestamptz and a.created_at < ${to}::timestamptz
        -- older ones are no events any more, and need not be read
        and a.created_at > now() - interval '31 days'
      limit ${most + 1}
    ), made as (
      insert into ${target}
      select endpoint_id, 'replay', id, action, created_at, position from wanted
      where (select count(*) from wanted) <= ${most} order by position
    )
    select count(*)::int as n from wanted`.execute(trx)
  const count = rows[0]?.n ?? 0
  if (count > 0) await wakeWebhook(trx, id)
  return count
}
