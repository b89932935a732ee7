import { allows, type Role } from '../auth/roles.ts'
import { type EventType, eventTypes } from './event-types.ts'

/** An event as the log has it. */
type LoggedEvent = {
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
 * An event as the bytes of a stream. `whole` is for admins. `brief` is for all others: without `session_id` and `detail`.
 * `isOpen`: every role sees it. Those with `isOpen` false are seen by admins, and by the two people that they name.
 */
export type StreamedEvent = Pick<LoggedEvent, 'position' | 'actor_id' | 'target_id'> & {
  whole: Buffer
  brief: Buffer
  isOpen: boolean
}

export function toStreamed(event: LoggedEvent): StreamedEvent {
  const { id, type, created_at, position, actor_id, target_id, session_id, detail } = event
  const brief = { id, type, created_at, position, actor_id, target_id }
  // a type that this version does not know, of a newer one that runs beside it, is for admins
  const seenBy = eventTypes[type as EventType]?.seen_by ?? 'admin'
  return {
    position,
    actor_id,
    target_id,
    whole: messageOf({ id, event: type, data: { ...brief, session_id, detail } }),
    brief: messageOf({ id, event: type, data: brief }),
    isOpen: seenBy === 'viewer'
  }
}

/** The bytes of the event that this person may see, or undefined. */
export function visibleTo(
  { user_id, role }: { user_id: string; role: Role },
  { whole, brief, isOpen, actor_id, target_id }: StreamedEvent
): Buffer | undefined {
  if (allows('admin', role)) return whole
  return isOpen || actor_id === user_id || target_id === user_id ? brief : undefined
}

/** Writes a message of a stream (WHATWG HTML, 9.2.6). A message without data only sets what the client resumes by. */
export function messageOf({ data, ...fields }: { id?: string; event?: string; retry?: number; data?: object }): Buffer {
  const lines = Object.entries(fields).map(([name, value]) => `${name}: ${value}\n`)
  // JSON has no line breaks between its tokens, and escapes those in texts
  return Buffer.from(`${lines.join('')}${data ? `data: ${JSON.stringify(data)}\n` : ''}\n`)
}
