import type { IncomingMessage } from 'node:http'
import { overloaded, requestTimeout } from '../http/problems.ts'
import { createBoundedQueue, QueueFull } from '../limits/bounded-queue.ts'
import { createShares, ShareExhausted } from '../limits/keyed-semaphore.ts'
import { type Arrival, createPace } from './minimum-rate.ts'

export type UploadOwner = { user_id: string | null; tenant_id: string }

type Waiting = { person: string | null; owners: readonly string[] }
type Upload = Waiting & { pace: ReturnType<typeof createPace>; ending: AbortController }

/** How often uploads are looked at. */
export const lookMs = 1000
const retryLater = { 'retry-after': '5' }

/**
 * Places for uploads: so many in all, and of one person and of one tenant. One more waits, and is told in time when nothing comes of it.
 *
 * While somebody waits, the slowest upload of somebody else that is below the floor is ended: one at a time, and where the share of a
 * tenant is what they wait for, one of that tenant. An upload that is slower than anybody may be is ended whoever waits. Whoever
 * reads a body learns of its end by the signal.
 */
export function createUploadPlaces(
  shares: { width: number; depth: number; patienceMs: number },
  all: { width: number; depth: number; patienceMs: number }
) {
  const queue = createBoundedQueue(all.width, all.depth, all.patienceMs)
  const share = createShares(shares)
  const running = new Set<Upload>()
  const waiting = new Set<Waiting>()
  let yielded = 0
  let timer: NodeJS.Timeout | undefined

  /** Throws `overloaded`. */
  async function run<T>(
    request: IncomingMessage,
    { user_id, tenant_id }: UploadOwner,
    work: (signal: AbortSignal) => Promise<T>
  ): Promise<T> {
    const waiter = { person: user_id, owners: user_id === null ? [tenant_id] : [user_id, tenant_id] }
    waiting.add(waiter)
    try {
      return await share.run(waiter.owners, () =>
        queue.run(() => {
          waiting.delete(waiter)
          return hold(request, waiter, work)
        }, tenant_id)
      )
    } catch (err) {
      if (err instanceof QueueFull || err instanceof ShareExhausted)
        throw overloaded({ headers: retryLater, cause: err })
      throw err
    } finally {
      waiting.delete(waiter)
    }
  }

  async function hold<T>(
    request: IncomingMessage,
    waiter: Waiting,
    work: (signal: AbortSignal) => Promise<T>
  ): Promise<T> {
    const upload = { ...waiter, pace: createPace(() => arrivalOf(request)), ending: new AbortController() }
    running.add(upload)
    // a busy event loop fires timers before it reads what has come meanwhile
    timer ??= setInterval(() => setImmediate(look), lookMs).unref()
    try {
      return await work(upload.ending.signal)
    } finally {
      running.delete(upload)
      if (running.size === 0) {
        clearInterval(timer)
        timer = undefined
      }
    }
  }

  function look(): void {
    for (const { pace, ending } of running) {
      pace.look()
      if (pace.isTooSlow()) ending.abort(requestTimeout())
    }
    // whose place will be free in a moment
    if ([...running].some(({ ending }) => ending.signal.aborted)) return
    for (const waiter of waiting) if (makeRoom(waiter)) return
  }

  /** Ends the slowest of those that would make room. False: there is none. */
  function makeRoom({ person, owners }: Waiting): boolean {
    const spent = owners.find((owner) => heldBy(owner) >= shares.width)
    let slowest: Upload | undefined
    let slowestPace = Number.POSITIVE_INFINITY
    for (const upload of running) {
      const pace = upload.pace.belowFloor()
      const isOwn = upload.person !== null && upload.person === person
      if (pace === undefined || pace >= slowestPace || isOwn) continue
      if (spent !== undefined && !upload.owners.includes(spent)) continue
      slowest = upload
      slowestPace = pace
    }
    if (!slowest) return false
    yielded++
    const detail = 'the upload came slowly while others waited for its place'
    slowest.ending.abort(overloaded({ detail, headers: retryLater }))
    return true
  }

  function heldBy(owner: string): number {
    let held = 0
    for (const { owners } of running) if (owners.includes(owner)) held++
    return held
  }

  return { run, stats: () => ({ running: running.size, waiting: waiting.size, yielded }) }
}

/** A body is waited for as long as it is not whole and everything that has come of it is read. */
function arrivalOf({ socket, complete, readableLength }: IncomingMessage): Arrival {
  return { bytes: socket?.bytesRead ?? 0, awaited: complete === false && readableLength === 0 }
}
