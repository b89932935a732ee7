import { sql } from 'kysely'
import type { TenantTransaction } from '../gate/gate.ts'
import { statement } from '../gate/statement.ts'

/**
 * An event in a tenant. The user, the address and the request id come from the gate's settings; set `actor_id` only when the
 * actor is not the gate's user. Never put secrets into `detail`.
 */
export type AuditEvent = {
  action: string
  actor_id?: string | null
  target_id?: string
  session_id?: string
  detail?: Record<string, unknown>
}

/** Writes the event in the transaction of the change, so that both are committed or neither is. */
export async function recordAudit(trx: TenantTransaction, event: AuditEvent): Promise<void> {
  const { detail, ...rest } = event
  await trx
    .insertInto('audit_events')
    .values({ ...rest, ...(detail && { detail: JSON.stringify(detail) }) })
    .execute()
}

/**
 * Records a refused sign-in, with the address that was sent. Also used for an address without an account, so that both
 * take equally long. A passkey sends no address, and that of its person is not for an agency which they are no member of.
 */
export const recordRefusedSignIn = statement(
  'record_refused_sign_in',
  (_, $: { email: string | null; by: string | null }) => sql<never>`
  insert into audit_events (action, detail)
  values ('session.refused', jsonb_strip_nulls(jsonb_build_object('email', ${$.email}::text, 'by', ${$.by}::text)))`,
  { writes: true }
)

/** Records a request of a signed-in user, or of an API key, that was refused, in the tenant of the token. */
export const recordDenial = statement(
  'record_denial',
  (_, $: { session_id: string | null; method: string; route: string }) => sql<never>`
  insert into audit_events (action, session_id, detail)
  values ('authz.denied', ${$.session_id}, jsonb_build_object('method', ${$.method}::text, 'route', ${$.route}::text))`,
  { writes: true }
)
