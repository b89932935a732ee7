import type { ObjectStore } from './object-store.ts'

/** A folder of a bucket, as a store of its own. It lists nothing of its neighbours. Closing it closes the bucket. */
export function openFolder(store: ObjectStore, folder: string): ObjectStore {
  const inside = (key: string) => `${folder}/${key}`
  return {
    ...store,
    put: (key, content) => store.put(inside(key), content),
    get: (key, range) => store.get(inside(key), range),
    size: (key) => store.size(inside(key)),
    remove: (key) => store.remove(inside(key)),
    move: (from, to) => store.move(inside(from), inside(to)),
    async list(after, limit) {
      const found = await store.list(inside(after), limit)
      return found
        .filter(({ key }) => key.startsWith(inside('')))
        .map((object) => ({ ...object, key: object.key.slice(inside('').length) }))
    },
    startParts: (key) => store.startParts(inside(key)),
    putPart: (key, ...part) => store.putPart(inside(key), ...part),
    finishParts: (key, ...parts) => store.finishParts(inside(key), ...parts),
    dropParts: (key, id) => store.dropParts(inside(key), id),
    direct: undefined
  }
}
