import { setTimeout as sleep } from 'node:timers/promises'
import t from 'tap'
import { processDue } from '../src/due-work.ts'

/** A queue of this many items, with what was claimed and worked on. */
function queueOf(count: number) {
  const waiting = Array.from({ length: count }, (_, i) => i)
  const seen = { claims: 0, begun: [] as number[], ended: [] as number[], atOnce: 0 }
  return {
    seen,
    async claim(batch: number) {
      seen.claims++
      return waiting.splice(0, batch)
    },
    async work(item: number) {
      seen.begun.push(item)
      seen.atOnce = Math.max(seen.atOnce, seen.begun.length - seen.ended.length)
      await sleep(1)
      seen.ended.push(item)
    }
  }
}
const { signal: stopping } = new AbortController()

t.test('batches are claimed until one is not full', async (t) => {
  for (const [count, claims] of [
    [0, 1],
    [9, 1],
    [10, 2],
    [25, 3]
  ] as const) {
    const { seen, claim, work } = queueOf(count)
    await processDue({ claim, batch: 10, work, stopping })
    t.equal(seen.claims, claims, `${count} items`)
    t.strictSame(
      seen.ended,
      Array.from({ length: count }, (_, i) => i)
    )
    t.ok(seen.atOnce <= 1, 'one after the other')
  }
})

t.test('no more items than may are worked on at once', async (t) => {
  const { seen, claim, work } = queueOf(50)
  await processDue({ claim, batch: 20, concurrency: 7, work, stopping })
  t.equal(seen.ended.length, 50)
  t.equal(seen.atOnce, 7)
})

t.test('a slow item holds one place, and the next batch is claimed without it', async (t) => {
  const { seen, claim, work } = queueOf(20)
  const slow = Promise.withResolvers<void>()
  const all = processDue({
    claim,
    batch: 4,
    concurrency: 4,
    work: (item) => (item === 0 ? slow.promise.then(() => work(item)) : work(item)),
    stopping
  })
  while (seen.ended.length < 19) await sleep(1)
  slow.resolve()
  await all
  t.equal(seen.ended.at(-1), 0)
})

t.test('after a rejection nothing begins, and the call rejects when what is under way has ended', async (t) => {
  const { seen, claim, work } = queueOf(20)
  const fault = new Error('away')
  const all = processDue({
    claim,
    batch: 10,
    concurrency: 3,
    async work(item) {
      if (item === 2) throw fault
      await work(item)
    },
    stopping
  })
  await t.rejects(all, fault)
  t.strictSame(seen.ended, [0, 1])
  t.equal(seen.claims, 1)
})

t.test('nor when a claim is rejected', async (t) => {
  const { seen, claim, work } = queueOf(10)
  const all = processDue({
    claim: (batch) => (seen.claims === 1 ? Promise.reject(new Error('away')) : claim(batch)),
    batch: 2,
    concurrency: 3,
    work,
    stopping
  })
  await t.rejects(all, { message: 'away' })
  t.strictSame(seen.ended, [0, 1], 'what was under way has ended')
})

t.test('after the stop nothing is claimed and no claimed item begins', async (t) => {
  const { seen, claim, work } = queueOf(30)
  const stop = new AbortController()
  await processDue({
    claim,
    batch: 10,
    concurrency: 2,
    async work(item) {
      if (item === 4) stop.abort()
      await work(item)
    },
    stopping: stop.signal
  })
  t.strictSame(seen.begun, seen.ended)
  t.equal(seen.claims, 1)
  t.ok(seen.begun.length <= 5, `${seen.begun.length}`)
})
