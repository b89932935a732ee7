import { ExpectedError } from '../expected-error.ts'
import { createRoundRobinQueue } from './round-robin-queue.ts'

/**
 * Thrown for a job that finds the queue full, is evicted from it for another fairness key, or waits longer than the
 * timeout.
 */
export class QueueFull extends ExpectedError {}

type Waiter = { start(): void; refuse(err: QueueFull): void }

/**
 * Runs at most `concurrency` jobs at once and queues at most `depth` more. A queued job fails with QueueFull after
 * `timeoutMs`.
 *
 * Queued jobs are served round robin by fairness key. When the queue is full, the newest job of the key with the most
 * queued jobs is evicted for a job of a key with fewer, so that a flood from one key does not keep the others out.
 * Without such a key the new job fails with QueueFull at once.
 *
 * A running job holds its slot until it settles, even if its client has gone. So a flood of aborted requests can't
 * start more than `concurrency` jobs.
 */
export function createBoundedQueue(concurrency: number, depth: number, timeoutMs: number) {
  const waiting = createRoundRobinQueue<Waiter>()
  let running = 0
  let refused = 0

  async function run<T>(job: () => Promise<T>, fairnessKey = ''): Promise<T> {
    if (running < concurrency) running++
    else await wait(fairnessKey)
    try {
      return await job()
    } finally {
      const next = waiting.take()
      // the slot goes straight to the next waiter, so that no new job can take it in between
      if (next) next.start()
      else running--
    }
  }

  function wait(fairnessKey: string): Promise<void> {
    if (waiting.size() >= depth) {
      refused++
      const refusal = new QueueFull()
      const evicted = waiting.evictFor(fairnessKey)
      if (!evicted) throw refusal
      evicted.refuse(refusal)
    }
    return new Promise((start, refuse) => {
      const waiter = { start, refuse }
      waiting.add(waiter, fairnessKey)
      const giveUp = () => {
        if (!waiting.remove(waiter, fairnessKey)) return
        refused++
        refuse(new QueueFull())
      }
      // setImmediate: a busy event loop fires timers before it reads the I/O that would have freed a slot
      const timer = setTimeout(() => setImmediate(giveUp), timeoutMs)
      waiter.start = () => {
        clearTimeout(timer)
        start()
      }
      waiter.refuse = (err) => {
        clearTimeout(timer)
        refuse(err)
      }
    })
  }

  return { run, stats: () => ({ running, waiting: waiting.size(), refused }) }
}
