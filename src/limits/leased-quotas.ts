import { LRUCache } from 'lru-cache'
import type { Rate } from '../config/value-readers.ts'

/**
 * A store's reply: `granted` requests may pass now, and `remaining` are left for all processes until the window ends.
 */
export type Grant = { granted: number; remaining: number; ends_in_ms: number }

/** The store of the counters that several processes share. */
export type QuotaStore = {
  /**
   * Grants up to `needed` of what is left under a key, and up to `prefetch` more; a store that has little left grants
   * less of `prefetch`. A window begins with its first request. Rejects, in bounded time, when the store fails.
   */
  take(key: string, rate: Rate, needed: number, prefetch: number): Promise<Grant>
}

/** The decision about one request. `ends_in_ms` is the time until the quota is full again. */
export type Verdict = { allowed: boolean; remaining: number; ends_in_ms: number }

/** The state of one key in its open window, as far as this process knows it. */
type Entry = {
  max: number
  window_ms: number
  ends_at: number
  /**
   * Requests that this process let through in this window. Never above `max`, even when the store was emptied
   * meanwhile.
   */
  used: number
  /** Requests that are granted to this process and not used yet. */
  leased: number
  /** Requests that were left at the store at its last reply. */
  remaining: number
  /** The quota is used up, by the store's last reply or, without a store, by this process's count. */
  exhausted: boolean
  /** How many requests to lease in advance. Doubles with every refill, up to `maxPrefetchShare`. */
  prefetch: number
  waiting: number
  refill: Promise<void> | undefined
}

/**
 * The part of a quota that one process may lease in advance. Other processes can't use it while it lies unused here.
 */
export const maxPrefetchShare = 1 / 128
/** When fewer requests than this remain, nothing is leased in advance. */
const minForPrefetch = 8

/**
 * Counts requests against quotas. A quota's window begins with its first request.
 *
 * With a store, a process leases a batch of requests and counts it down in memory, so that most decisions need no I/O.
 * The last requests of a quota are leased one by one. All processes together never let through more than the quota, and
 * less than a hundredth of it lies unused in each process. Without a store, and while the store fails, each process
 * counts alone: no request is ever unlimited.
 *
 * `name` is the prefix of the keys at the store, which holds other counters too.
 *
 * Time is measured by this process's monotonic clock and by the rest of the window that the store reports. Two clocks
 * are never compared.
 */
export function createQuotas({ name = '', store, max }: { name?: string; store: QuotaStore | undefined; max: number }) {
  const entries = new LRUCache<string, Entry>({ max })

  /** Counts one request. The verdict is returned without a promise unless the store has to be asked first. */
  function count(key: string, rate: Rate): Verdict | Promise<Verdict> {
    const entry = current(key, rate)
    if (entry.leased === 0 && !entry.exhausted) {
      if (!store) grantLocally(entry, entry.max)
      else return countAfterRefill(key, rate, entry)
    }
    return decide(key, rate, entry)
  }

  /** Waits for a refill and counts then. Repeats when other requests have used up the refill meanwhile. */
  async function countAfterRefill(key: string, rate: Rate, waited: Entry): Promise<Verdict> {
    waited.waiting++
    try {
      await (waited.refill ?? refill(key, rate, waited))
    } finally {
      waited.waiting--
    }
    // use the entry's rate, which may have changed during the wait: with the old rate this request and newer ones would
    // change the entry back and forth, and leases of one rate are not valid for the other
    return count(key, entries.get(key) ?? rate)
  }

  function decide(key: string, rate: Rate, entry: Entry): Verdict {
    const allowed = entry.leased > 0
    if (allowed) {
      entry.leased--
      entry.used++
      // refill before the lease is used up, so that no request has to wait
      if (
        !entry.exhausted &&
        !entry.refill &&
        entry.leased * 2 <= entry.prefetch &&
        entry.remaining >= minForPrefetch
      ) {
        refill(key, rate, entry)
      }
    }
    const ends_in_ms = Math.max(0, entry.ends_at - performance.now())
    return { allowed, remaining: entry.leased + entry.remaining, ends_in_ms }
  }

  /** The entry of the open window, or a new entry when that window is over. */
  function current(key: string, { max: limit, window_ms }: Rate): Entry {
    const known = entries.get(key)
    const now = performance.now()
    if (known && known.ends_at > now && known.window_ms === window_ms) {
      if (known.max !== limit) {
        // the limit has changed: drop the lease and ask the store again
        Object.assign(known, {
          max: limit,
          leased: 0,
          remaining: Math.max(0, limit - known.used),
          exhausted: known.used >= limit
        })
      }
      return known
    }
    const fresh: Entry = {
      ...{ max: limit, window_ms, ends_at: now + window_ms },
      ...{ used: 0, leased: 0, remaining: limit, exhausted: false, waiting: 0, refill: undefined },
      // a key that was busy in the last window is likely to be busy in this one
      prefetch: known ? Math.floor(known.prefetch / 2) : 0
    }
    entries.set(key, fresh)
    return fresh
  }

  function refill(key: string, rate: Rate, entry: Entry): Promise<void> {
    entry.refill = askStore(key, rate, entry).finally(() => {
      entry.refill = undefined
    })
    return entry.refill
  }

  async function askStore(key: string, rate: Rate, entry: Entry): Promise<void> {
    // one request to the store serves all requests that begin to wait before the next microtask
    await undefined
    const askedAt = performance.now()
    entry.prefetch = Math.min(Math.max(1, entry.prefetch * 2), Math.floor(rate.max * maxPrefetchShare))
    try {
      const prefetch = Math.max(0, entry.prefetch - entry.leased)
      const { granted, remaining, ends_in_ms } = await (store as QuotaStore).take(
        name + key,
        rate,
        entry.waiting,
        prefetch
      )
      if (entry.max !== rate.max) return
      // the store's window is the valid one; a window that ends later than ours means that the store was emptied
      // meanwhile
      if (entry.used === 0 && entry.leased === 0) entry.ends_at = askedAt + ends_in_ms
      else entry.ends_at = Math.min(entry.ends_at, askedAt + ends_in_ms)
      entry.leased = Math.min(entry.leased + granted, entry.max - entry.used)
      entry.remaining = remaining
      entry.exhausted = remaining === 0 || entry.leased === entry.max - entry.used
    } catch {
      // grant only what is needed now, so that the next request asks the store again
      grantLocally(entry, entry.waiting)
    }
  }

  /** Grants requests without the store, within the quota of this process alone. */
  function grantLocally(entry: Entry, wanted: number): void {
    entry.leased = Math.min(entry.leased + wanted, entry.max - entry.used)
    entry.remaining = entry.max - entry.used - entry.leased
    entry.exhausted = entry.remaining === 0
  }

  return { count, size: () => entries.size }
}

export type Quotas = ReturnType<typeof createQuotas>
