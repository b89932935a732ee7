export type Poller = Pick<ReturnType<typeof createPoller<unknown>>, 'start' | 'wake' | 'stop'>

/**
 * Runs `work` again and again, `intervalMs` after the end of the last run. One run is in progress at a time. The timer
 * does not keep the process alive. `jitter` is the part of the interval of which a random share is left out.
 *
 * A failed run is reported to `onError` once, and the next run comes after the same interval. `work` gets a signal that
 * is aborted when the poller stops, so that a long run can end early.
 */
export function createPoller<Result = void>({
  intervalMs,
  jitter = 0,
  work,
  onError
}: {
  intervalMs: number
  jitter?: number
  work: (stopping: AbortSignal) => Promise<Result>
  onError: (err: unknown) => void
}) {
  const stopping = new AbortController()
  const { signal } = stopping
  let timer: NodeJS.Timeout | undefined
  let running: Promise<Result> | undefined
  let next: Promise<Result | undefined> | undefined
  let started = false

  function schedule(): void {
    if (!started || signal.aborted) return
    timer = setTimeout(wake, intervalMs * (1 - jitter * Math.random()))
    timer.unref()
  }

  function begin(): Promise<Result | undefined> {
    if (signal.aborted) return Promise.resolve(undefined)
    clearTimeout(timer)
    running = work(signal)
      .catch((err) => {
        onError(err)
        throw err
      })
      .finally(() => {
        running = undefined
        schedule()
      })
    return running
  }

  /**
   * Runs the work now, or after the run in progress; all callers that wait share the next run. So what was true when
   * `run` was called is seen by the run that it waits for. Resolves to what the work resolves to, and rejects when that
   * run fails. Does nothing, and resolves to undefined, when the poller is stopped.
   */
  function run(): Promise<Result | undefined> {
    if (next) return next
    if (!running) return begin()
    next = running
      .catch(() => {})
      .then(() => {
        next = undefined
        return begin()
      })
    return next
  }

  function wake(): void {
    run().catch(() => {})
  }

  return {
    run,
    /** Starts the timer. The first run comes after the interval, unless the poller is woken earlier. */
    start(): void {
      if (started) return
      started = true
      if (!running) schedule()
    },
    /** Like `run`, for callers that do not wait. The run begins after the caller's current turn of the event loop. */
    wake: () => void setImmediate(wake),
    /** Begins no more runs, and resolves when the run in progress has ended. May be called more than once. */
    async stop(): Promise<void> {
      stopping.abort()
      clearTimeout(timer)
      await Promise.allSettled([running, next])
    }
  }
}
