import { createHash } from 'node:crypto'
import type { FastifyInstance, FastifyRequest } from 'fastify'
import { type FileRow, readFile } from '../../db/queries/files.ts'
import { headBytes, requireFileType } from '../../src/files/file-types.ts'
import { fileKey } from '../../src/files/store/keys.ts'
import { conflict, Problem } from '../../src/http/problems.ts'
import { finish, requireSum, undo } from './receiving.ts'
import { concludeUpload, releaseUpload, renewConclusion, type UploadRow } from './upload-queries.ts'

/** Longer than the store takes to put the whole together; renewed while it is read. Where this process dies, others wait for so long. */
const concludeSeconds = 90
const renewMs = 30_000

/**
 * Makes a file of bytes that lie in the store already, but that nobody has looked at: nothing is believed that was not read.
 * `assemble` brings them to their place, and may find them there from an attempt that died. Throws `conflict` while somebody
 * else is at it. What is wrong with the bytes undoes the upload; what is wrong with the store or the database leaves it for
 * another attempt.
 */
export async function finishArrived(
  app: FastifyInstance,
  request: FastifyRequest,
  id: string,
  upload: UploadRow,
  assemble: () => Promise<void>
): Promise<FileRow> {
  const { tenant_id } = request.user
  const [mine] = await request.tenantQuery(concludeUpload, { tenant_id, id, seconds: concludeSeconds })
  if (!mine) {
    const [done] = await request.tenantQuery(readFile, { tenant_id, id })
    if (done) return done
    throw conflict({ detail: 'the upload is being completed' })
  }
  try {
    const key = fileKey(tenant_id, id)
    if ((await app.objects.size(key)) === undefined) {
      await (upload.size === 0 ? app.objects.put(key, Buffer.alloc(0)) : assemble())
    }
    return await inspect(app, request, id, upload)
  } catch (err) {
    if (err instanceof Problem) await undo(app, request, id)
    else await request.tenantQuery(releaseUpload, { tenant_id, id }).catch(() => {})
    throw err
  }
}

async function inspect(app: FastifyInstance, request: FastifyRequest, id: string, upload: UploadRow): Promise<FileRow> {
  const hash = createHash('sha256')
  const head: Buffer[] = []
  const { tenant_id } = request.user
  let size = 0
  let renewedAt = Date.now()
  const stream = await app.objects.get(fileKey(tenant_id, id))
  if (!stream) throw conflict({ detail: 'the bytes are not there' })
  for await (const chunk of stream as AsyncIterable<Buffer>) {
    if (size < headBytes) head.push(chunk)
    size += chunk.length
    hash.update(chunk)
    if (Date.now() - renewedAt < renewMs) continue
    await request.tenantQuery(renewConclusion, { tenant_id, id, seconds: concludeSeconds })
    renewedAt = Date.now()
  }
  const sha256 = hash.digest()
  if (size !== upload.size) throw conflict({ detail: `${size} bytes arrived and ${upload.size} were announced` })
  requireSum(sha256, upload.sha256?.toString('hex'), '/body/sha256')
  const content_type = await requireFileType(
    Buffer.concat(head).subarray(0, headBytes),
    upload.name,
    upload.content_type,
    (bytes) => app.decoders.findType(bytes, tenant_id)
  )
  return finish(request, { id, size, sha256, content_type, purpose: upload.purpose })
}
