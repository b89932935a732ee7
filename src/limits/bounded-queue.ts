import { ExpectedError } from '../expected-error.ts'
import { createTurns } from './round-robin-queue.ts'

/** Thrown instead of queueing when as much waits as may wait, to a waiting job that gives way to another party, or waits too long. */
export class QueueFull extends ExpectedError {}

type Waiter = { start(): void; refuse(err: QueueFull): void }

/**
 * Runs at most `width` jobs at once and lets at most `depth` wait, for `patienceMs` at most; one more is refused at once with
 * QueueFull.
 *
 * Parties take turns, however many jobs each has waiting. When no more may wait, the latest job of the party with the most gives
 * way to one of a party with fewer, so that nobody's flood keeps others out.
 *
 * The place is held by the job and not by who asked for it: a client that goes away frees nothing, so a flood of aborted
 * requests can't start more work than `width`.
 */
export function createBoundedQueue(width: number, depth: number, patienceMs = Number.POSITIVE_INFINITY) {
  const waiting = createTurns<Waiter>()
  let running = 0
  let refused = 0

  async function run<T>(job: () => Promise<T>, party = ''): Promise<T> {
    if (running < width) running++
    else await wait(party)
    try {
      return await job()
    } finally {
      const next = waiting.take()
      // the place is handed over, not given back, so that nobody slips in between
      if (next) next.start()
      else running--
    }
  }

  function wait(party: string): Promise<void> {
    if (waiting.size() >= depth) {
      refused++
      const refusal = new QueueFull()
      const last = waiting.takeBack(party)
      if (!last) throw refusal
      last.refuse(refusal)
    }
    return new Promise((start, refuse) => {
      const waiter = { start, refuse }
      waiting.add(waiter, party)
      if (patienceMs === Number.POSITIVE_INFINITY) return
      const giveUp = () => {
        if (!waiting.remove(waiter, party)) return
        refused++
        refuse(new QueueFull())
      }
      // a busy event loop fires timers before it reads what would have ended the wait
      const patience = setTimeout(() => setImmediate(giveUp), patienceMs)
      waiter.start = () => {
        clearTimeout(patience)
        start()
      }
      waiter.refuse = (err) => {
        clearTimeout(patience)
        refuse(err)
      }
    })
  }

  return { run, stats: () => ({ running, waiting: waiting.size(), refused }) }
}
