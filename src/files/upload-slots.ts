import type { IncomingMessage } from 'node:http'
import { overloaded, requestTimeout } from '../http/problems.ts'
import { createBoundedQueue, QueueFull } from '../limits/bounded-queue.ts'
import { createKeyedSemaphore, SemaphoreExhausted } from '../limits/keyed-semaphore.ts'
import { type BodyState, createRateMeter, type RateMeter } from './minimum-rate.ts'

export type UploadOwner = { user_id: string | null; tenant_id: string }

type Waiter = { person: string | null; owners: readonly string[] }
type Upload = Waiter & { meter: RateMeter; ending: AbortController }

/** The interval at which the rates of the running uploads are sampled. */
export const sampleIntervalMs = 1000
const retryLater = { 'retry-after': '5' }

/**
 * Limits the concurrent uploads: of one person, of one tenant (both by `perOwner`), and in total (by `total`). A
 * further upload waits for a slot, and fails with `overloaded` when too many wait or when it waits too long.
 *
 * A running upload below the minimum rate is always ended. While an upload waits, the slowest running upload of
 * somebody else below the preemption rate is ended, one at a time. When the waiting upload's tenant has no free slot,
 * only uploads of that tenant are candidates; when its person has none, no upload is ended. An upload learns of its end
 * by the signal that `work` receives.
 */
export function createUploadSlots(
  perOwner: { concurrency: number; depth: number; timeoutMs: number },
  total: { concurrency: number; depth: number; timeoutMs: number }
) {
  const queue = createBoundedQueue(total.concurrency, total.depth, total.timeoutMs)
  const semaphore = createKeyedSemaphore(perOwner)
  const running = new Set<Upload>()
  const waiting = new Set<Waiter>()
  let preempted = 0
  let timer: NodeJS.Timeout | undefined

  /** Runs `work` in a slot. Throws `overloaded` when there is none in time. */
  async function run<T>(
    request: IncomingMessage,
    { user_id, tenant_id }: UploadOwner,
    work: (signal: AbortSignal) => Promise<T>
  ): Promise<T> {
    const waiter = { person: user_id, owners: user_id === null ? [tenant_id] : [user_id, tenant_id] }
    waiting.add(waiter)
    try {
      return await semaphore.run(waiter.owners, () =>
        queue.run(() => {
          waiting.delete(waiter)
          return runInSlot(request, waiter, work)
        }, tenant_id)
      )
    } catch (err) {
      if (err instanceof QueueFull || err instanceof SemaphoreExhausted)
        throw overloaded({ headers: retryLater, cause: err })
      throw err
    } finally {
      waiting.delete(waiter)
    }
  }

  async function runInSlot<T>(
    request: IncomingMessage,
    waiter: Waiter,
    work: (signal: AbortSignal) => Promise<T>
  ): Promise<T> {
    const upload = { ...waiter, meter: createRateMeter(() => bodyStateOf(request)), ending: new AbortController() }
    running.add(upload)
    // setImmediate: a busy event loop fires timers before it reads the bytes that have arrived meanwhile
    timer ??= setInterval(() => setImmediate(sampleAll), sampleIntervalMs).unref()
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

  function sampleAll(): void {
    for (const { meter, ending } of running) {
      meter.sample()
      if (meter.isBelowMinimum()) ending.abort(requestTimeout())
    }
    // an aborted upload frees its slot in a moment, so preempt no other one now
    if ([...running].some(({ ending }) => ending.signal.aborted)) return
    for (const waiter of waiting) if (preemptFor(waiter)) return
  }

  /** Ends the slowest upload that may be preempted for the waiter. Returns false when there is none. */
  function preemptFor({ person, owners }: Waiter): boolean {
    const exhausted = owners.find((owner) => slotsHeldBy(owner) >= perOwner.concurrency)
    let slowest: Upload | undefined
    let lowestRate = Number.POSITIVE_INFINITY
    for (const upload of running) {
      const rate = upload.meter.rateBelowPreemption()
      const isOwn = upload.person !== null && upload.person === person
      if (rate === undefined || rate >= lowestRate || isOwn) continue
      if (exhausted !== undefined && !upload.owners.includes(exhausted)) continue
      slowest = upload
      lowestRate = rate
    }
    if (!slowest) return false
    preempted++
    const detail = 'the upload came slowly while others waited for its place'
    slowest.ending.abort(overloaded({ detail, headers: retryLater }))
    return true
  }

  function slotsHeldBy(owner: string): number {
    let held = 0
    for (const { owners } of running) if (owners.includes(owner)) held++
    return held
  }

  return { run, stats: () => ({ running: running.size, waiting: waiting.size, preempted }) }
}

/** The server waits for the client while the body is incomplete and every byte received so far has been read. */
function bodyStateOf({ socket, complete, readableLength }: IncomingMessage): BodyState {
  return { bytes: socket?.bytesRead ?? 0, awaited: complete === false && readableLength === 0 }
}
