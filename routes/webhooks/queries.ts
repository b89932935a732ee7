import { sql } from 'kysely'
import type { TenantTransaction } from '../../db/gate/gate.ts'
import { statement } from '../../db/gate/statement.ts'
import type { SealedSecret } from '../../src/auth/stored-secrets.ts'
import type { EventType } from '../../src/events/event-types.ts'

/** The webhooks that an agency may have. */
export const maxWebhooks = 20
/** For how long the secret before still signs, after a rotation. */
export const previousSecretHours = 24

export type WebhookStatus = 'enabled' | 'disabled'
export type WebhookRow = {
  id: string
  url: string
  description: string
  event_types: EventType[]
  status: WebhookStatus
  disabled_reason: 'request' | 'failing' | 'gone' | null
  disabled_at: Date | null
  failing_since: Date | null
  previous_secret_until: Date | null
  created_by: string | null
  version: number
  created_at: Date
  updated_at: Date
}
export type WebhookValues = Pick<WebhookRow, 'url' | 'description' | 'event_types' | 'status'>

const columns = sql`id, url, description, event_types, status, disabled_reason, disabled_at, failing_since,
  case when previous_until > now() then previous_until end as previous_secret_until, created_by, version, created_at, updated_at`

/** The oldest first. */
export const listWebhooks = statement(
  'list_webhooks',
  (_, $: { tenant_id: string }) => sql<WebhookRow>`
  select ${columns} from webhook_endpoints where tenant_id = ${$.tenant_id} and deleted_at is null order by id`
)

export const readWebhook = statement(
  'read_webhook',
  (_, $: { tenant_id: string; id: string }) => sql<WebhookRow>`
  select ${columns} from webhook_endpoints where tenant_id = ${$.tenant_id} and id = ${$.id} and deleted_at is null`
)

/** Reads a webhook and locks it until the transaction ends. */
export async function lockWebhook(trx: TenantTransaction, id: string): Promise<WebhookRow | undefined> {
  const { rows } = await sql<WebhookRow>`
    select ${columns} from webhook_endpoints where id = ${id} and deleted_at is null for no key update`.execute(trx)
  return rows[0]
}

/** Stores a webhook, which gets the events from now on. Resolves to undefined when the agency has as many as it may have. */
export async function insertWebhook(
  trx: TenantTransaction,
  tenantId: string,
  webhook: SealedSecret & Pick<WebhookRow, 'id' | 'url' | 'description' | 'event_types'>
): Promise<WebhookRow | undefined> {
  const { id, url, description, event_types, secret, key_id } = webhook
  // of two requests at the same moment one waits for the other, so that the count is right
  await sql`select from tenants where id = ${tenantId} for no key update`.execute(trx)
  const { rows } = await sql<WebhookRow>`
    insert into webhook_endpoints (id, url, description, event_types, secret, key_id)
    select ${id}::uuid, ${url}::text, ${description}::text, ${event_types}::text[], ${secret}::bytea, ${key_id}::text
    where (select count(*) from webhook_endpoints where deleted_at is null) < ${maxWebhooks}
    returning ${columns}`.execute(trx)
  return rows[0]
}

/** Changes a locked webhook. One that is enabled again, or has another address, is tried at once, as if it had never failed. */
export async function updateWebhook(
  trx: TenantTransaction,
  { id, status: before, url: urlBefore }: WebhookRow,
  { url, description, event_types, status }: WebhookValues
): Promise<WebhookRow> {
  const change = status === before ? 'none' : status
  // what is known of the address before says nothing about another one
  const isNew = change === 'enabled' || url !== urlBefore
  const { rows } = await sql<WebhookRow>`
    update webhook_endpoints set url = ${url}, description = ${description}, event_types = ${event_types}::text[], status = ${status},
      disabled_reason = case ${change}::text when 'none' then disabled_reason when 'disabled' then 'request' end,
      disabled_at = case ${change}::text when 'none' then disabled_at when 'disabled' then now() end,
      failures = case when ${isNew} then 0 else failures end,
      failing_since = case when ${isNew} then null else failing_since end,
      busy_until = case when ${isNew} and lease is null then '-infinity' else busy_until end,
      next_at = case ${change}::text when 'enabled' then now() else next_at end,
      version = version + 1, updated_at = now()
    where id = ${id} returning ${columns}`.execute(trx)
  return rows[0] as WebhookRow
}

/** Replaces the secret of a locked webhook. The one before signs as well for a day; one before that no more. */
export async function rotateWebhookSecret(
  trx: TenantTransaction,
  id: string,
  { secret, key_id }: SealedSecret
): Promise<WebhookRow> {
  const { rows } = await sql<WebhookRow>`
    update webhook_endpoints set secret = ${secret}, key_id = ${key_id}, previous_secret = secret, previous_key_id = key_id,
      previous_until = now() + make_interval(hours => ${previousSecretHours}), version = version + 1, updated_at = now()
    where id = ${id} returning ${columns}`.execute(trx)
  return rows[0] as WebhookRow
}

/** Nothing is sent to it any more, and its secret is forgotten. Its deliveries are removed in the background. */
export async function deleteWebhook(trx: TenantTransaction, id: string): Promise<WebhookRow | undefined> {
  const { rows } = await sql<WebhookRow>`
    update webhook_endpoints set deleted_at = now(), secret = '', key_id = '', previous_secret = null, previous_key_id = null,
      previous_until = null
    where id = ${id} and deleted_at is null returning ${columns}`.execute(trx)
  return rows[0]
}
