import { passed } from '../young-garbage.ts'
import type { ObjectStore, Part } from './store.ts'

/** Held twice by each upload that is under way: one fills while the other is sent. */
export const partBytes = 8 * 1024 * 1024

/**
 * The content in parts of exactly `size` bytes, but for the last. Two buffers take turns: a part is overwritten when the one
 * after the next is asked for.
 */
export async function* inParts(content: AsyncIterable<Buffer>, size = partBytes): AsyncGenerator<Buffer> {
  const buffers: Buffer[] = []
  let turn = 0
  let filled = 0
  for await (const chunk of content) {
    passed(chunk.length)
    for (let taken = 0; taken < chunk.length; ) {
      buffers[turn] ??= Buffer.allocUnsafeSlow(size)
      const buffer = buffers[turn] as Buffer
      const fits = Math.min(size - filled, chunk.length - taken)
      chunk.copy(buffer, filled, taken, taken + fits)
      filled += fits
      taken += fits
      if (filled < size) continue
      yield buffer
      turn = 1 - turn
      filled = 0
    }
  }
  if (filled > 0) yield (buffers[turn] as Buffer).subarray(0, filled)
}

/**
 * Writes what the content brings under a key, in constant memory and no faster than the store takes it. Rejects with what the
 * content or the store rejects with; nothing is visible under the key then.
 */
export async function writeObject(store: ObjectStore, key: string, content: AsyncIterable<Buffer>): Promise<void> {
  const parts: Part[] = []
  let id: string | undefined
  let only: Buffer | undefined
  let offset = 0
  let sending: Promise<void> | undefined

  async function send(part: Buffer): Promise<void> {
    id ??= await store.startParts(key)
    await sending
    const [number, at] = [parts.length + 1, offset]
    offset += part.length
    sending = store.putPart(key, id, number, at, part).then((done) => void parts.push(done))
    // its failure is met at the next await
    sending.catch(() => {})
  }

  try {
    for await (const part of inParts(content)) {
      // a whole that fits into one part is one request
      if (only === undefined && id === undefined) {
        only = part
        continue
      }
      if (only !== undefined) {
        await send(only)
        only = undefined
      }
      await send(part)
    }
    await sending
    if (id === undefined) await store.put(key, only ?? Buffer.alloc(0))
    else await store.finishParts(key, id, parts)
  } catch (err) {
    await sending?.catch(() => {})
    // what can't be dropped now is dropped by the sweep
    if (id !== undefined) await store.dropParts(key, id).catch(() => {})
    throw err
  }
}
