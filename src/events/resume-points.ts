import { isUuid } from '../uuids.ts'

/** A place between two events: behind the event with this position. `at`: when it was the end of all events, in milliseconds. */
export type ResumePoint = { position: number; at: number }

const digits = (value: number, count: number) => Math.round(value).toString(16).padStart(count, '0')

/**
 * Names a place between two events by a UUID of version 8 (RFC 9562), so that a stream can be resumed there as at an event,
 * whose id is of version 7.
 *
 * A stream needs such a place before its first event, and behind events that its person may not see. It grants nothing: a
 * client that makes one up reads the same events of its own agency.
 */
export function nameResumePoint({ position, at }: ResumePoint): string {
  const time = digits(at, 12)
  const place = digits(position, 15)
  return `${time.slice(0, 8)}-${time.slice(8)}-8${place.slice(0, 3)}-8${place.slice(3, 6)}-000${place.slice(6)}`
}

/** Reads the name of a place. Undefined for all else, such as the id of an event. */
export function readResumePoint(name: string): ResumePoint | undefined {
  if (!isUuid(name) || name[14] !== '8') return undefined
  const at = Number.parseInt(name.slice(0, 8) + name.slice(9, 13), 16)
  const position = Number.parseInt(name.slice(15, 18) + name.slice(20, 23) + name.slice(27), 16)
  return { position, at }
}
