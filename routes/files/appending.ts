import type { FastifyInstance, FastifyRequest } from 'fastify'
import { v4 as randomUuid } from 'uuid'
import { headBytes, requireFileType } from '../../src/files/file-types.ts'
import { fileKey } from '../../src/files/store/keys.ts'
import { partBytes, splitIntoParts } from '../../src/files/store/object-writer.ts'
import { conflict, payloadTooLarge } from '../../src/http/problems.ts'
import { bodyOf, undo } from './receiving.ts'
import {
  advanceUpload,
  appendPiece,
  findWriter,
  prolongUpload,
  readPieces,
  takeUpload,
  type UploadRow
} from './upload-queries.ts'

/** An upload of which no byte has come for this long is given up, and any upload after its life. */
export const patienceSeconds = 900
export const lifeSeconds = 86_400
/** A connection that brings bytes says so in time, also before they are enough for a part. */
const heartbeatMs = 300_000

type State = Pick<UploadRow, 'received' | 'tags' | 'store_id' | 'expires_at'> & { last?: Buffer }

/**
 * Keeps what arrives, also of a connection that breaks or must give its place up. The `last` bytes are handed back and not counted: they are once the file
 * is there, so that a client comes back to an upload that died at its end. Throws `conflict` when somebody else writes by now.
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
  if (!taken) throw takenOver()
  const state: State = { ...upload, tags: taken.tags, store_id: taken.store_id }
  const writing = { tenant_id, id, writer, patience_seconds: patienceSeconds, life_seconds: lifeSeconds }
  let kept_id = taken.store_id
  // bytes that no piece holds
  let settled = taken.received
  // of the part that is being filled
  let keptBytes = upload.received - state.tags.length * partBytes
  let toldAt = Date.now()

  /** With what was kept of the same part before. */
  async function joined(piece: Buffer): Promise<Buffer> {
    if (keptBytes === 0) return piece
    const rows = await request.tenantQuery(readPieces, { tenant_id, id })
    const before = Buffer.concat(rows.map(({ content }) => content))
    if (before.length < keptBytes) throw takenOver()
    return Buffer.concat([before.subarray(0, keptBytes), piece])
  }

  async function keepPiece(content: Buffer): Promise<void> {
    const position = state.received
    const [kept] = await request.tenantQuery(appendPiece, {
      ...{ ...writing, position, content },
      received: settled
    })
    if (!kept) throw takenOver()
    Object.assign(state, { received: position + content.length, expires_at: kept.expires_at })
  }

  async function keepPart(part: Buffer): Promise<void> {
    // whoever has taken over may have written this part already
    const [mine] = await request.tenantQuery(findWriter, { tenant_id, id, writer })
    if (!mine) throw takenOver()
    state.store_id ??= await app.objects.startParts(key)
    const at = state.tags.length * partBytes
    const { tag } = await app.objects.putPart(key, state.store_id, state.tags.length + 1, at, part)
    state.tags = [...state.tags, tag]
    const { tags, store_id } = state
    const received = tags.length * partBytes
    const [kept] = await request.tenantQuery(advanceUpload, { ...writing, received, tags, store_id })
    if (!kept) {
      // nobody else knows of parts that were begun here
      if (store_id !== kept_id) await app.objects.dropParts(key, store_id)
      throw takenOver()
    }
    kept_id = store_id
    keptBytes = 0
    settled = received
    Object.assign(state, { received, expires_at: kept.expires_at })
  }

  async function requireType(piece: Buffer): Promise<void> {
    const head = (await joined(piece)).subarray(0, headBytes)
    const findType = (bytes: Buffer) => app.decoders.findType(bytes, request.user.tenant_id)
    await requireFileType(head, upload.name, upload.content_type, findType).catch(async (err) => {
      // nothing that could follow makes it another kind
      await undo(app, request, id)
      throw err
    })
  }

  async function* prolonging(content: AsyncIterable<Buffer>): AsyncGenerator<Buffer> {
    for await (const chunk of content) {
      yield chunk
      if (Date.now() - toldAt < heartbeatMs) continue
      if ((await request.tenantQuery(prolongUpload, writing)).length === 0) throw takenOver()
      toldAt = Date.now()
    }
  }

  const content = prolonging(untilItBreaks(request, upload.size - upload.received))
  for await (const piece of splitIntoParts(content, partBytes, partBytes - keptBytes)) {
    const end = state.received + piece.length
    if (state.tags.length === 0 && keptBytes < headBytes && end >= headBytes) await requireType(piece)
    if (end === upload.size) state.last = Buffer.from(await joined(piece))
    else if (keptBytes + piece.length === partBytes) await keepPart(await joined(piece))
    else await keepPiece(piece)
  }
  request.uploadEnd?.throwIfAborted()
  return state
}

const takenOver = () => conflict({ detail: 'somebody else sends the same upload' })

/** What comes; a connection that breaks, or the loss of its place, ends it like any other end. */
async function* untilItBreaks(request: FastifyRequest, room: number): AsyncGenerator<Buffer> {
  let left = room
  try {
    for await (const chunk of bodyOf(request)) {
      if (chunk.length > left) throw payloadTooLarge()
      left -= chunk.length
      yield chunk
    }
  } catch (err) {
    const hasEnded = (err as { code?: string }).code === 'ECONNRESET' || err === request.uploadEnd?.reason
    if (!hasEnded) throw err
  }
}
