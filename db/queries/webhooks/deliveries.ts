import { sql } from 'kysely'
import { failingDays } from '../../../src/events/webhook-retries.ts'
import type { StoredWebhookSecrets } from '../../../src/events/webhook-secrets.ts'
import type { TenantTransaction } from '../../gate/gate.ts'
import { statement } from '../../gate/statement.ts'
import { secretColumns } from './secrets.ts'

/*
 * Queries for the deliveries of webhooks: db/migrations/0032_webhooks.ts.
 */

/** `slow`: the last attempt to the same endpoint took long. */
export type ClaimedDelivery = { tenant_id: string; delivery_id: string; lease: string; slow: boolean }

/**
 * Claims the next deliveries that are due, each with its endpoint leased to the caller for `lease_seconds`: at most `batch`, at
 * most `most_slow` to endpoints that were slow, and at most `most` requests of one agency under way.
 */
export const claimWebhookDeliveries = statement(
  'claim_webhook_deliveries',
  (_, $: { batch: number; most: number; most_slow: number; lease_seconds: number }) => sql<ClaimedDelivery>`
  select tenant_id, delivery_id, lease, slow
  from claim_webhook_deliveries(${$.batch}, ${$.most}, ${$.most_slow}, make_interval(secs => ${$.lease_seconds}))`,
  { writes: true }
)

/** Everything that is needed to send a delivery. `found`: whether the event is still known; that of a test always is. */
export type DeliveryToSend = StoredWebhookSecrets & {
  url: string
  /** How often it was claimed, this time included. */
  attempts: number
  /** The attempts that were recorded. A process that dies makes one that is not. */
  recorded: number
  found: boolean
  type: string
  created_at: Date
  id: string
  position: number | null
  actor_id: string | null
  target_id: string | null
  session_id: string | null
  detail: Record<string, unknown> | null
}

/** Reads a delivery for the holder of the lease. */
export const readClaimedDelivery = statement(
  'read_claimed_delivery',
  (_, $: { tenant_id: string; delivery_id: string; lease: string }) => sql<DeliveryToSend>`
  select ${secretColumns}, w.url, d.attempts,
    (select count(*)::int from webhook_attempts t where t.tenant_id = d.tenant_id and t.delivery_id = d.id) as recorded, d.cause = 'test' or a.id is not null as found, d.event_type as type,
    d.event_at as created_at, d.event_id as id, d.position::float8 as position, a.actor_id,
    case d.cause when 'test' then w.id else a.target_id end as target_id, a.session_id, a.detail
  from webhook_deliveries d
  join webhook_endpoints w on w.tenant_id = d.tenant_id and w.id = d.endpoint_id
  left join audit_events a on a.tenant_id = d.tenant_id and a.created_at = d.event_at and a.id = d.event_id
  where d.tenant_id = ${$.tenant_id} and d.id = ${$.delivery_id} and w.lease = ${$.lease} and w.deleted_at is null`
)

/** What came of one request. `status` and `reply` are null without a reply, and `error` with a good one. */
export type Attempt = {
  number: number
  started_at: Date
  duration_ms: number
  status: number | null
  error: string | null
  reply: string | null
}

export type SettledEndpoint = {
  id: string
  url: string
  enabled: boolean
  /** Failures in a row before this attempt. */
  failures: number
  /** Whether the endpoint has only failed for longer than it may. */
  given_up: boolean
}

/** Locks the endpoint of a delivery for the holder of the lease. Resolves to undefined when the lease is another's by now. */
export async function lockLeasedEndpoint(
  trx: TenantTransaction,
  { delivery_id, lease }: Pick<ClaimedDelivery, 'delivery_id' | 'lease'>
): Promise<SettledEndpoint | undefined> {
  const { rows } = await sql<SettledEndpoint>`
    select w.id, w.url, w.status = 'enabled' as enabled, w.failures,
      coalesce(w.failing_since < now() - make_interval(days => ${failingDays}), false) as given_up
    from webhook_endpoints w
    where w.id = (select endpoint_id from webhook_deliveries where id = ${delivery_id}) and w.lease = ${lease} and w.deleted_at is null
    for no key update`.execute(trx)
  return rows[0]
}

/**
 * Writes an attempt down. `retry_seconds`: when a delivery that failed is tried again; null: it is delivered, or not tried again.
 */
export async function recordAttempt(
  trx: TenantTransaction,
  delivery_id: string,
  attempt: Attempt,
  retry_seconds: number | null
): Promise<void> {
  const { number, started_at, duration_ms, status, error, reply } = attempt
  const outcome = error === null ? 'delivered' : retry_seconds === null ? 'failed' : 'waiting'
  // a delivery that is being swept has no more attempts
  await sql`
    with delivery as (
      update webhook_deliveries set status = ${outcome}, due_at = coalesce(now() + make_interval(secs => ${retry_seconds}), due_at),
        finished_at = case when ${outcome}::text <> 'waiting' then now() end
      where id = ${delivery_id} and status = 'waiting' returning id
    )
    insert into webhook_attempts (delivery_id, number, started_at, duration_ms, status, error, reply)
    select id, ${number}::int, ${started_at}::timestamptz, ${duration_ms}::int, ${status}::int, ${error}::text, ${reply}::text from delivery
    on conflict (tenant_id, delivery_id, number) do nothing`.execute(trx)
}

/**
 * Ends the lease of a locked endpoint. Nothing is sent to it for `pause_seconds`. `failed`: null when nothing was learned about
 * it. `slow`: whether the attempt took long. `off`: the reason for which it is switched off.
 */
export async function releaseEndpoint(
  trx: TenantTransaction,
  id: string,
  {
    failed,
    slow,
    pause_seconds,
    off
  }: { failed: boolean | null; slow: boolean; pause_seconds: number; off: 'failing' | 'gone' | null }
): Promise<void> {
  // the row is locked, so this statement sees every delivery that was made for it before
  await sql`
    update webhook_endpoints w set lease = null, slow = ${slow}, busy_until = now() + make_interval(secs => ${pause_seconds}),
      next_at = (select min(d.due_at) from webhook_deliveries d
        where d.tenant_id = w.tenant_id and d.endpoint_id = w.id and d.status = 'waiting'),
      failures = case when ${failed}::boolean then w.failures + 1 when ${failed}::boolean is null then w.failures else 0 end,
      failing_since = case when ${failed}::boolean then coalesce(w.failing_since, now())
        when ${failed}::boolean is null then w.failing_since end,
      status = case when ${off}::text is null then w.status else 'disabled' end,
      disabled_reason = coalesce(${off}::text, w.disabled_reason),
      disabled_at = case when ${off}::text is null then w.disabled_at else coalesce(w.disabled_at, now()) end,
      version = w.version + case when ${off}::text is null then 0 else 1 end
    where w.tenant_id = current_tenant_id() and w.id = ${id}`.execute(trx)
}

/** How many deliveries wait for endpoints that are enabled, counted to 100,000, and for how long the first one that could be sent has waited. */
export const readWebhookBacklog = statement(
  'read_webhook_backlog',
  (_, __: Record<never, never>) => sql<{ waiting: number; seconds: number }>`
  select waiting::float8 as waiting, greatest(coalesce(extract(epoch from now() - due_since), 0), 0)::float8 as seconds
  from webhook_backlog()`,
  { slow: true }
)

/** Removes deliveries after thirty days, and what endpoints and secrets that are gone have left. */
export const sweepWebhooks = statement(
  'sweep_webhooks',
  (_, $: { batch: number }) => sql<{ removed: number }>`select sweep_webhooks(${$.batch})::int as removed`,
  { writes: true }
)
