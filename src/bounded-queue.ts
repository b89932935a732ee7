/** Thrown instead of queueing when as much waits as may wait, and to a waiting job that gives way to another party. */
export class QueueFull extends Error {}

type Waiter = { start(): void; refuse(err: QueueFull): void }

/**
 * Runs at most `width` jobs at once and lets at most `depth` wait; one more is refused at once with QueueFull.
 *
 * Parties take turns, however many jobs each has waiting. When no more may wait, the latest job of the party with the most gives
 * way to one of a party with fewer, so that nobody's flood keeps others out.
 *
 * The place is held by the job and not by who asked for it: a client that goes away frees nothing, so a flood of aborted
 * requests can't start more work than `width`.
 */
export function createBoundedQueue(width: number, depth: number) {
  // in the order in which parties have their turn
  const waiting = new Map<string, Waiter[]>()
  let running = 0
  let count = 0
  let refused = 0

  async function run<T>(job: () => Promise<T>, party = ''): Promise<T> {
    if (running < width) running++
    else await wait(party)
    try {
      return await job()
    } finally {
      const next = takeNext()
      // the place is handed over, not given back, so that nobody slips in between
      if (next) next.start()
      else running--
    }
  }

  function wait(party: string): Promise<void> {
    if (count >= depth && !makeRoom(waiting.get(party)?.length ?? 0)) {
      refused++
      throw new QueueFull()
    }
    count++
    return new Promise((start, refuse) => {
      const own = waiting.get(party)
      if (own) own.push({ start, refuse })
      else waiting.set(party, [{ start, refuse }])
    })
  }

  /** False: nobody has more waiting than who asks would have. */
  function makeRoom(own: number): boolean {
    let largest: [string, Waiter[]] | undefined
    for (const each of waiting) if (each[1].length > (largest?.[1].length ?? own + 1)) largest = each
    const last = largest?.[1].pop()
    if (!last) return false
    count--
    refused++
    last.refuse(new QueueFull())
    return true
  }

  function takeNext(): Waiter | undefined {
    for (const [party, waiters] of waiting) {
      const next = waiters.shift()
      waiting.delete(party)
      if (waiters.length > 0) waiting.set(party, waiters)
      if (next) count--
      return next
    }
    return undefined
  }

  return { run, stats: () => ({ running, waiting: count, refused }) }
}
