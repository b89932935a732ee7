/** Thrown instead of queueing when as much waits as may wait. */
export class QueueFull extends Error {}

/**
 * Runs at most `width` jobs at once and lets at most `depth` wait; one more is refused at once with QueueFull.
 *
 * The place is held by the job and not by who asked for it: a client that goes away frees nothing, so a flood of aborted
 * requests can't start more work than `width`.
 */
export function createBoundedQueue(width: number, depth: number) {
  let running = 0
  let refused = 0
  const waiting: (() => void)[] = []

  async function run<T>(job: () => Promise<T>): Promise<T> {
    if (running >= width) {
      if (waiting.length >= depth) {
        refused++
        throw new QueueFull()
      }
      await new Promise<void>((start) => waiting.push(start))
    } else {
      running++
    }
    try {
      return await job()
    } finally {
      const next = waiting.shift()
      // the place is handed over, not given back, so that nobody slips in between
      if (next) next()
      else running--
    }
  }

  return { run, stats: () => ({ running, waiting: waiting.length, refused }) }
}
