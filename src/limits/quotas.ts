import { LRUCache } from 'lru-cache'
import type { Rate } from '../config/value-readers.ts'

/** What a store has granted: these many may pass now, `remaining` are left for everybody, until the window ends. */
export type Grant = { granted: number; remaining: number; ends_in_ms: number }

/** Where those who count together keep their counts. */
export type QuotaStore = {
  /**
   * Takes `needed` of what is left under a key, and up to `spare` more, of which it gives less the less is left. A window begins
   * with the first request in it. Rejects when it can't say, in bounded time.
   */
  take(key: string, rate: Rate, needed: number, spare: number): Promise<Grant>
}

/** `ends_in_ms` is until the quota is whole again. */
export type Verdict = { allowed: boolean; remaining: number; ends_in_ms: number }

/** What this process knows of one key in the window that is open. */
type Entry = {
  max: number
  window_ms: number
  ends_at: number
  /** Let through here in this window. Never above `max`, whatever a store that was emptied says. */
  used: number
  /** Granted and not used yet. */
  leased: number
  /** Left at the store when it was last asked. */
  remaining: number
  /** The store has said that there is no more, or, without one, this process has. */
  exhausted: boolean
  /** How many to ask for beyond need: doubles with each time it was not enough. */
  spare: number
  waiting: number
  refill: Promise<void> | undefined
}

/** At most this part is taken beyond need: it may stay unused where it is, while somebody else could use it. */
export const spareShare = 1 / 128
/** Below this much left nothing is given beyond need. */
const minForSpare = 8

/**
 * Counts requests against quotas in windows that begin with their first request.
 *
 * With a store a process takes a batch and counts it down by itself, so that most answers are immediate; the last of a quota
 * is handed out one by one. Never more than the quota passes in total, and less than a hundredth of it lies unused in each process.
 * Without a store, and while it fails, the process counts for itself: nothing becomes unlimited.
 *
 * `name` goes in front of each key at the store, where others count too.
 *
 * Time is this process's monotonic clock and what the store says is left of a window; no two clocks are compared.
 */
export function createQuotas({ name = '', store, max }: { name?: string; store: QuotaStore | undefined; max: number }) {
  const entries = new LRUCache<string, Entry>({ max })

  /** Counts one request, without waiting where that is possible. */
  function count(key: string, rate: Rate): Verdict | Promise<Verdict> {
    const entry = current(key, rate)
    if (entry.leased === 0 && !entry.exhausted) {
      if (!store) grantHere(entry, entry.max)
      else return countLater(key, rate, entry)
    }
    return decide(key, rate, entry)
  }

  /** As often as it takes: who comes while a refill is under way may find nothing left of it. */
  async function countLater(key: string, rate: Rate, waited: Entry): Promise<Verdict> {
    waited.waiting++
    try {
      await (waited.refill ?? refill(key, rate, waited))
    } finally {
      waited.waiting--
    }
    // a limit that has changed meanwhile counts for those who waited too: else they and who came after would change it back
    // and forth, and what is taken for one is not for the other
    return count(key, entries.get(key) ?? rate)
  }

  function decide(key: string, rate: Rate, entry: Entry): Verdict {
    const allowed = entry.leased > 0
    if (allowed) {
      entry.leased--
      entry.used++
      // before it is empty, so that nobody has to wait
      if (!entry.exhausted && !entry.refill && entry.leased * 2 <= entry.spare && entry.remaining >= minForSpare) {
        refill(key, rate, entry)
      }
    }
    const ends_in_ms = Math.max(0, entry.ends_at - performance.now())
    return { allowed, remaining: entry.leased + entry.remaining, ends_in_ms }
  }

  /** The entry of the open window; a new one where it is over. */
  function current(key: string, { max: limit, window_ms }: Rate): Entry {
    const known = entries.get(key)
    const now = performance.now()
    if (known && known.ends_at > now && known.window_ms === window_ms) {
      if (known.max !== limit) {
        // what is left of a quota that has changed must be asked again
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
      // a key that was busy will be busy
      spare: known ? Math.floor(known.spare / 2) : 0
    }
    entries.set(key, fresh)
    return fresh
  }

  function refill(key: string, rate: Rate, entry: Entry): Promise<void> {
    entry.refill = ask(key, rate, entry).finally(() => {
      entry.refill = undefined
    })
    return entry.refill
  }

  async function ask(key: string, rate: Rate, entry: Entry): Promise<void> {
    // whoever begins to wait in this turn of the event loop waits for this answer
    await undefined
    const askedAt = performance.now()
    entry.spare = Math.min(Math.max(1, entry.spare * 2), Math.floor(rate.max * spareShare))
    try {
      const spare = Math.max(0, entry.spare - entry.leased)
      const { granted, remaining, ends_in_ms } = await (store as QuotaStore).take(
        name + key,
        rate,
        entry.waiting,
        spare
      )
      if (entry.max !== rate.max) return
      // the window of the store is the one that counts; one that begins while ours is open means that it was emptied
      if (entry.used === 0 && entry.leased === 0) entry.ends_at = askedAt + ends_in_ms
      else entry.ends_at = Math.min(entry.ends_at, askedAt + ends_in_ms)
      entry.leased = Math.min(entry.leased + granted, entry.max - entry.used)
      entry.remaining = remaining
      entry.exhausted = remaining === 0 || entry.leased === entry.max - entry.used
    } catch {
      // no more than is needed now: the store is asked again by the next who needs some
      grantHere(entry, entry.waiting)
    }
  }

  /** Of what this process alone may let through. */
  function grantHere(entry: Entry, wanted: number): void {
    entry.leased = Math.min(entry.leased + wanted, entry.max - entry.used)
    entry.remaining = entry.max - entry.used - entry.leased
    entry.exhausted = entry.remaining === 0
  }

  return { count, size: () => entries.size }
}

export type Quotas = ReturnType<typeof createQuotas>
