/**
 * A queue that serves its fairness keys round robin: one item of each key in turn, however many each key has waiting.
 * Items of one key keep the order of their arrival. The queue stores a key only while one of its items waits.
 */
export function createRoundRobinQueue<T>() {
  // Map order is the order of service: the first key is served next
  const itemsByKey = new Map<string, T[]>()
  let size = 0

  return {
    size: () => size,

    add(item: T, fairnessKey: string): void {
      const items = itemsByKey.get(fairnessKey)
      if (items) items.push(item)
      else itemsByKey.set(fairnessKey, [item])
      size++
    },

    /** Removes and returns the next item, or returns undefined when the queue is empty. */
    take(): T | undefined {
      for (const [fairnessKey, items] of itemsByKey) {
        const item = items.shift()
        itemsByKey.delete(fairnessKey)
        if (items.length > 0) itemsByKey.set(fairnessKey, items)
        size--
        return item
      }
      return undefined
    },

    /** Removes a waiting item. Returns false when the item was taken before. */
    remove(item: T, fairnessKey: string): boolean {
      const items = itemsByKey.get(fairnessKey) ?? []
      const index = items.indexOf(item)
      if (index === -1) return false
      items.splice(index, 1)
      if (items.length === 0) itemsByKey.delete(fairnessKey)
      size--
      return true
    },

    /**
     * Removes the newest item of the key with the most items, to make room for one more item of `fairnessKey`. Returns
     * undefined when no key has more items than `fairnessKey` would have then.
     */
    evictFor(fairnessKey: string): T | undefined {
      const own = itemsByKey.get(fairnessKey)?.length ?? 0
      let largest: T[] | undefined
      for (const items of itemsByKey.values()) if (items.length > (largest?.length ?? own + 1)) largest = items
      if (largest) size--
      return largest?.pop()
    }
  }
}
