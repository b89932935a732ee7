import { QueueFull } from './bounded-queue.ts'

/**
 * Runs at most `width` jobs at once, and of one key at most `share`, so that nobody takes every place; at most `depth` wait, and
 * one more is refused at once with QueueFull.
 */
export function createFairQueue({ width, share, depth }: { width: number; share: number; depth: number }) {
  const running = new Map<string, number>()
  const waiting: { key: string; start: () => void }[] = []
  let total = 0

  const free = (key: string) => total < width && (running.get(key) ?? 0) < share
  function take(key: string): void {
    total++
    running.set(key, (running.get(key) ?? 0) + 1)
  }
  function give(key: string): void {
    total--
    const left = (running.get(key) ?? 1) - 1
    if (left > 0) running.set(key, left)
    else running.delete(key)
    const index = waiting.findIndex((each) => free(each.key))
    const [next] = index < 0 ? [] : waiting.splice(index, 1)
    if (!next) return
    // taken for it, so that nobody slips in between
    take(next.key)
    next.start()
  }

  async function run<T>(key: string, job: () => Promise<T>): Promise<T> {
    if (free(key)) take(key)
    else if (waiting.length >= depth) throw new QueueFull()
    else await new Promise<void>((start) => waiting.push({ key, start }))
    try {
      return await job()
    } finally {
      give(key)
    }
  }

  return { run, stats: () => ({ running: total, waiting: waiting.length }) }
}
