import { type Readable, Transform } from 'node:stream'
import { passed } from '../young-garbage.ts'

/** One object as a listing shows it. */
export type StoredObject = { key: string; size: number; modified_at: Date }

/** A request that a client sends to the store itself. */
export type DirectRequest = { url: string; method: 'GET' | 'PUT'; headers: Record<string, string> }

/** A part of an object that is still being written; `tag` is the store's name for its content. */
export type Part = { number: number; tag: string }

/**
 * Where the bytes of files lie: an S3 bucket or a folder. Nothing else knows which.
 *
 * Keys are made by the server, the owner's id first. An object is there whole or not at all, and what was acknowledged survives
 * a crash. Every method rejects with a StoreFailure when the store can't, or gives no sign of life for `patienceMs`.
 */
export type ObjectStore = {
  /** Writes a small object at once. */
  put(key: string, content: Buffer): Promise<void>
  /** Bytes from `start` to `end`, both included; the whole object without them. Undefined: there is no such object. */
  get(key: string, range?: { start: number; end: number }): Promise<Readable | undefined>
  size(key: string): Promise<number | undefined>
  /** Removes the object; one that is not there is gone already. */
  remove(key: string): Promise<void>
  /** Renames an object, replacing what is there. */
  move(from: string, to: string): Promise<void>
  /** Objects in the order of their keys, after one of them. */
  list(after: string, limit: number): Promise<StoredObject[]>

  /** A part must have at least this many bytes, but for the last one. */
  readonly minPartBytes: number
  /** Begins an object that arrives in parts. Resolves to the store's id of it. */
  startParts(key: string): Promise<string>
  /** Writes one part at its place; the same number again replaces it. Numbers begin at 1. */
  putPart(key: string, id: string, number: number, offset: number, content: Buffer): Promise<Part>
  /** Makes the object out of its parts. */
  finishParts(key: string, id: string, parts: readonly Part[]): Promise<void>
  /** Forgets the parts; those of an id that is not known are gone already. */
  dropParts(key: string, id: string): Promise<void>
  /** Forgets the parts to which nobody has added anything for two days; a bucket does so by a rule of its own. */
  dropForgotten(): Promise<void>

  /** Requests that clients can send to the store; undefined where they can't reach it. */
  readonly direct: DirectRequests | undefined
  /** Rejects when the store can't be reached or does not let us in. */
  check(): Promise<void>
  close(): void
}

export type DirectRequests = {
  /** Stores exactly these bytes, or nothing: their number and their SHA-256 are signed. */
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

/** Longer without a sign of life, and the store counts as away. */
export const patienceMs = 10_000

/**
 * The store could not do it.
 *
 * `away`: it does not answer, or says that it can't now. `full`: there is no room. `refused`: it does not let us, which waits for
 * an operator.
 */
export class StoreFailure extends Error {
  readonly kind: 'away' | 'full' | 'refused'
  constructor(kind: StoreFailure['kind'], cause: unknown) {
    super(`the object store is ${kind}`, { cause })
    this.kind = kind
  }
}

/** What a store gives to be read. What breaks on the way is a failure of the store. */
export function passing(source: Readable, toFailure: (err: unknown) => Error): Readable {
  const read = new Transform({
    highWaterMark: 256 * 1024,
    transform(chunk: Buffer, _encoding, done) {
      passed(chunk.length)
      done(null, chunk)
    }
  })
  source.on('error', (err) => read.destroy(toFailure(err)))
  read.on('close', () => source.destroy())
  return source.pipe(read)
}
