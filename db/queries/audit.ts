import { sql } from 'kysely'
import type { TenantTransaction } from '../gate/gate.ts'
import { statement } from '../gate/statement.ts'

/**
 * Something that happened in a tenant. Who asked, from where and under which request id comes from the gate's settings;
 * `actor_id` needs naming only where it is not the user of the gate. Secrets never go into `detail`.
 */
export type AuditEvent = {
  action: string
  actor_id?: string | null
  target_id?: string
  session_id?: string
  detail?: Record<string, unknown>
}

/** Writes the row in the transaction of the change, so that one exists exactly when the other does. */
export async function recordAudit(trx: TenantTransaction, event: AuditEvent): Promise<void> {
  const { detail, ...rest } = event
  await trx
    .insertInto('audit_events')
    .values({ ...rest, ...(detail && { detail: JSON.stringify(detail) }) })
    .execute()
}

/** A sign-in that was refused. The same for an address that nobody has, so that it takes as long. */
export const recordRefusedSignIn = statement(
  'record_refused_sign_in',
  (_, $: { email: string }) => sql<never>`
  insert into audit_events (action, detail) values ('session.refused', jsonb_build_object('email', ${$.email}::text))`,
  { writes: true }
)

/** An attempt of a signed-in person that was refused, in the tenant of their token. */
export const recordDenial = statement(
  'record_denial',
  (_, $: { session_id: string; method: string; route: string }) => sql<never>`
  insert into audit_events (action, session_id, detail)
  values ('authz.denied', ${$.session_id}, jsonb_build_object('method', ${$.method}::text, 'route', ${$.route}::text))`,
  { writes: true }
)
