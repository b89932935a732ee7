import { serialize } from 'pg-protocol'
import type { Shape } from './gate-query.ts'

/*
 * The bytes of PostgreSQL's protocol, version 3 (chapter 55 of its manual): numbers are big-endian, a message is one byte that
 * says what it is and four with the length of the rest, themselves included.
 */

/** What PostgreSQL's messages begin with, as far as somebody looks at them. */
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
/** A character of JavaScript's, UTF-16, takes so many bytes of UTF-8 at most. */
const maxBytesPerCharacter = 3

/** Collects messages that are sent together, in a buffer that is used again for the next ones. */
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
    /** Binds the values to a prepared statement and runs it. Its name is ASCII. */
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
      // each value a string in the format of texts, or bytes in binary
      end = bytes.writeInt16BE(values.length, end)
      for (const given of values) end = bytes.writeInt16BE(given === null || typeof given === 'string' ? 0 : 1, end)
      end = bytes.writeInt16BE(values.length, end)
      for (const given of values) value(given)
      // one format for all columns: text
      end = bytes.writeInt16BE(1, end)
      end = bytes.writeInt16BE(0, end)
      bytes.writeInt32BE(end - start - 1, start + 1)
      end += execute.copy(bytes, end)
    },
    /** All of it, with a Sync behind. */
    take(): Buffer {
      reserve(sync.length)
      end += sync.copy(bytes, end)
      const taken = Buffer.from(bytes.subarray(0, end))
      end = 0
      return taken
    }
  }
}

/** Calls back with each whole message of a stream: where its type stands, and where it ends. */
export function createFramer(onMessage: (bytes: Buffer, start: number, end: number) => void): (chunk: Buffer) => void {
  // the pieces of a message that has not come whole yet
  let pieces: Buffer[] = []
  let held = 0
  let wanted = 0

  return (chunk) => {
    let bytes = chunk
    if (held > 0) {
      pieces.push(chunk)
      held += chunk.length
      // joined once a message is whole, or its length can be read: a long one comes in many pieces
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

/** The row of a DataRow message. */
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
