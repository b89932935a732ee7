import { createHash, type Hash } from 'node:crypto'
import { Readable } from 'node:stream'
import type { FastifyInstance, FastifyRequest } from 'fastify'
import { v7 as uuidv7 } from 'uuid'
import { queryIn } from '../../db/gate/gate.ts'
import { recordAudit } from '../../db/queries/audit.ts'
import { abandonFile, type FileRow, finishFile, growFile, removeFile, reserveFile } from '../../db/queries/files.ts'
import { throwOnAbort } from '../../src/abort-signals.ts'
import { cleanFileName, foldText } from '../../src/files/file-names.ts'
import { headBytes, requireFileType } from '../../src/files/file-types.ts'
import { fileKey } from '../../src/files/store/keys.ts'
import { writeObject } from '../../src/files/store/object-writer.ts'
import { invalidMembers } from '../../src/http/field-errors.ts'
import { fileTooLarge, notFound, quotaExceeded } from '../../src/http/problems.ts'
import { heldBytes, insertUpload, lockStorageUsage } from './upload-queries.ts'

/** The sweep removes an unfinished file this long after its reservation was renewed last. */
const timeout_seconds = 900
/** A running upload renews its reservation this often. */
const heartbeatMs = 300_000
/** A file that may be smaller is read up to this size before storage is reserved. Most files are complete by then. */
const readAheadBytes = 4 * 1024 * 1024
/**
 * The reservation of a larger file grows by this step when its size was not announced, and by the small step otherwise.
 */
const stepBytes = 64 * 1024 * 1024
const smallStepBytes = 64 * 1024

/** The unfinished uploads of a member may hold the quota of the agency divided by this. */
export const quotaDivisor = 4

export type Incoming = {
  name: string | undefined
  content_type: string | undefined
  /** The least size in bytes by the announced length of the request; undefined when no length was announced. */
  minSize: number | undefined
  content: AsyncIterable<Buffer>
}

/** The fields of a file that are known when the whole request has been read. */
export type FileFields = { purpose: string | null; sha256?: string | undefined }

/**
 * Receives one file: reserves a row, stores the bytes, then marks the row as ready and writes its audit event in one
 * transaction. A failure in between removes the row and the bytes, here or, after a crash, by the sweep.
 *
 * `readFields` runs after the bytes are stored. Its rejection is a failure too.
 */
export async function receiveFile(
  app: FastifyInstance,
  request: FastifyRequest,
  { name: given, content_type: declared, minSize, content }: Incoming,
  readFields: () => Promise<FileFields>
): Promise<FileRow> {
  const { tenant_id } = request.user
  const name = cleanFileName(given)
  const isLarge = minSize !== undefined && minSize > Math.min(readAheadBytes, app.config.maxFileSize)
  const { head, read, whole } = await readAhead(content, isLarge ? headBytes : readAheadBytes)
  const content_type = await requireFileType(head, name, declared, (bytes) => app.decoders.findType(bytes, tenant_id))
  const size = isLarge ? minSize : read
  const step = minSize === undefined ? stepBytes : smallStepBytes
  return withReservation(app, request, { name, content_type, purpose: null, size }, async (id) => {
    const meter = meterContent(app, request, { id, size, step }, whole)
    await writeObject(app.objects, fileKey(tenant_id, id), meter.content)
    const { purpose, sha256: announced } = await readFields()
    const sha256 = meter.hash.digest()
    requireChecksum(sha256, announced, '/body/sha256')
    return publishFile(request, { id, size: meter.size(), sha256, content_type, purpose })
  })
}

/** Throws `validation_failed` when the SHA-256 differs from the announced one. */
export function requireChecksum(actual: Buffer, announced: string | undefined, path: string): void {
  if (announced === undefined || actual.toString('hex') === announced) return
  const message = `is not the SHA-256 of what arrived, which is ${actual.toString('hex')}`
  throw invalidMembers([{ path, message }])
}

/**
 * Reserves the row and the storage of a file, and runs `work` with its id. When `work` fails, the reservation is
 * removed, so that a refused request holds no storage.
 *
 * Throws `file_too_large` or `quota_exceeded`.
 */
async function withReservation<T>(
  app: FastifyInstance,
  request: FastifyRequest,
  file: NewFile,
  work: (id: string) => Promise<T>
): Promise<T> {
  const id = await reserve(app, request, file, timeout_seconds)
  try {
    return await work(id)
  } catch (err) {
    await abandonUpload(app, request, id)
    throw err
  }
}

type NewFile = { name: string; content_type: string; purpose: string | null; size: number }

async function reserve(
  app: FastifyInstance,
  request: FastifyRequest,
  file: NewFile,
  timeoutSeconds: number
): Promise<string> {
  const row = await newRow(app, request, file, timeoutSeconds)
  const [reserved] = await request.tenantQuery(reserveFile, row)
  if (!reserved) throw quotaExceeded()
  return row.id
}

async function newRow(app: FastifyInstance, request: FastifyRequest, file: NewFile, timeout_seconds: number) {
  requireSize(app, file.size)
  const quota = await app.storageQuota(request.user.tenant_id)
  const { maxFiles: max_files } = app.config
  return { ...file, id: uuidv7(), folded_name: foldText(file.name), quota, max_files, timeout_seconds }
}

/**
 * Reserves like `withReservation`, for an upload that outlives the request.
 *
 * The unfinished uploads of one member may hold a share of the agency's quota only. Otherwise one member could block
 * the storage for the others without sending a byte. Throws `quota_exceeded`.
 */
export async function withUpload<T>(
  app: FastifyInstance,
  request: FastifyRequest,
  file: NewFile,
  { sha256, timeoutSeconds }: { sha256: Buffer | null; timeoutSeconds: number },
  work: (id: string) => Promise<T>
): Promise<T> {
  const { tenant_id, user_id } = request.user
  const row = await newRow(app, request, file, timeoutSeconds)
  const share = Math.max(Math.floor(row.quota / quotaDivisor), Math.min(app.config.maxFileSize, row.quota))
  const outcome = await request.withTenant(async (trx) => {
    await lockStorageUsage(trx, tenant_id)
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
    await abandonUpload(app, request, row.id)
    throw err
  }
}

function requireSize(app: FastifyInstance, size: number): void {
  const { maxFileSize } = app.config
  if (size > maxFileSize) throw fileTooLarge({ detail: `a file may have at most ${maxFileSize} bytes` })
}

/**
 * Marks the file as ready and writes its audit event, in one transaction. Throws `not_found` when the sweep has removed
 * the file.
 */
export async function publishFile(
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
 * The bytes of a body that no parser has read. A reader that stops early leaves the rest on the connection. Destroying
 * the body would close the connection, and the client would not get the reply that says why.
 */
export function bodyOf({ body, uploadSignal }: FastifyRequest): AsyncIterable<Buffer> {
  if (body === undefined) return Readable.from([])
  return throwOnAbort(uploadSignal, (body as Readable).iterator({ destroyOnReturn: false }))
}

/** Removes the row and the bytes of an unfinished file. On failure the sweep removes them later. */
export async function abandonUpload(app: FastifyInstance, request: FastifyRequest, id: string): Promise<void> {
  const { tenant_id } = request.user
  try {
    const [given] = await request.tenantQuery(abandonFile, { tenant_id, id, lease_seconds: 60 })
    if (!given) return
    const key = fileKey(tenant_id, id)
    if (given.store_id !== null) await app.objects.dropParts(key, given.store_id)
    await app.objects.remove(key)
    await request.tenantQuery(removeFile, { tenant_id, id })
  } catch (err) {
    request.log.warn({ err, file_id: id }, 'a failed upload is left to the sweep')
  }
}

/**
 * Reads at least so many bytes of a content, or all of it. `head` is its first bytes, by which its type is found,
 * `read` the number of bytes that were read, and `whole` the content from its beginning.
 */
async function readAhead(content: AsyncIterable<Buffer>, bytes: number) {
  const source = content[Symbol.asyncIterator]()
  const chunks: Buffer[] = []
  let read = 0
  while (read < bytes) {
    const next = await source.next()
    if (next.done) break
    chunks.push(next.value)
    read += next.value.length
  }
  const head = Buffer.concat(chunks, Math.min(read, headBytes))
  async function* whole() {
    for (let chunk = chunks.shift(); chunk; chunk = chunks.shift()) yield chunk
    for (let next = await source.next(); !next.done; next = await source.next()) yield next.value
  }
  return { head, read, whole: whole() }
}

/**
 * Counts and hashes the bytes that pass through, and reserves storage for them before they pass: `step` bytes at once,
 * or only the bytes that have arrived when a whole step exceeds the quota.
 */
function meterContent(
  app: FastifyInstance,
  request: FastifyRequest,
  reservation: { id: string; size: number; step: number },
  content: AsyncIterable<Buffer>
): { content: AsyncIterable<Buffer>; hash: Hash; size(): number } {
  const { tenant_id } = request.user
  const hash = createHash('sha256')
  let { size: reserved, step } = reservation
  let size = 0
  let renewedAt = Date.now()

  /** Grows the reservation and renews its timeout. False when the quota is exceeded. */
  async function growReservation(more: number): Promise<boolean> {
    const quota = await app.storageQuota(tenant_id)
    const [row] = await request.tenantQuery(growFile, { tenant_id, id: reservation.id, more, quota, timeout_seconds })
    if (row) reserved = row.size
    renewedAt = Date.now()
    return row !== undefined
  }

  async function reserveMissing(): Promise<void> {
    const missing = size - reserved
    if (step > missing && (await growReservation(step))) return
    // a whole step exceeds the quota, but the bytes that have arrived may fit
    step = 0
    if (!(await growReservation(missing))) throw quotaExceeded()
  }

  async function* metered() {
    for await (const chunk of content) {
      size += chunk.length
      requireSize(app, size)
      if (size > reserved) await reserveMissing()
      else if (Date.now() - renewedAt > heartbeatMs && !(await growReservation(0))) throw quotaExceeded()
      hash.update(chunk)
      yield chunk
    }
  }

  return { content: metered(), hash, size: () => size }
}
