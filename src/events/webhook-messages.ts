/** An event as it is sent. `position` orders the events of an agency; a test has none. */
export type WebhookEvent = {
  type: string
  created_at: Date
  id: string
  tenant_id: string
  position: number | null
  actor_id: string | null
  target_id: string | null
  session_id: string | null
  detail: Record<string, unknown> | null
}

/** The type of a test delivery. It is no event, and is sent whatever types an endpoint wants. */
export const testType = 'webhook.test'

/** The body of a message. It has the same bytes at each attempt. */
export function webhookBody(event: WebhookEvent): string {
  const { type, created_at, id, tenant_id, position, actor_id, target_id, session_id, detail } = event
  return JSON.stringify({
    type,
    timestamp: created_at.toISOString(),
    data: { id, tenant_id, position, actor_id, target_id, session_id, detail }
  })
}
