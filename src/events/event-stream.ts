import { Readable } from 'node:stream'
import type { AccessClaims } from '../auth/claims.ts'
import { nameResumePoint } from './resume-points.ts'
import { messageOf, type StreamedEvent, visibleTo } from './streamed-events.ts'

/** What a stream keeps for a reader who takes nothing. What comes then is read again from the log. */
const bufferBytes = 16 * 1024
/** A reader who takes nothing for so long is disconnected, and resumes later. */
export const stalledMs = 30_000
/** Between heartbeats, which show proxies and readers that the connection lives. */
export const heartbeatMs = 15_000
/** When readers come again after the end of a stream: between these, so that not all of them come at once. */
export const retryMs = { min: 500, max: 2500 }

const heartbeat = Buffer.from(':\n\n')

/** The stream of one reader. Keeps at most `bufferBytes` and one page of events for them. */
export class EventStream extends Readable {
  readonly claims: AccessClaims
  /** The reader was given every event up to this position that they may see. */
  reached: number
  /** The reader takes bytes. */
  hasRoom = true
  /** The reader gets events as they come. False while they are behind, and read the log. */
  isLive = false
  isReading = false
  sent = 0
  /** The position that the reader resumes by. */
  #named: number
  #movedAt = performance.now()
  #beatAt = performance.now()
  readonly #onRoom: (stream: EventStream) => void

  constructor(claims: AccessClaims, reached: number, onRoom: (stream: EventStream) => void) {
    super({ highWaterMark: bufferBytes })
    this.claims = claims
    this.reached = reached
    this.#named = reached
    this.#onRoom = onRoom
  }

  override _read(): void {
    this.hasRoom = true
    this.#movedAt = performance.now()
    this.#onRoom(this)
  }

  /** Sends the first bytes, with which the headers go. `isReset`: the reader can't resume where they were. */
  begin({ isNew, isReset }: { isNew: boolean; isReset: boolean }): void {
    const retry = Math.round(retryMs.min + Math.random() * (retryMs.max - retryMs.min))
    this.#send(messageOf({ retry, ...((isNew || isReset) && { id: this.#resumePoint() }) }))
    if (isReset) this.#send(messageOf({ event: 'reset', data: {} }))
  }

  /** Sends the event if it is new to the reader and they may see it. */
  give(event: StreamedEvent): void {
    if (event.position <= this.reached) return
    this.reached = event.position
    const message = visibleTo(this.claims, event)
    if (!message) return
    this.sent++
    this.#named = event.position
    this.#send(message)
  }

  /** Sends a heartbeat when one is due. Tells whether the reader has stalled. */
  beat(now: number): boolean {
    if (!this.hasRoom) return now - this.#movedAt > stalledMs
    if (now - this.#beatAt < heartbeatMs) return false
    // so that a reader who sees few events does not resume at an old one
    this.#send(this.reached > this.#named ? messageOf({ id: this.#resumePointOfBeat() }) : heartbeat)
    return false
  }

  finishAfter(ms: number): void {
    const timer = setTimeout(() => this.finish(), ms).unref()
    this.once('close', () => clearTimeout(timer))
  }

  /** Ends the stream. A reader who takes nothing is cut off. */
  finish(): void {
    if (this.hasRoom) this.push(null)
    else this.destroy()
  }

  #resumePoint(at: number = Date.now()): string {
    this.#named = this.reached
    return nameResumePoint({ position: this.reached, at })
  }

  /** Of a reader who is behind, it has the time up to which they have read: positions are microseconds. */
  #resumePointOfBeat(): string {
    return this.#resumePoint(this.isLive ? Date.now() : Math.min(Date.now(), Math.floor(this.reached / 1000)))
  }

  #send(bytes: Buffer): void {
    this.#beatAt = performance.now()
    if (this.push(bytes)) return
    this.hasRoom = false
    this.#movedAt = this.#beatAt
  }
}
