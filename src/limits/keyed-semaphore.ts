import { ExpectedError } from '../expected-error.ts'

/** Thrown for a job that finds too many jobs waiting for the same key, or waits longer than the timeout. */
export class SemaphoreExhausted extends ExpectedError {}

type Semaphore = { held: number; waiting: (() => void)[] }

/**
 * A semaphore for each key: at most `concurrency` jobs of one key run at once. A job may have several keys, for example
 * a person and their agency. It takes a permit of each key, one after the other in the given order, and counts for each
 * of them.
 *
 * A job waits only for jobs that share a key with it: at most `timeoutMs` for all its keys together, and behind at most
 * `depth` other jobs of a key. Beyond either bound it fails with SemaphoreExhausted. A key is stored only while one of
 * its jobs runs.
 */
export function createKeyedSemaphore({
  concurrency,
  depth,
  timeoutMs
}: {
  concurrency: number
  depth: number
  timeoutMs: number
}) {
  const semaphores = new Map<string, Semaphore>()

  async function run<T>(keys: readonly string[], job: () => Promise<T>): Promise<T> {
    let acquired = 0
    let deadline = 0
    try {
      for (const key of keys) {
        const semaphore = semaphores.get(key) ?? { held: 0, waiting: [] }
        semaphores.set(key, semaphore)
        if (semaphore.held < concurrency) semaphore.held++
        else {
          deadline ||= performance.now() + timeoutMs
          await wait(semaphore, deadline - performance.now())
        }
        acquired++
      }
      return await job()
    } finally {
      while (acquired > 0) release(keys[--acquired] as string)
    }
  }

  function release(key: string): void {
    const semaphore = semaphores.get(key) as Semaphore
    const next = semaphore.waiting.shift()
    // the permit goes straight to the next waiter, so that no new job can take it in between
    if (next) next()
    else if (--semaphore.held === 0) semaphores.delete(key)
  }

  function wait({ waiting }: Semaphore, forMs: number): Promise<void> {
    if (waiting.length >= depth) throw new SemaphoreExhausted('too many wait for their share')
    return new Promise((resolve, reject) => {
      const start = () => {
        clearTimeout(timer)
        resolve()
      }
      const giveUp = () => {
        const index = waiting.indexOf(start)
        if (index === -1) return
        waiting.splice(index, 1)
        reject(new SemaphoreExhausted('the share stayed taken'))
      }
      // setImmediate: a busy event loop fires timers before it reads the I/O that would have freed a permit
      const timer = setTimeout(() => setImmediate(giveUp), forMs)
      waiting.push(start)
    })
  }

  return { run, size: () => semaphores.size }
}
