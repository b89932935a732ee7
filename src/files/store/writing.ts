import { passed } from '../young-garbage.ts'
import type { ObjectStore, Part } from './object-store.ts'

/** The least that S3 takes. Held three times by each upload that is under way: one fills while two are sent. */
export const partBytes = 5 * 1024 * 1024
const buffersHeld = 3

/**
 * The content in parts of exactly `size` bytes, but for the last, and for the first where it has `first` bytes. Three buffers take turns: a part is overwritten when the
 * third after it is asked for.
 */
export async function* inParts(content: AsyncIterable<Buffer>, size = partBytes, first = size): AsyncGenerator<Buffer> {
  let wanted = first
  const buffers: Buffer[] = []
  let turn = 0
  let filled = 0
  for await (const chunk of content) {
    passed(chunk.length)
    for (let taken = 0; taken < chunk.length; ) {
      buffers[turn] ??= Buffer.allocUnsafeSlow(size)
      const buffer = buffers[turn] as Buffer
      const fits = Math.min(wanted - filled, chunk.length - taken)
      chunk.copy(buffer, filled, taken, taken + fits)
      filled += fits
      taken += fits
      if (filled < wanted) continue
      yield wanted === size ? buffer : buffer.subarray(0, wanted)
      wanted = size
      turn = (turn + 1) % buffersHeld
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
  let sent = 0
  let offset = 0
  // of two parts on their way, the one before and the last
  let earlier: Promise<void> | undefined
  let latest: Promise<void> | undefined

  async function send(part: Buffer): Promise<void> {
    id ??= await store.startParts(key)
    await earlier
    earlier = latest
    const [index, at] = [sent++, offset]
    offset += part.length
    latest = store.putPart(key, id, index + 1, at, part).then((done) => {
      parts[index] = done
    })
    // its failure is met at a later await
    latest.catch(() => {})
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
    await Promise.all([earlier, latest])
    if (id === undefined) await store.put(key, only ?? Buffer.alloc(0))
    else await store.finishParts(key, id, parts)
  } catch (err) {
    await Promise.allSettled([earlier, latest])
    // what can't be dropped now is dropped by the sweep
    if (id !== undefined) await store.dropParts(key, id).catch(() => {})
    throw err
  }
}
