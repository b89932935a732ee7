import type { Socket } from 'node:net'

const releases = Symbol('releases of the requests under way')
type TrackedSocket = Socket & { [releases]?: Set<() => void> }

/**
 * Limits each owner to `max` requests under way. A request has two owners, for example a person and their agency, and
 * needs a free slot of both. The slots are freed when the request releases them or when its connection closes,
 * whichever comes first.
 */
export function createConcurrencyLimiter(max: number) {
  const underWay = new Map<string, number>()

  /**
   * Takes a slot of both owners and returns the function that frees them; repeated calls of that function do nothing.
   * Returns undefined when one of the owners has no free slot.
   */
  function acquire(socket: TrackedSocket, first: string, second: string): (() => void) | undefined {
    const ofFirst = underWay.get(first) ?? 0
    const ofSecond = underWay.get(second) ?? 0
    if (ofFirst >= max || ofSecond >= max) return undefined
    underWay.set(first, ofFirst + 1)
    underWay.set(second, ofSecond + 1)
    let held = true
    const release = () => {
      if (!held) return
      held = false
      releasesOf(socket).delete(release)
      decrement(first)
      decrement(second)
    }
    releasesOf(socket).add(release)
    return release
  }

  function decrement(owner: string): void {
    const left = (underWay.get(owner) ?? 1) - 1
    if (left === 0) underWay.delete(owner)
    else underWay.set(owner, left)
  }

  /**
   * The releases to call when the socket closes. A reply whose client has gone never finishes, so no response hook runs
   * for it; the socket's close event always comes.
   */
  function releasesOf(socket: TrackedSocket): Set<() => void> {
    const known = socket[releases]
    if (known) return known
    const fresh = new Set<() => void>()
    socket.once('close', () => {
      for (const release of fresh) release()
    })
    socket[releases] = fresh
    return fresh
  }

  return { acquire, size: () => underWay.size }
}
