import type { Socket } from 'node:net'

const occupants = Symbol('what occupies a place')
type OccupyingSocket = Socket & { [occupants]?: Set<() => void> }

/**
 * Lets each owner have at most `max` requests under way; a request has several owners. A place is free when its request says so
 * or its connection is closed, whichever is first.
 */
export function createPlaces(max: number) {
  const underWay = new Map<string, number>()

  /** Resolves to what gives the place back, once however often it is called; to nothing where one of the owners has no more. */
  function enter(socket: OccupyingSocket, first: string, second: string): (() => void) | undefined {
    const ofFirst = underWay.get(first) ?? 0
    const ofSecond = underWay.get(second) ?? 0
    if (ofFirst >= max || ofSecond >= max) return undefined
    underWay.set(first, ofFirst + 1)
    underWay.set(second, ofSecond + 1)
    let entered = true
    const leave = () => {
      if (!entered) return
      entered = false
      of(socket).delete(leave)
      giveBack(first)
      giveBack(second)
    }
    of(socket).add(leave)
    return leave
  }

  function giveBack(owner: string): void {
    const left = (underWay.get(owner) ?? 1) - 1
    if (left === 0) underWay.delete(owner)
    else underWay.set(owner, left)
  }

  /** A reply that nobody waits for any more has no end that a hook would see; the connection has. */
  function of(socket: OccupyingSocket): Set<() => void> {
    const known = socket[occupants]
    if (known) return known
    const fresh = new Set<() => void>()
    socket.once('close', () => {
      for (const leave of fresh) leave()
    })
    socket[occupants] = fresh
    return fresh
  }

  return { enter, size: () => underWay.size }
}
