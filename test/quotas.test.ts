import { setTimeout as sleep } from 'node:timers/promises'
import t from 'tap'
import { CircuitOpen, createCircuitBreaker } from '../src/limits/circuit-breaker.ts'
import { createKeyedSemaphore } from '../src/limits/keyed-semaphore.ts'
import { createQuotas, type QuotaStore, type Quotas } from '../src/limits/leased-quotas.ts'

const hour = (max: number) => ({ max, window_ms: 3_600_000 })

/** What Redis does, within this process and with a hand on it. */
function createStore() {
  const windows = new Map<string, { used: number; ends_at: number }>()
  const state = { failing: false, calls: 0, granted: 0, empty: () => windows.clear() }
  const store: QuotaStore = {
    async take(key, { max, window_ms }, needed, spare) {
      state.calls++
      await sleep(0)
      if (state.failing) throw new Error('away')
      const now = performance.now()
      let window = windows.get(key)
      if (!window || window.ends_at <= now) window = { used: 0, ends_at: now + window_ms }
      windows.set(key, window)
      const left = Math.max(0, max - window.used)
      const granted = Math.min(left, needed + Math.min(spare, Math.floor(left / 8)))
      window.used += granted
      state.granted += granted
      return { granted, remaining: left - granted, ends_in_ms: window.ends_at - now }
    }
  }
  return { store, state }
}

/** Sends so many requests, one after the other. Resolves to the number that passed. */
async function pass(quotas: Quotas, count: number, rate: { max: number; window_ms: number }): Promise<number> {
  let passed = 0
  for (let i = 0; i < count; i++) if ((await quotas.count('key', rate)).allowed) passed++
  return passed
}

t.test('a process by itself', async (t) => {
  const quotas = createQuotas({ store: undefined, max: 100 })
  t.test('answers at once, counts down, and refuses until the window ends', (t) => {
    for (let left = 2; left >= 0; left--) t.match(quotas.count('a', hour(3)), { allowed: true, remaining: left })
    const verdict = quotas.count('a', hour(3))
    t.match(verdict, { allowed: false, remaining: 0 })
    if (!(verdict instanceof Promise)) t.ok(verdict.ends_in_ms > 3_590_000 && verdict.ends_in_ms <= 3_600_000)
    t.match(quotas.count('b', hour(3)), { allowed: true }, 'another key')
    t.end()
  })
  t.test('a window begins with its first request', async (t) => {
    const rate = { max: 2, window_ms: 300 }
    t.equal(await pass(quotas, 5, rate), 2)
    await sleep(310)
    t.equal(await pass(quotas, 5, rate), 2)
  })
  t.test('a quota that changes holds at once, both ways', async (t) => {
    const own = createQuotas({ store: undefined, max: 100 })
    t.equal(await pass(own, 10, hour(5)), 5)
    t.equal(await pass(own, 10, hour(8)), 3)
    t.equal(await pass(own, 10, hour(6)), 0)
  })
  t.test('remembers no more keys than it may', (t) => {
    for (let i = 0; i < 1000; i++) quotas.count(`key ${i}`, hour(3))
    t.equal(quotas.size(), 100)
    t.end()
  })
})

t.test('with a store', async (t) => {
  t.test('never lets more through in total, nor asks each time', async (t) => {
    const { store, state } = createStore()
    const processes = [1, 2, 3, 4].map(() => createQuotas({ store, max: 100 }))
    const passed = await Promise.all(
      processes.flatMap((quotas) => [pass(quotas, 400, hour(1000)), pass(quotas, 400, hour(1000))])
    )
    const total = passed.reduce((sum, each) => sum + each, 0)
    t.equal(state.granted, 1000)
    t.ok(total <= 1000 && total >= 980, `${total}`)
    t.ok(state.calls < 500, `${state.calls} calls for 3,200 requests`)
  })
  t.test('hands out small quotas one by one', async (t) => {
    const { store, state } = createStore()
    const [one, other] = [createQuotas({ store, max: 100 }), createQuotas({ store, max: 100 })]
    t.equal(await pass(one, 3, hour(10)), 3)
    t.equal(state.granted, 3, 'nothing is taken in advance')
    t.equal(await pass(other, 20, hour(10)), 7)
    t.equal(await pass(one, 20, hour(10)), 0)
    const { calls } = state
    t.match(one.count('key', hour(10)), { allowed: false }, 'what is spent is refused at once')
    t.equal(state.calls, calls)
  })
  t.test('many who wait for one answer ask once', async (t) => {
    const { store, state } = createStore()
    const quotas = createQuotas({ store, max: 100 })
    const verdicts = await Promise.all(Array.from({ length: 200 }, () => quotas.count('key', hour(50))))
    t.equal(verdicts.filter(({ allowed }) => allowed).length, 50)
    t.ok(state.calls <= 2, `${state.calls} calls`)
  })
  for (const other of [hour(2000), { max: 1000, window_ms: 60_000 }]) {
    t.test(`a limit that becomes ${other.max} in ${other.window_ms} ms while many wait holds nobody up`, async (t) => {
      const { store, state } = createStore()
      const quotas = createQuotas({ store, max: 100 })
      const counts = [hour(1000), other, hour(1000)].map(async (rate) => quotas.count('key', rate))
      const late = sleep(2000, undefined, { ref: false })
      const verdicts = await Promise.race([Promise.all(counts), late])
      t.match(verdicts, [{ allowed: true }, { allowed: true }, { allowed: true }])
      t.ok(state.calls <= 10, `${state.calls} calls`)
      // ends the loops that still wait
      state.failing = true
    })
  }
  t.test('one that is emptied again and again gives no process a second quota', async (t) => {
    const { store, state } = createStore()
    const quotas = createQuotas({ store, max: 100 })
    let passed = 0
    for (let i = 0; i < 60; i++) {
      state.empty()
      passed += await pass(quotas, 1, hour(10))
    }
    t.equal(passed, 10)
  })
  t.test('one that fails leaves a process its own quota, and is heard when it is back', async (t) => {
    const { store, state } = createStore()
    const quotas = createQuotas({ store, max: 100 })
    t.equal(await pass(quotas, 4, hour(10)), 4)
    state.failing = true
    t.equal(await pass(quotas, 3, hour(10)), 3)
    state.failing = false
    const other = createQuotas({ store, max: 100 })
    t.equal(await pass(other, 6, hour(10)), 6, 'what was let through meanwhile is not known elsewhere')
    t.equal(await pass(quotas, 20, hour(10)), 0, 'nor is it forgotten here, and the rest is shared again')
    state.failing = true
    const later = createQuotas({ store, max: 100 })
    t.equal(await pass(later, 30, hour(10)), 10)
  })
})

t.test('a circuit that is open tries one, and closes when it fares well', async (t) => {
  const breaker = createCircuitBreaker({ failures: 3, cooldownMs: 100 })
  let tried = 0
  const fail = () => breaker.run(() => Promise.reject(new Error(`try ${++tried}`)))
  for (let i = 1; i <= 3; i++) await t.rejects(fail(), { message: `try ${i}` })
  await t.rejects(fail(), { message: 'nothing is tried for a moment' })
  t.equal(tried, 3)
  await sleep(110)
  const outcomes = await Promise.allSettled([fail(), fail(), fail()])
  t.equal(tried, 4, 'one goes ahead')
  t.equal(outcomes.filter((one) => one.status === 'rejected' && one.reason instanceof CircuitOpen).length, 2)
  await sleep(110)
  t.equal(await breaker.run(async () => 'well'), 'well')
  await t.rejects(fail(), { message: 'try 5' })
})

t.test('a share', async (t) => {
  const semaphore = createKeyedSemaphore({ concurrency: 2, depth: 3, timeoutMs: 150 })
  let running = 0
  let most = 0
  const job = (ms: number) => async () => {
    most = Math.max(most, ++running)
    await sleep(ms)
    running--
  }
  t.test('is no more than it says, and what waits has its turn', async (t) => {
    await Promise.all([1, 2, 3, 4, 5].map(() => semaphore.run(['a'], job(20))))
    t.equal(most, 2)
    t.equal(semaphore.size(), 0, 'nobody is remembered')
  })
  t.test('is refused when too many wait, or for too long; others take theirs', async (t) => {
    const held = [1, 2].map(() => semaphore.run(['a'], job(400)))
    const waiting = [1, 2, 3].map(() => semaphore.run(['a'], job(1)))
    await t.rejects(semaphore.run(['a'], job(1)), { message: 'too many wait for their share' })
    await semaphore.run(['b'], job(1))
    for (const each of waiting) await t.rejects(each, { message: 'the share stayed taken' })
    await Promise.all(held)
    t.equal(semaphore.size(), 0)
  })
  t.test('is given back by what fails', async (t) => {
    for (let i = 0; i < 5; i++)
      await t.rejects(
        semaphore.run(['a'], () => Promise.reject(new Error('no'))),
        /no/
      )
    t.equal(semaphore.size(), 0)
  })
})
