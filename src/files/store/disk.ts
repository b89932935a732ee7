import { randomBytes } from 'node:crypto'
import { createReadStream } from 'node:fs'
import { chmod, type FileHandle, mkdir, open, readdir, rename, rm, stat } from 'node:fs/promises'
import { dirname, join } from 'node:path'
import { type ObjectStore, type StoredObject, StoreFailure, wrapStoredStream } from './object-store.ts'

const keyPattern = /^(?:[0-9a-f-]{36}(\/[a-z]+)?\/[0-9a-f-]{36}|installation(?:-copy)?)$/

/** Age of parts that no upload will complete any more: longer than the server keeps any unfinished upload. */
const forgottenAfterMs = 2 * 86_400_000

/**
 * Stores objects as files under a folder. A new object is written to `unfinished`, flushed to the disk, and then
 * renamed into `objects`. The folders are flushed after the rename, because only then a rename survives a crash.
 */
export function createDiskStore(folder: string): ObjectStore {
  const objects = join(folder, 'objects')
  const unfinished = join(folder, 'unfinished')

  /** Throws for a key that does not match the pattern of the server's keys, so that no path leads out of the folder. */
  function pathOf(key: string): string {
    if (!keyPattern.test(key)) throw new TypeError(`not a key: ${key}`)
    return join(objects, key)
  }
  const partsPath = (id: string) => {
    if (!/^[0-9a-f]{32}$/.test(id)) throw new TypeError(`not an id of parts: ${id}`)
    return join(unfinished, id)
  }

  /** Renames a file to its final path. After a crash the old object is there, or the whole new one. */
  async function moveIntoPlace(from: string, key: string): Promise<void> {
    const path = pathOf(key)
    await mkdir(dirname(path), { recursive: true, mode: 0o700 })
    await rename(from, path)
    for (let each = dirname(path); each.length >= objects.length; each = dirname(each)) await flushFolder(each)
  }

  async function list(after: string, limit: number): Promise<StoredObject[]> {
    const found: StoredObject[] = []
    async function walk(prefix: string): Promise<void> {
      const entries = await readdir(join(objects, prefix), { withFileTypes: true }).catch(ignoreMissing)
      for (const entry of (entries ?? []).sort((a, b) => (a.name < b.name ? -1 : 1))) {
        if (found.length >= limit) return
        const key = prefix === '' ? entry.name : `${prefix}/${entry.name}`
        // skip a folder when all of its keys sort before `after`; \uffff sorts behind any key in it
        if (entry.isDirectory() && `${key}/\uffff` > after) await walk(key)
        else if (entry.isFile() && key > after) {
          const facts = await stat(join(objects, key)).catch(ignoreMissing)
          if (facts) found.push({ key, size: facts.size, modified_at: facts.mtime })
        }
      }
    }
    await walk('')
    return found
  }

  const store: ObjectStore = {
    async put(key, content) {
      const path = join(unfinished, randomBytes(16).toString('hex'))
      await mkdir(unfinished, { recursive: true, mode: 0o700 })
      try {
        await withFile(path, 'wx', async (file) => {
          await file.writeFile(content)
          await file.sync()
        })
        await moveIntoPlace(path, key)
      } catch (err) {
        await rm(path, { force: true })
        throw err
      }
    },

    async get(key, range) {
      const file = await open(pathOf(key)).catch(ignoreMissing)
      if (!file) return undefined
      return wrapStoredStream(createReadStream('', { fd: file, ...range, highWaterMark: 256 * 1024 }), toFailure)
    },

    async size(key) {
      return (await stat(pathOf(key)).catch(ignoreMissing))?.size
    },
    async remove(key) {
      await rm(pathOf(key), { force: true })
    },
    move: (from, to) => moveIntoPlace(pathOf(from), to),
    list,

    minPartBytes: 1,
    async startParts() {
      const id = randomBytes(16).toString('hex')
      await mkdir(unfinished, { recursive: true, mode: 0o700 })
      await withFile(partsPath(id), 'wx', (file) => file.sync())
      await flushFolder(unfinished)
      return id
    },
    async putPart(_key, id, number, offset, content) {
      await withFile(partsPath(id), 'r+', async (file) => {
        for (let done = 0; done < content.length; ) {
          const { bytesWritten } = await file.write(content, done, content.length - done, offset + done)
          done += bytesWritten
        }
        await file.datasync()
      })
      return { number, tag: '' }
    },
    async finishParts(key, id) {
      await moveIntoPlace(partsPath(id), key)
    },
    async dropParts(_key, id) {
      await rm(partsPath(id), { force: true })
    },

    async dropStaleParts() {
      const before = Date.now() - forgottenAfterMs
      for (const name of (await readdir(unfinished).catch(ignoreMissing)) ?? []) {
        const facts = await stat(join(unfinished, name)).catch(ignoreMissing)
        if (facts && facts.mtimeMs < before) await rm(join(unfinished, name), { force: true })
      }
    },

    direct: undefined,
    async check() {
      await mkdir(objects, { recursive: true, mode: 0o700 })
      // an earlier version created the folder with wider permissions
      await chmod(folder, 0o700)
      await readdir(folder)
    },
    close() {}
  }
  return withFailures(store)
}

async function withFile<T>(path: string, flags: string, work: (file: FileHandle) => Promise<T>): Promise<T> {
  const file = await open(path, flags)
  try {
    return await work(file)
  } finally {
    await file.close()
  }
}

const flushFolder = (path: string) => withFile(path, 'r', (folder) => folder.sync())

function ignoreMissing(err: NodeJS.ErrnoException): undefined {
  if (err.code !== 'ENOENT') throw err
}

const full = new Set(['ENOSPC', 'EDQUOT', 'EFBIG'])
const refused = new Set(['EACCES', 'EPERM', 'EROFS'])

function toFailure(err: unknown): StoreFailure {
  const { code = '' } = err as NodeJS.ErrnoException
  return new StoreFailure(full.has(code) ? 'full' : refused.has(code) ? 'refused' : 'away', err)
}

/** Wraps the methods so that errors of the file system become StoreFailures. */
function withFailures(store: ObjectStore): ObjectStore {
  const wrapped = Object.entries(store).map(([name, member]) => {
    if (typeof member !== 'function') return [name, member]
    const method = async (...args: unknown[]) => {
      try {
        return await (member as (...args: unknown[]) => unknown)(...args)
      } catch (err) {
        throw (err as NodeJS.ErrnoException).code === undefined ? err : toFailure(err)
      }
    }
    return [name, name === 'close' ? member : method]
  })
  return Object.fromEntries(wrapped) as ObjectStore
}
