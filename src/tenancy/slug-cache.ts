import { LRUCache } from 'lru-cache'

/**
 * An LRU cache of at most `max` entries that are found by id or by slug. Both look-ups count as a use. A slug finds the
 * entry that was kept last under it.
 */
export function createSlugCache<Entry extends { id: string; slug: string }>(max: number) {
  const bySlug = new Map<string, Entry>()
  const byId = new LRUCache<string, Entry>({
    max,
    dispose(entry) {
      // another entry may have taken over the slug
      if (bySlug.get(entry.slug) === entry) bySlug.delete(entry.slug)
    }
  })

  return {
    get: (id: string) => byId.get(id),
    find(slug: string): Entry | undefined {
      const entry = bySlug.get(slug)
      return entry && byId.get(entry.id)
    },
    keep(entry: Entry): void {
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
