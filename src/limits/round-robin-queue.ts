/**
 * What waits, of several parties: taken one of each in turn, however many each has waiting, and within a party in the order of
 * arrival. Remembers only parties who have something waiting.
 */
export function createTurns<T>() {
  // in the order in which parties have their turn
  const parties = new Map<string, T[]>()
  let size = 0

  return {
    size: () => size,

    add(item: T, party: string): void {
      const own = parties.get(party)
      if (own) own.push(item)
      else parties.set(party, [item])
      size++
    },

    take(): T | undefined {
      for (const [party, items] of parties) {
        const item = items.shift()
        parties.delete(party)
        if (items.length > 0) parties.set(party, items)
        size--
        return item
      }
      return undefined
    },

    /** False: it has been taken before. */
    remove(item: T, party: string): boolean {
      const items = parties.get(party) ?? []
      const place = items.indexOf(item)
      if (place === -1) return false
      items.splice(place, 1)
      if (items.length === 0) parties.delete(party)
      size--
      return true
    },

    /** The latest of the party with the most, so that another of `party` fits. Undefined: nobody has more than it would have. */
    takeBack(party: string): T | undefined {
      const own = parties.get(party)?.length ?? 0
      let largest: T[] | undefined
      for (const items of parties.values()) if (items.length > (largest?.length ?? own + 1)) largest = items
      if (largest) size--
      return largest?.pop()
    }
  }
}
