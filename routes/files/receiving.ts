import { createHash, type Hash } from 'node:crypto'
import { Readable } from 'node:stream'
import type { FastifyInstance, FastifyRequest } from 'fastify'
import { v7 as uuidv7 } from 'uuid'
import { queryIn } from '../../db/gate/gate.ts'
import { recordAudit } from '../../db/queries/audit.ts'
import { type FileRow, finishFile, giveUpFile, growFile, removeFile, reserveFile } from '../../db/queries/files.ts'
import { throwOnAbort } from '../../src/abort-signals.ts'
import { cleanFileName, foldText } from '../../src/files/file-names.ts'
import { headBytes, requireFileType } from '../../src/files/file-types.ts'
import { fileKey } from '../../src/files/store/keys.ts'
import { writeObject } from '../../src/files/store/object-writer.ts'
import { invalidMembers } from '../../src/http/field-errors.ts'
import { fileTooLarge, notFound, quotaExceeded } from '../../src/http/problems.ts'
import { heldBytes, insertUpload, lockRoom } from './upload-queries.ts'

/** For so long a file that is arriving is left alone by the sweep; whoever writes says in time that it still does. */
const patience_seconds = 900
const heartbeatMs = 300_000
/** So much is read before room is reserved where a sender does not say how much is to come: most files are whole by then. */
const unannouncedBytes = 4 * 1024 * 1024
/** By so much the reservation grows for larger ones. */
const stepBytes = 64 * 1024 * 1024

/** What a member can hold by unfinished uploads is the quota of the agency, divided by this. */
export const quotaDivisor = 4

export type Incoming = {
  name: string | undefined
  content_type: string | undefined
  /** Bytes that are expected; undefined: the sender does not say. */
  size: number | undefined
  content: AsyncIterable<Buffer>
}

/** What is known of a file once all of its request has been read. */
export type Conclusion = { purpose: string | null; sha256?: string | undefined }

/**
 * Brings one file into the store: row, bytes, and then in one transaction the row's being ready and its audit event. Whatever
 * fails in between is undone here, or by the sweep when this process can't.
 *
 * `conclude` runs when the bytes are stored, and its rejection undoes them.
 */
export async function receiveFile(
  app: FastifyInstance,
  request: FastifyRequest,
  { name: given, content_type: declared, size: expected, content }: Incoming,
  conclude: () => Promise<Conclusion>
): Promise<FileRow> {
  const { tenant_id } = request.user
  const name = cleanFileName(given)
  const { head, whole } = await peek(content, expected === undefined ? unannouncedBytes : headBytes)
  const content_type = await requireFileType(head.subarray(0, headBytes), name, declared, (bytes) =>
    app.decoders.findType(bytes, tenant_id)
  )
  const size = expected ?? head.length
  return withReservation(app, request, { name, content_type, purpose: null, size }, async (id) => {
    const meter = measure(app, request, { id, size, step: expected === undefined ? stepBytes : 0 }, whole)
    await writeObject(app.objects, fileKey(tenant_id, id), meter.content)
    const { purpose, sha256: announced } = await conclude()
    const sha256 = meter.hash.digest()
    requireSum(sha256, announced, '/body/sha256')
    return finish(request, { id, size: meter.size(), sha256, content_type, purpose })
  })
}

/** Throws `validation_failed` when bytes are not those that were announced. */
export function requireSum(actual: Buffer, announced: string | undefined, path: string): void {
  if (announced === undefined || actual.toString('hex') === announced) return
  const message = `is not the SHA-256 of what arrived, which is ${actual.toString('hex')}`
  throw invalidMembers([{ path, message }])
}

/**
 * Makes the row of a file that is about to arrive, and works with its id. Whatever fails then undoes the reservation, so that
 * nobody's room is taken by a request that was refused. Throws `file_too_large` and `quota_exceeded`.
 */
async function withReservation<T>(
  app: FastifyInstance,
  request: FastifyRequest,
  file: NewFileFacts,
  work: (id: string) => Promise<T>
): Promise<T> {
  const id = await reserve(app, request, file, patience_seconds)
  try {
    return await work(id)
  } catch (err) {
    await undo(app, request, id)
    throw err
  }
}

type NewFileFacts = { name: string; content_type: string; purpose: string | null; size: number }

async function reserve(
  app: FastifyInstance,
  request: FastifyRequest,
  file: NewFileFacts,
  patience: number
): Promise<string> {
  const row = await newRow(app, request, file, patience)
  const [reserved] = await request.tenantQuery(reserveFile, row)
  if (!reserved) throw quotaExceeded()
  return row.id
}

async function newRow(app: FastifyInstance, request: FastifyRequest, file: NewFileFacts, patience_seconds: number) {
  requireSize(app, file.size)
  const quota = await app.storageQuota(request.user.tenant_id)
  const { maxFiles: max_files } = app.config
  return { ...file, id: uuidv7(), folded_name: foldText(file.name), quota, max_files, patience_seconds }
}

/**
 * As `withReservation`, for an upload that outlives the request. What all of a member hold at once is a share of the agency's
 * room, so that nobody keeps the others from it without sending a byte. Throws `quota_exceeded`.
 */
export async function withUpload<T>(
  app: FastifyInstance,
  request: FastifyRequest,
  file: NewFileFacts,
  { sha256, patience }: { sha256: Buffer | null; patience: number },
  work: (id: string) => Promise<T>
): Promise<T> {
  const { tenant_id, user_id } = request.user
  const row = await newRow(app, request, file, patience)
  const share = Math.max(Math.floor(row.quota / quotaDivisor), Math.min(app.config.maxFileSize, row.quota))
  const outcome = await request.withTenant(async (trx) => {
    await lockRoom(trx, tenant_id)
    if ((await heldBytes(trx, tenant_id, user_id)) + row.size > share) return 'share'
    const [reserved] = await queryIn(trx, reserveFile, row)
    if (!reserved) return 'quota'
    await insertUpload(trx, { id: row.id, sha256, store_id: null })
    return 'reserved'
  })
  if (outcome === 'share') throw quotaExceeded({ detail: `your unfinished uploads may hold at most ${share} bytes` })
  if (outcome === 'quota') throw quotaExceeded()
  try {
    return await work(row.id)
  } catch (err) {
    await undo(app, request, row.id)
    throw err
  }
}

function requireSize(app: FastifyInstance, size: number): void {
  const { maxFileSize } = app.config
  if (size > maxFileSize) throw fileTooLarge({ detail: `a file may have at most ${maxFileSize} bytes` })
}

/** The file is there: its row and its audit event, in one transaction. Throws `not_found` when the sweep was faster. */
export async function finish(
  request: FastifyRequest,
  file: { id: string; size: number; sha256: Buffer; content_type: string; purpose: string | null }
): Promise<FileRow> {
  const { tenant_id } = request.user
  const row = await request.withTenant(async (trx) => {
    const finished = await finishFile(trx, tenant_id, file)
    if (!finished) return
    const { name, content_type, size, sha256, purpose } = finished
    const detail = { after: { name, content_type, size, sha256, purpose } }
    await recordAudit(trx, { action: 'file.created', target_id: file.id, detail })
    return finished
  })
  if (!row) throw notFound({ detail: 'the upload took too long and was given up' })
  return row
}

/**
 * The bytes of a body that no parser has read. Whoever stops reading leaves the rest on the connection: it would be closed with the
 * body, and nobody would come to read why.
 */
export function bodyOf({ body, uploadEnd }: FastifyRequest): AsyncIterable<Buffer> {
  if (body === undefined) return Readable.from([])
  return throwOnAbort(uploadEnd, (body as Readable).iterator({ destroyOnReturn: false }))
}

/** Removes what has not become a file. What can't be undone now is what the sweep finds. */
export async function undo(app: FastifyInstance, request: FastifyRequest, id: string): Promise<void> {
  const { tenant_id } = request.user
  try {
    const [given] = await request.tenantQuery(giveUpFile, { tenant_id, id, lease_seconds: 60 })
    if (!given) return
    const key = fileKey(tenant_id, id)
    if (given.store_id !== null) await app.objects.dropParts(key, given.store_id)
    await app.objects.remove(key)
    await request.tenantQuery(removeFile, { tenant_id, id })
  } catch (err) {
    request.log.warn({ err, file_id: id }, 'a failed upload is left to the sweep')
  }
}

/** The beginning of a content, and the content with it. */
async function peek(content: AsyncIterable<Buffer>, bytes: number) {
  const source = content[Symbol.asyncIterator]()
  const read: Buffer[] = []
  for (let size = 0; size < bytes; ) {
    const next = await source.next()
    if (next.done) break
    read.push(next.value)
    size += next.value.length
  }
  async function* whole() {
    yield* read.splice(0)
    for (let next = await source.next(); !next.done; next = await source.next()) yield next.value
  }
  return { head: Buffer.concat(read), whole: whole() }
}

/** Counts and hashes what passes, and reserves room for it before it is stored: `step` bytes ahead, or only what is there. */
function measure(
  app: FastifyInstance,
  request: FastifyRequest,
  reservation: { id: string; size: number; step: number },
  content: AsyncIterable<Buffer>
): { content: AsyncIterable<Buffer>; hash: Hash; size(): number } {
  const { tenant_id } = request.user
  const hash = createHash('sha256')
  let { size: reserved, step } = reservation
  let size = 0
  let toldAt = Date.now()

  /** Also tells the sweep that somebody is at work. */
  async function hasRoomFor(more: number): Promise<boolean> {
    const quota = await app.storageQuota(tenant_id)
    const [row] = await request.tenantQuery(growFile, { tenant_id, id: reservation.id, more, quota, patience_seconds })
    if (row) reserved = row.size
    toldAt = Date.now()
    return row !== undefined
  }

  async function makeRoom(): Promise<void> {
    const missing = size - reserved
    if (step > missing && (await hasRoomFor(step))) return
    // where a whole step does not fit, what is there already may
    step = 0
    if (!(await hasRoomFor(missing))) throw quotaExceeded()
  }

  async function* measured() {
    for await (const chunk of content) {
      size += chunk.length
      requireSize(app, size)
      if (size > reserved) await makeRoom()
      else if (Date.now() - toldAt > heartbeatMs && !(await hasRoomFor(0))) throw quotaExceeded()
      hash.update(chunk)
      yield chunk
    }
  }

  return { content: measured(), hash, size: () => size }
}
