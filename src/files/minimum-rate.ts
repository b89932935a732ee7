/** Slower than any network that people still use: whoever is holds a place for nothing. */
export const slowest = { bytes_per_second: 1024, grace_ms: 60_000 }
/** Whoever was slower of late gives their place up to somebody else who waits for one. Of so many times that it was looked at. */
export const floor = { bytes_a_second: 64 * 1024, looks: 5, min_ms: 4000 }

/** What can be seen of a body at one moment: bytes that have come, and whether more of them are waited for. */
export type Arrival = { bytes: number; awaited: boolean }

/**
 * How fast a body comes, looked at now and then. Only the time in which its sender is waited for counts, and not that in which the
 * sender waits.
 */
export function createPace(read: () => Arrival, limits = slowest) {
  const recent: { ms: number; bytes: number }[] = []
  let known = { at: performance.now(), bytes: read().bytes }
  let awaitedMs = 0
  let total = 0

  return {
    look(at = performance.now()): void {
      const { bytes, awaited } = read()
      const seen = { ms: awaited ? at - known.at : 0, bytes: bytes - known.bytes }
      known = { at, bytes }
      awaitedMs += seen.ms
      total += seen.bytes
      recent.push(seen)
      if (recent.length > floor.looks) recent.shift()
    },

    /** Slower than anybody may be, on average. */
    isTooSlow: (): boolean => awaitedMs > limits.grace_ms && total < (awaitedMs / 1000) * limits.bytes_per_second,

    /** Bytes a second of late, where that is too little to keep a place that others wait for; else undefined. */
    belowFloor(): number | undefined {
      const ms = recent.reduce((sum, each) => sum + each.ms, 0)
      const pace = (recent.reduce((sum, each) => sum + each.bytes, 0) / ms) * 1000
      return ms >= floor.min_ms && pace < floor.bytes_a_second ? pace : undefined
    }
  }
}

/** What a promise gives, unless the signal is given before: then its reason is thrown. */
export function unlessEnded<T>(signal: AbortSignal | undefined, promise: Promise<T>): Promise<T> {
  if (!signal) return promise
  return new Promise((resolve, reject) => {
    const end = () => reject(signal.reason)
    if (signal.aborted) end()
    signal.addEventListener('abort', end, { once: true })
    promise.then(resolve, reject).finally(() => signal.removeEventListener('abort', end))
  })
}

/** Passes a content on until the signal is given, and throws its reason then, also while nothing comes. */
export async function* untilEnded(
  signal: AbortSignal | undefined,
  content: AsyncIterable<Buffer>
): AsyncGenerator<Buffer> {
  const source = content[Symbol.asyncIterator]()
  let isAsked = false
  try {
    for (;;) {
      isAsked = true
      const next = await unlessEnded(signal, source.next())
      isAsked = false
      if (next.done) return
      yield next.value
    }
  } finally {
    // one that is asked answers once something comes, and nobody waits for that
    if (!isAsked) await source.return?.()
  }
}
