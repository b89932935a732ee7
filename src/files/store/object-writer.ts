import { countDiscardedBytes } from './garbage-collection.ts'
import type { ObjectStore, Part } from './object-store.ts'

/** The minimum part size of S3. Each running upload holds three buffers of it: one is filled while two are sent. */
export const partBytes = 5 * 1024 * 1024
const bufferCount = 3

/**
 * Splits the content into parts of exactly `size` bytes; the last part may be shorter, and the first part has `first`
 * bytes.
 *
 * Three buffers are reused in turn. So a part is valid until the reader asks for the third part after it.
 */
export async function* splitIntoParts(
  content: AsyncIterable<Buffer>,
  size = partBytes,
  first = size
): AsyncGenerator<Buffer> {
  let partSize = first
  const buffers: Buffer[] = []
  let current = 0
  let filled = 0
  for await (const chunk of content) {
    countDiscardedBytes(chunk.length)
    for (let taken = 0; taken < chunk.length; ) {
      buffers[current] ??= Buffer.allocUnsafeSlow(size)
      const buffer = buffers[current] as Buffer
      const fits = Math.min(partSize - filled, chunk.length - taken)
      chunk.copy(buffer, filled, taken, taken + fits)
      filled += fits
      taken += fits
      if (filled < partSize) continue
      yield partSize === size ? buffer : buffer.subarray(0, partSize)
      partSize = size
      current = (current + 1) % bufferCount
      filled = 0
    }
  }
  if (filled > 0) yield (buffers[current] as Buffer).subarray(0, filled)
}

/**
 * Writes the content as one object, in constant memory and with backpressure from the store. Content that fits into one
 * part is one request. Rejects with the error of the content or of the store; no object exists under the key then.
 */
export async function writeObject(store: ObjectStore, key: string, content: AsyncIterable<Buffer>): Promise<void> {
  const parts: Part[] = []
  let id: string | undefined
  let firstPart: Buffer | undefined
  let sent = 0
  let offset = 0
  // at most two parts are sent at once
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
    // a failure is handled at a later await
    latest.catch(() => {})
  }

  try {
    for await (const part of splitIntoParts(content)) {
      // hold the first part back until there is a second one
      if (firstPart === undefined && id === undefined) {
        firstPart = part
        continue
      }
      if (firstPart !== undefined) {
        await send(firstPart)
        firstPart = undefined
      }
      await send(part)
    }
    await Promise.all([earlier, latest])
    if (id === undefined) await store.put(key, firstPart ?? Buffer.alloc(0))
    else await store.finishParts(key, id, parts)
  } catch (err) {
    await Promise.allSettled([earlier, latest])
    // parts that can't be dropped now are removed later, as stale parts
    if (id !== undefined) await store.dropParts(key, id).catch(() => {})
    throw err
  }
}
