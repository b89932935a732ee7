import { sql } from 'kysely'
import type { SealedSecret } from '../../../src/auth/stored-secrets.ts'
import type { StoredWebhookSecrets } from '../../../src/events/webhook-secrets.ts'
import { statement } from '../../gate/statement.ts'

/** The columns of `StoredWebhookSecrets`, for a table called `w`. */
export const secretColumns = sql`w.id as endpoint_id, w.secret, w.key_id,
  case when w.previous_until > now() then w.previous_secret end as previous_secret,
  case when w.previous_until > now() then w.previous_key_id end as previous_key_id`

/** The secrets of all endpoints of an agency. */
export const listWebhookSecrets = statement(
  'list_webhook_secrets',
  (_, $: { tenant_id: string }) => sql<StoredWebhookSecrets>`
  select ${secretColumns} from webhook_endpoints w where w.tenant_id = ${$.tenant_id} and w.deleted_at is null order by w.id`
)

/** Stores the secrets of an endpoint encrypted anew, unless they were changed meanwhile. */
export const resealWebhook = statement(
  'reseal_webhook',
  (
    _,
    $: SealedSecret & {
      tenant_id: string
      id: string
      before: Buffer
      previous_secret: Buffer | null
      previous_key_id: string | null
    }
  ) => sql<never>`
  update webhook_endpoints set secret = ${$.secret}, key_id = ${$.key_id}, previous_secret = ${$.previous_secret}::bytea,
    previous_key_id = ${$.previous_key_id}::text, previous_until = case when ${$.previous_secret}::bytea is not null then previous_until end
  where tenant_id = ${$.tenant_id} and id = ${$.id} and secret = ${$.before}`,
  { writes: true }
)

/** The keys that stored secrets of webhooks need. */
export const webhookKeysInUse = statement(
  'webhook_keys_in_use',
  (_, __: Record<never, never>) => sql<{ id: string }>`select id from webhook_keys_in_use() as id`
)
