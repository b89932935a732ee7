import type { FastifyInstance, FastifyRequest } from 'fastify'
import { v4 as randomUuid } from 'uuid'
import { headBytes, requireFileType } from '../../src/files/file-types.ts'
import { fileKey } from '../../src/files/store/keys.ts'
import { partBytes, splitIntoParts } from '../../src/files/store/object-writer.ts'
import { conflict, payloadTooLarge } from '../../src/http/problems.ts'
import { abandonUpload, bodyOf } from './receiving.ts'
import {
  advanceUpload,
  appendPiece,
  findWriter,
  readPieces,
  renewUpload,
  takeUpload,
  type UploadRow
} from './upload-queries.ts'

/** A resumable upload is abandoned after this time without a byte. */
export const idleTimeoutSeconds = 900
/** A resumable upload is abandoned after this time in any case. */
export const lifeSeconds = 86_400
/** A connection that brings bytes renews the idle timeout this often, also while the bytes do not fill a part. */
const heartbeatMs = 300_000

type State = Pick<UploadRow, 'received' | 'tags' | 'store_id' | 'expires_at'> & { last?: Buffer }

/**
 * Stores the bytes of a request, also when the connection breaks or the upload loses its slot. Complete parts go to the
 * store, and the bytes of an incomplete part go to the database as pieces.
 *
 * The last bytes of the file are returned in `last`, and are neither stored nor counted. So a client whose upload
 * failed at the end can send them again.
 *
 * Throws `conflict` when another request writes to the same upload.
 */
export async function append(
  app: FastifyInstance,
  request: FastifyRequest,
  id: string,
  upload: UploadRow
): Promise<State> {
  const { tenant_id } = request.user
  const key = fileKey(tenant_id, id)
  const writer = randomUuid()
  const [taken] = await request.tenantQuery(takeUpload, { tenant_id, id, writer, offset: upload.received })
  if (!taken) throw writerReplaced()
  const state: State = { ...upload, tags: taken.tags, store_id: taken.store_id }
  const writing = { tenant_id, id, writer, timeout_seconds: idleTimeoutSeconds, life_seconds: lifeSeconds }
  // the multipart id that the row has
  let savedStoreId = taken.store_id
  // the bytes before the first piece
  let bytesBeforePieces = taken.received
  // the stored bytes of the incomplete part
  let keptBytes = upload.received - state.tags.length * partBytes
  let renewedAt = Date.now()

  /** Puts the stored bytes of the incomplete part in front of a piece. */
  async function withKeptBytes(piece: Buffer): Promise<Buffer> {
    if (keptBytes === 0) return piece
    const rows = await request.tenantQuery(readPieces, { tenant_id, id })
    const before = Buffer.concat(rows.map(({ content }) => content))
    if (before.length < keptBytes) throw writerReplaced()
    return Buffer.concat([before.subarray(0, keptBytes), piece])
  }

  async function storePiece(content: Buffer): Promise<void> {
    const position = state.received
    const [kept] = await request.tenantQuery(appendPiece, {
      ...{ ...writing, position, content },
      received: bytesBeforePieces
    })
    if (!kept) throw writerReplaced()
    Object.assign(state, { received: position + content.length, expires_at: kept.expires_at })
  }

  async function storePart(part: Buffer): Promise<void> {
    // another request may have become the writer and have stored this part
    const [mine] = await request.tenantQuery(findWriter, { tenant_id, id, writer })
    if (!mine) throw writerReplaced()
    state.store_id ??= await app.objects.startParts(key)
    const at = state.tags.length * partBytes
    const { tag } = await app.objects.putPart(key, state.store_id, state.tags.length + 1, at, part)
    state.tags = [...state.tags, tag]
    const { tags, store_id } = state
    const received = tags.length * partBytes
    const [kept] = await request.tenantQuery(advanceUpload, { ...writing, received, tags, store_id })
    if (!kept) {
      // only this request knows a multipart id that no row has
      if (store_id !== savedStoreId) await app.objects.dropParts(key, store_id)
      throw writerReplaced()
    }
    savedStoreId = store_id
    keptBytes = 0
    bytesBeforePieces = received
    Object.assign(state, { received, expires_at: kept.expires_at })
  }

  async function requireType(piece: Buffer): Promise<void> {
    const head = (await withKeptBytes(piece)).subarray(0, headBytes)
    const findType = (bytes: Buffer) => app.decoders.findType(bytes, request.user.tenant_id)
    await requireFileType(head, upload.name, upload.content_type, findType).catch(async (err) => {
      // later bytes can't change the type
      await abandonUpload(app, request, id)
      throw err
    })
  }

  /** Passes bytes through, and renews the idle timeout from time to time. */
  async function* renewing(content: AsyncIterable<Buffer>): AsyncGenerator<Buffer> {
    for await (const chunk of content) {
      yield chunk
      if (Date.now() - renewedAt < heartbeatMs) continue
      if ((await request.tenantQuery(renewUpload, writing)).length === 0) throw writerReplaced()
      renewedAt = Date.now()
    }
  }

  const content = renewing(untilDisconnected(request, upload.size - upload.received))
  for await (const piece of splitIntoParts(content, partBytes, partBytes - keptBytes)) {
    const end = state.received + piece.length
    if (state.tags.length === 0 && keptBytes < headBytes && end >= headBytes) await requireType(piece)
    if (end === upload.size) state.last = Buffer.from(await withKeptBytes(piece))
    else if (keptBytes + piece.length === partBytes) await storePart(await withKeptBytes(piece))
    else await storePiece(piece)
  }
  request.uploadSignal?.throwIfAborted()
  return state
}

const writerReplaced = () =>
  conflict({ detail: 'another request writes this upload: ask for its offset, and go on from there' })

/** The bytes of the body. A broken connection, or the loss of the upload slot, ends them like the end of the body. */
async function* untilDisconnected(request: FastifyRequest, maxBytes: number): AsyncGenerator<Buffer> {
  let left = maxBytes
  try {
    for await (const chunk of bodyOf(request)) {
      if (chunk.length > left) throw payloadTooLarge()
      left -= chunk.length
      yield chunk
    }
  } catch (err) {
    const hasEnded = (err as { code?: string }).code === 'ECONNRESET' || err === request.uploadSignal?.reason
    if (!hasEnded) throw err
  }
}
