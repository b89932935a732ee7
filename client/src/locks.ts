import type { TokenStore } from './stores.js'

/** Runs `work` while no other holder of the lock runs. */
export type Lock = <T>(work: () => Promise<T>) => Promise<T>

/**
 * Creates the lock for a store. A shared store gets a Web Lock, which covers all tabs of the origin; any other store
 * gets a queue within this client.
 *
 * Without Web Locks (an old browser, or a page that is not a secure context) tabs may refresh at the same time. The
 * server tolerates it: all tabs get the same new refresh token.
 */
export function lockFor(store: TokenStore): Lock {
  const { sharedAs } = store
  const locks = globalThis.navigator?.locks
  if (sharedAs === undefined || locks === undefined) return queueLock()
  // the DOM's types lose the result type of `work`
  return <T>(work: () => Promise<T>) => locks.request(sharedAs, work) as Promise<T>
}

/** Runs work one after the other, within this client. */
function queueLock(): Lock {
  let last: Promise<unknown> = Promise.resolve()
  return (work) => {
    const result = last.then(work)
    last = result.catch(() => undefined)
    return result
  }
}
