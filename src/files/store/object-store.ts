import { type Readable, Transform } from 'node:stream'
import { countDiscardedBytes } from './garbage-collection.ts'

/** An entry of a listing. */
export type StoredObject = { key: string; size: number; modified_at: Date }

/** A signed request that a client sends directly to the store. */
export type DirectRequest = { url: string; method: 'GET' | 'PUT'; headers: Record<string, string> }

/** A part of a multipart upload. `tag` is the store's ETag of its content. */
export type Part = { number: number; tag: string }

/**
 * The store of the files' bytes: an S3 bucket or a folder. Callers don't know which of the two it is.
 *
 * The server makes the keys, which begin with the owner's id. An object is either complete or absent, and an
 * acknowledged write survives a crash. A method rejects with a StoreFailure when the store refuses, fails or is silent
 * for `storeTimeoutMs`.
 */
export type ObjectStore = {
  /** Writes a small object in one request. */
  put(key: string, content: Buffer): Promise<void>
  /**
   * Reads the bytes from `start` to `end`, both included, or the whole object. Resolves to undefined when there is no
   * such object.
   */
  get(key: string, range?: { start: number; end: number }): Promise<Readable | undefined>
  /** Resolves to the number of bytes, or to undefined when there is no such object. */
  size(key: string): Promise<number | undefined>
  /** Removes an object. Succeeds when there is no such object. */
  remove(key: string): Promise<void>
  /** Renames an object, and replaces the object that has the new name. */
  move(from: string, to: string): Promise<void>
  /** Lists at most `limit` objects in the order of their keys, beginning behind the key `after`. */
  list(after: string, limit: number): Promise<StoredObject[]>

  /** The minimum size of every part except the last. */
  readonly minPartBytes: number
  /** Starts a multipart upload. Resolves to the store's id of the upload. */
  startParts(key: string): Promise<string>
  /**
   * Writes one part, and replaces a part with the same number. Numbers begin at 1; `offset` is the position in the
   * object.
   */
  putPart(key: string, id: string, number: number, offset: number, content: Buffer): Promise<Part>
  /** Completes a multipart upload: joins the parts into the object. */
  finishParts(key: string, id: string, parts: readonly Part[]): Promise<void>
  /** Aborts a multipart upload and removes its parts. Succeeds when the id is unknown. */
  dropParts(key: string, id: string): Promise<void>
  /**
   * Removes the parts of uploads without a new byte for two days. Does nothing for a bucket, which has a lifecycle rule
   * for it.
   */
  dropStaleParts(): Promise<void>

  /** Makes signed requests for clients. Undefined where clients can't reach the store. */
  readonly direct: DirectRequests | undefined
  /**
   * Signs all further requests with another key of the same store. Requests under way and links that were signed keep theirs.
   * Undefined where there is no key.
   */
  renew?(key: { access_key: string; secret_key: string }): void
  /** Rejects when the store can't be reached or refuses the credentials. */
  check(): Promise<void>
  close(): void
}

export type DirectRequests = {
  /** A request that stores exactly these bytes or nothing: their number and their SHA-256 are signed. */
  put(
    key: string,
    content: { size: number; sha256: Buffer; content_type: string },
    seconds: number
  ): Promise<DirectRequest>
  get(
    key: string,
    reply: { content_type: string; content_disposition: string },
    seconds: number
  ): Promise<DirectRequest>
}

/** A store that is silent for longer counts as unavailable. */
export const storeTimeoutMs = 10_000

/**
 * A failed operation of the store.
 *
 * `away`: the store does not answer, or reports that it is unavailable. `full`: it has no room. `refused`: it denies
 * access, which only an operator can change.
 */
export class StoreFailure extends Error {
  readonly kind: 'away' | 'full' | 'refused'
  constructor(kind: StoreFailure['kind'], cause: unknown) {
    super(`the object store is ${kind}`, { cause })
    this.kind = kind
  }
}

/**
 * Wraps the stream of a stored object. An error of the source reaches the reader as the StoreFailure of `toFailure`.
 */
export function wrapStoredStream(source: Readable, toFailure: (err: unknown) => Error): Readable {
  const read = new Transform({
    highWaterMark: 256 * 1024,
    transform(chunk: Buffer, _encoding, done) {
      countDiscardedBytes(chunk.length)
      done(null, chunk)
    }
  })
  source.on('error', (err) => read.destroy(toFailure(err)))
  read.on('close', () => source.destroy())
  return source.pipe(read)
}
