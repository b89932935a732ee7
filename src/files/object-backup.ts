import { v4 as randomUuid } from 'uuid'
import { openFolder } from './store/folder.ts'
import { copyMarkKey, isOurKey } from './store/keys.ts'
import type { ObjectStore, StoredObject } from './store/object-store.ts'
import { writeObject } from './store/object-writer.ts'

/*
 * A copy of the store's objects in another bucket, in a folder for each installation: the objects under `objects/`, for each object that
 * the store no longer has an empty one under `gone/`, and `files.json`, which says up to when the copy is complete, and of which store.
 *
 * The product never changes an object: a new content has a new key. So an object that was copied is never copied again, and a damaged
 * store damages no copy.
 *
 * The store has a mark with a random name, which `files.json` repeats. A store without it is another one: an empty one, or a wrong bucket.
 * It does not say what is gone, so nothing is removed from the copy. A restore from the copy makes a store the one that is copied.
 */

export type ObjectBackup = { objects: ObjectStore; gone: ObjectStore; folder: ObjectStore }

/** The copy of one installation. Its name is in the mark of the store and in the database (db/queries/store-fence.ts). */
export function openObjectBackup(bucket: ObjectStore, installation: string): ObjectBackup {
  const folder = openFolder(bucket, `files/${installation}`)
  return { folder, objects: openFolder(folder, 'objects'), gone: openFolder(folder, 'gone') }
}

const page = 1000
/** Objects that are copied at once. */
const batch = 4
const coverageKey = 'files.json'
const maxCoverageBytes = 1024

type Coverage = { complete_until: string; store: string }

/** Lists all objects of a store in the order of their keys. */
export async function* allObjects(store: ObjectStore): AsyncGenerator<StoredObject> {
  for (let after = ''; ; ) {
    const objects = await store.list(after, page)
    yield* objects
    const last = objects.at(-1)
    if (!last || objects.length < page) return
    after = last.key
  }
}

/** Whether an object belongs into the copy: bytes that nobody has checked yet do not. */
const isKept = ({ key }: StoredObject) => isOurKey(key) && !key.includes('/uploads/')

/** For each key of any of the lists, in their order: what each list has of it. All lists must have the order of the keys. */
export async function* merged<Name extends string>(
  lists: Record<Name, AsyncIterable<StoredObject>>
): AsyncGenerator<{ key: string } & { [K in Name]?: StoredObject }> {
  const heads = await Promise.all(
    Object.entries<AsyncIterable<StoredObject>>(lists).map(async ([name, list]) => {
      const entries = list[Symbol.asyncIterator]()
      return { name, entries, next: await entries.next() }
    })
  )
  for (;;) {
    const keys = heads.flatMap(({ next }) => (next.done ? [] : [next.value.key]))
    const key = keys.reduce<string | undefined>(
      (least, each) => (least === undefined || each < least ? each : least),
      undefined
    )
    if (key === undefined) return
    const found: Record<string, unknown> = { key }
    for (const head of heads) {
      if (head.next.done || head.next.value.key !== key) continue
      found[head.name] = head.next.value
      head.next = await head.entries.next()
    }
    yield found as { key: string } & { [K in Name]?: StoredObject }
  }
}

/** Copies one object. Resolves to false when there is none any more. */
export async function copyObject(from: ObjectStore, to: ObjectStore, key: string): Promise<boolean> {
  const content = await from.get(key)
  if (!content) return false
  await writeObject(to, key, content as AsyncIterable<Buffer>)
  return true
}

/** Runs the work of all items, a few at once. Rejects with the first failure, after the work in progress has ended. */
export function createBatch() {
  let running: Promise<unknown>[] = []
  async function settle(): Promise<void> {
    const results = await Promise.allSettled(running)
    running = []
    for (const result of results) if (result.status === 'rejected') throw result.reason
  }
  return {
    async add(work: () => Promise<unknown>): Promise<void> {
      const each = work()
      // without a handler until `settle`, a failure would end the process
      each.catch(() => {})
      running.push(each)
      if (running.length >= batch) await settle()
    },
    settle
  }
}

/**
 * Copies the objects that the backup lacks. Objects that the store no longer has are removed from the backup after
 * `keepMs`.
 *
 * When it resolves, the backup has every object that was in the store when it was called. A failure leaves everything
 * that was copied, and says nothing about the rest. It also fails when the store lacks the mark of the copy.
 */
export async function backUpObjects(store: ObjectStore, backup: ObjectBackup, keepMs: number) {
  const startedAt = new Date()
  const counts = { copied: 0, removed: 0, bytes: 0 }
  const [before, mark = randomUuid()] = [await readCoverage(backup), await readText(store, copyMarkKey)]
  const isSame = before === undefined || before.store === mark
  if (before === undefined) await store.put(copyMarkKey, Buffer.from(mark))
  const copies = createBatch()
  const lists = { kept: allObjects(store), copy: allObjects(backup.objects), gone: allObjects(backup.gone) }
  for await (const { key, kept, copy, gone } of merged(lists)) {
    if (kept && isKept(kept)) {
      if (gone) await backup.gone.remove(key)
      if (copy) continue
      await copies.add(async () => {
        if (!(await copyObject(store, backup.objects, key))) return
        counts.copied++
        counts.bytes += kept.size
      })
    } else if (!isSame) continue
    else if (copy && !gone) await backup.gone.put(key, Buffer.alloc(0))
    else if (gone && (!copy || gone.modified_at.getTime() < startedAt.getTime() - keepMs)) {
      if (copy) counts.removed++
      await backup.objects.remove(key)
      await backup.gone.remove(key)
    }
  }
  await copies.settle()
  if (!isSame) {
    throw new Error(
      'the store is not the one that was copied before: what it has is copied, and nothing is removed from the copy; npm run files -- restore completes the store and makes it the one'
    )
  }
  const coverage: Coverage = { complete_until: startedAt.toISOString(), store: mark }
  await backup.folder.put(coverageKey, Buffer.from(JSON.stringify(coverage)))
  return { ...counts, complete_until: startedAt }
}

/** Makes a store, which was completed from the backup, the one that is copied. */
export async function adoptStore(store: ObjectStore, backup: ObjectBackup): Promise<void> {
  const coverage = await readCoverage(backup)
  if (coverage) await store.put(copyMarkKey, Buffer.from(coverage.store))
}

/** The time up to which the backup has every object. Undefined when no copy was ever completed. */
export async function completeUntil(backup: ObjectBackup): Promise<Date | undefined> {
  const coverage = await readCoverage(backup)
  return coverage && new Date(coverage.complete_until)
}

async function readCoverage({ folder }: ObjectBackup): Promise<Coverage | undefined> {
  const text = await readText(folder, coverageKey)
  return text === undefined ? undefined : JSON.parse(text)
}

async function readText(store: ObjectStore, key: string): Promise<string | undefined> {
  const stream = await store.get(key, { start: 0, end: maxCoverageBytes - 1 })
  if (!stream) return undefined
  const chunks: Buffer[] = []
  for await (const chunk of stream as AsyncIterable<Buffer>) chunks.push(chunk)
  return Buffer.concat(chunks).toString()
}
