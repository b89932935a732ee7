/**
 * The minimum average rate of an upload, slower than any network still in use. An upload below it would hold its slot
 * for nothing.
 */
export const minimumRate = { bytes_per_second: 1024, grace_ms: 60_000 }
/**
 * An upload below this rate is preempted when another one waits for its slot. The rate is the average of the last
 * `samples`, which must cover at least `min_ms` of waiting for the client.
 */
export const preemption = { bytes_per_second: 64 * 1024, samples: 5, min_ms: 4000 }

/** A request body at one moment: the bytes received so far, and whether the server waits for more. */
export type BodyState = { bytes: number; awaited: boolean }

/**
 * Measures the rate of a request body from periodic samples. Only the time counts in which the server waits for the
 * client; the time in which the client waits for the server does not.
 */
export function createRateMeter(readState: () => BodyState, limits = minimumRate) {
  const recent: { ms: number; bytes: number }[] = []
  let last = { at: performance.now(), bytes: readState().bytes }
  let awaitedMs = 0
  let total = 0

  return {
    sample(at = performance.now()): void {
      const { bytes, awaited } = readState()
      const measured = { ms: awaited ? at - last.at : 0, bytes: bytes - last.bytes }
      last = { at, bytes }
      awaitedMs += measured.ms
      total += measured.bytes
      recent.push(measured)
      if (recent.length > preemption.samples) recent.shift()
    },

    /**
     * Whether the average rate since the beginning is below the minimum. False until the server has waited for
     * `grace_ms`.
     */
    isBelowMinimum: (): boolean => awaitedMs > limits.grace_ms && total < (awaitedMs / 1000) * limits.bytes_per_second,

    /** The recent rate in bytes per second, if it is low enough for preemption; else undefined. */
    rateBelowPreemption(): number | undefined {
      const ms = recent.reduce((sum, each) => sum + each.ms, 0)
      const rate = (recent.reduce((sum, each) => sum + each.bytes, 0) / ms) * 1000
      return ms >= preemption.min_ms && rate < preemption.bytes_per_second ? rate : undefined
    }
  }
}

export type RateMeter = ReturnType<typeof createRateMeter>
