import type { Shape } from './gate-query.ts'
import { serialize } from './pg-internals.ts'

/*
 * The byte format of PostgreSQL's protocol, version 3 (chapter 55 of its manual). Numbers are big-endian. A message is one
 * byte of type, then four bytes with the length of the rest, these four included, then its content.
 */

/** The type bytes of the server messages that we read. */
export const messageType = {
  commandComplete: 0x43,
  dataRow: 0x44,
  emptyQueryResponse: 0x49,
  errorResponse: 0x45,
  readyForQuery: 0x5a,
  rowDescription: 0x54
}

const sync = serialize.sync()
const execute = serialize.execute({})
const bind = 0x42
const headLength = 5
/** The most UTF-8 bytes that one UTF-16 code unit of a JavaScript string can take. */
const maxBytesPerCharacter = 3

/** Collects messages that are sent together, in a buffer that is reused for the next batch. */
export function createBatchWriter() {
  let bytes = Buffer.allocUnsafe(16_384)
  let end = 0

  function reserve(more: number): void {
    if (end + more <= bytes.length) return
    const larger = Buffer.allocUnsafe(Math.max(end + more, bytes.length * 2))
    bytes.copy(larger, 0, 0, end)
    bytes = larger
  }

  function value(given: string | Buffer | null): void {
    if (given === null) {
      end = bytes.writeInt32BE(-1, end)
      return
    }
    const length = typeof given === 'string' ? bytes.write(given, end + 4) : given.copy(bytes, end + 4)
    end = bytes.writeInt32BE(length, end) + length
  }

  return {
    /** Appends Bind and Execute of a prepared statement. The name must be ASCII. */
    run(name: string, values: readonly (string | Buffer | null)[]): void {
      let most = 64 + name.length
      for (const given of values) most += 6 + (given === null ? 0 : given.length * maxBytesPerCharacter)
      reserve(most)
      const start = end
      bytes[end] = bind
      bytes[start + headLength] = 0
      end = start + headLength + 1
      end += bytes.write(name, end, 'latin1')
      bytes[end++] = 0
      // the format of each value: 0 is text, 1 is binary
      end = bytes.writeInt16BE(values.length, end)
      for (const given of values) end = bytes.writeInt16BE(given === null || typeof given === 'string' ? 0 : 1, end)
      end = bytes.writeInt16BE(values.length, end)
      for (const given of values) value(given)
      // one format code for all result columns: text
      end = bytes.writeInt16BE(1, end)
      end = bytes.writeInt16BE(0, end)
      bytes.writeInt32BE(end - start - 1, start + 1)
      end += execute.copy(bytes, end)
    },
    /** Returns the collected messages followed by a Sync, and starts the next batch. */
    take(): Buffer {
      reserve(sync.length)
      end += sync.copy(bytes, end)
      const taken = Buffer.from(bytes.subarray(0, end))
      end = 0
      return taken
    }
  }
}

/** Splits a stream into messages. Calls back for each whole one with the offsets of its type byte and of its end. */
export function createFramer(onMessage: (bytes: Buffer, start: number, end: number) => void): (chunk: Buffer) => void {
  // the chunks of a message that is not complete yet
  let pieces: Buffer[] = []
  let held = 0
  let wanted = 0

  return (chunk) => {
    let bytes = chunk
    if (held > 0) {
      pieces.push(chunk)
      held += chunk.length
      // joined only once the message is complete, or its length can be read: a long message comes in many chunks
      if (held < wanted) return
      bytes = Buffer.concat(pieces, held)
      pieces = []
      held = 0
    }
    let start = 0
    wanted = headLength
    while (bytes.length - start >= headLength) {
      const end = start + 1 + bytes.readUInt32BE(start + 1)
      if (end > bytes.length) {
        wanted = end - start
        break
      }
      onMessage(bytes, start, end)
      start = end
    }
    if (start === bytes.length) return
    held = bytes.length - start
    pieces = [bytes.subarray(start)]
  }
}

/** Parses a DataRow message into a row. */
export function readRow(bytes: Buffer, start: number, { names, readers }: Shape): Record<string, unknown> {
  const row: Record<string, unknown> = {}
  let at = start + headLength + 2
  for (let i = 0; i < names.length; i++) {
    const length = bytes.readInt32BE(at)
    at += 4
    if (length === -1) {
      row[names[i] as string] = null
      continue
    }
    row[names[i] as string] = (readers[i] as Shape['readers'][number])(bytes.toString('utf8', at, at + length))
    at += length
  }
  return row
}
