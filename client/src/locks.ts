import type { TokenStore } from './stores.js'

/** Runs `work` when nobody else who shares the lock is at work. */
export type Lock = <T>(work: () => Promise<T>) => Promise<T>

/**
 * The narrowest lock that covers everybody who sees the store: all tabs of the origin, or this client alone. Without Web
 * Locks (an old browser, a page that is not a secure context) tabs may refresh at the same time, which the server forgives:
 * it gives all of them the same successor.
 */
export function lockFor(store: TokenStore): Lock {
  const { sharedAs } = store
  const locks = globalThis.navigator?.locks
  if (sharedAs === undefined || locks === undefined) return queueLock()
  // the types of the DOM lose what `work` resolves to
  return <T>(work: () => Promise<T>) => locks.request(sharedAs, work) as Promise<T>
}

/** One after the other, in this process. */
function queueLock(): Lock {
  let last: Promise<unknown> = Promise.resolve()
  return (work) => {
    const mine = last.then(work)
    last = mine.catch(() => undefined)
    return mine
  }
}
