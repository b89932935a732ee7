import { setTimeout as sleep } from 'node:timers/promises'
import t, { type Test } from 'tap'
import { createPoller } from '../src/poller.ts'

/** A poller whose runs last `runMs` and are counted. */
function startPoller(t: Test, { intervalMs, runMs = 0 }: { intervalMs: number; runMs?: number }) {
  const counts = { begun: 0, ended: 0, atOnce: 0, failed: 0 }
  let failing = false
  const poller = createPoller({
    intervalMs,
    async work() {
      counts.begun++
      counts.atOnce = Math.max(counts.atOnce, counts.begun - counts.ended)
      await sleep(runMs)
      counts.ended++
      if (failing) throw new Error('a fault')
    },
    onError() {
      counts.failed++
    }
  })
  t.teardown(() => poller.stop())
  return {
    ...poller,
    counts,
    fail(whether: boolean) {
      failing = whether
    }
  }
}

const never = 3_600_000

t.test('the work runs again and again, one run at a time', async (t) => {
  const { start, stop, counts } = startPoller(t, { intervalMs: 1, runMs: 5 })
  t.equal(counts.begun, 0)
  start()
  start()
  while (counts.ended < 5) await sleep(1)
  await stop()
  t.equal(counts.atOnce, 1)
})

t.test('a poller that was not started only runs when it is called', async (t) => {
  const { run, counts } = startPoller(t, { intervalMs: 1 })
  await run()
  await sleep(20)
  t.equal(counts.begun, 1)
})

t.test('a wake does not wait for the interval, and leaves the current turn of the event loop alone', async (t) => {
  const { start, wake, counts } = startPoller(t, { intervalMs: never })
  start()
  wake()
  await Promise.resolve()
  t.equal(counts.begun, 0)
  while (counts.ended < 1) await sleep(1)
})

t.test('wakes during a run mean one more run', async (t) => {
  const { run, wake, counts } = startPoller(t, { intervalMs: never, runMs: 20 })
  const first = run()
  for (let count = 0; count < 5; count++) wake()
  const [second, third] = [run(), run()]
  t.equal(second, third)
  t.equal(counts.begun, 1)
  await first
  await second
  await sleep(30)
  t.strictSame(counts, { begun: 2, ended: 2, atOnce: 1, failed: 0 })
})

t.test('each failed run is reported once, and the work goes on', async (t) => {
  const { start, run, wake, fail, counts } = startPoller(t, { intervalMs: 1, runMs: 1 })
  fail(true)
  const runs = [run(), run(), run()]
  wake()
  for (const result of await Promise.allSettled(runs)) t.equal(result.status, 'rejected')
  t.equal(counts.failed, 2)
  start()
  while (counts.failed < 4) await sleep(1)
  fail(false)
  await run()
})

t.test('a stop waits for the run in progress, and no other run follows', async (t) => {
  const { start, run, wake, stop, counts } = startPoller(t, { intervalMs: 1, runMs: 20 })
  start()
  const running = run()
  const waiting = run()
  wake()
  await Promise.all([stop(), stop()])
  t.equal(counts.ended, 1)
  await Promise.all([running, waiting])
  start()
  wake()
  await run()
  await sleep(20)
  t.equal(counts.begun, 1)
})

t.test('the work learns that the poller stops', async (t) => {
  const poller = createPoller({
    intervalMs: never,
    work: (stopping) => new Promise<void>((done) => stopping.addEventListener('abort', () => done())),
    onError: (err) => t.fail(String(err))
  })
  const running = poller.run()
  await poller.stop()
  await running
})

t.test('a random share of the interval is left out', async (t) => {
  const { random } = Math
  t.teardown(() => {
    Math.random = random
  })
  Math.random = () => 1
  let runs = 0
  const poller = createPoller({
    intervalMs: never,
    jitter: 1,
    work: async () => void runs++,
    onError: (err) => t.fail(String(err))
  })
  t.teardown(() => poller.stop())
  poller.start()
  while (runs < 3) await sleep(1)
  await poller.stop()
})
