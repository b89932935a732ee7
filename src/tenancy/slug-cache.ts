import { LRUCache } from 'lru-cache'

/**
 * Keeps entries by id and by slug: at most `max`, and what was unused for longest goes first, by whichever name it was used. A
 * slug leads to one entry, the last one that was kept under it.
 */
export function createSlugCache<Entry extends { id: string; slug: string }>(max: number) {
  const bySlug = new Map<string, Entry>()
  const byId = new LRUCache<string, Entry>({
    max,
    dispose(entry) {
      // another one may have the slug by now
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
      // first, so that there is nothing to look for with each that goes
      bySlug.clear()
      byId.clear()
    },
    size: () => byId.size
  }
}
