import { LRUCache } from 'lru-cache'

/** Entries for which there is room at first. */
const firstRoom = 2_000
const growth = 10

/**
 * An LRU cache of at most `max` entries that are found by id or by slug. Both look-ups count as a use. A slug finds the
 * entry that was kept last under it.
 *
 * The room grows with the entries, because to reserve it for 150,000 at the start takes 25 ms and 4 MB.
 */
export function createSlugCache<Entry extends { id: string; slug: string }>(max: number) {
  const bySlug = new Map<string, Entry>()
  let byId = createCache(Math.min(firstRoom, max))

  function createCache(room: number) {
    return new LRUCache<string, Entry>({
      max: room,
      dispose(entry) {
        // another entry may have taken over the slug
        if (bySlug.get(entry.slug) === entry) bySlug.delete(entry.slug)
      }
    })
  }

  function grow(): void {
    const larger = createCache(Math.min(byId.max * growth, max))
    // with the order of their uses
    larger.load(byId.dump())
    byId = larger
  }

  return {
    get: (id: string) => byId.get(id),
    find(slug: string): Entry | undefined {
      const entry = bySlug.get(slug)
      return entry && byId.get(entry.id)
    },
    keep(entry: Entry): void {
      if (byId.size === byId.max && byId.max < max && !byId.has(entry.id)) grow()
      byId.set(entry.id, entry)
      bySlug.set(entry.slug, entry)
    },
    forget: (id: string) => void byId.delete(id),
    forgetSlug(slug: string): void {
      const entry = bySlug.get(slug)
      if (entry) byId.delete(entry.id)
    },
    clear(): void {
      // first, so that `dispose` finds nothing to delete for each entry
      bySlug.clear()
      byId.clear()
    },
    size: () => byId.size
  }
}
