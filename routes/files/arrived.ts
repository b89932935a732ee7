import { createHash } from 'node:crypto'
import type { FastifyInstance, FastifyRequest } from 'fastify'
import type { FileRow } from '../../db/files.ts'
import { conflict } from '../../src/errors.ts'
import { headBytes, requireFileType } from '../../src/file-types.ts'
import { fileKey } from '../../src/objects/keys.ts'
import { concludeUpload, type UploadRow } from './queries.ts'
import { finish, requireSum, undo } from './receiving.ts'

/** Longer than it takes to read the largest file back from the store. */
const concludeSeconds = 300

/**
 * Makes a file of bytes that lie in the store already, but that nobody has looked at: nothing is believed that was not read.
 * `assemble` brings them to their place, and may find them there from an attempt that died. Throws `conflict` while somebody
 * else is at it; whatever else is wrong undoes the upload.
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
  if (!mine) throw conflict({ detail: 'the upload is being completed' })
  try {
    if (upload.size > 0 && (await app.objects.size(fileKey(tenant_id, id))) === undefined) await assemble()
    return await inspect(app, request, id, upload)
  } catch (err) {
    await undo(app, request, id)
    throw err
  }
}

async function inspect(app: FastifyInstance, request: FastifyRequest, id: string, upload: UploadRow): Promise<FileRow> {
  const hash = createHash('sha256')
  const head: Buffer[] = []
  let size = 0
  if (upload.size > 0) {
    const stream = await app.objects.get(fileKey(request.user.tenant_id, id))
    if (!stream) throw conflict({ detail: 'the bytes are not there' })
    for await (const chunk of stream as AsyncIterable<Buffer>) {
      if (size < headBytes) head.push(chunk)
      size += chunk.length
      hash.update(chunk)
    }
  }
  const sha256 = hash.digest()
  if (size !== upload.size) throw conflict({ detail: `${size} bytes arrived and ${upload.size} were announced` })
  requireSum(sha256, upload.sha256?.toString('hex'), '/body/sha256')
  const content_type = await requireFileType(
    Buffer.concat(head).subarray(0, headBytes),
    upload.name,
    upload.content_type
  )
  return finish(request, { id, size, sha256, content_type, purpose: upload.purpose })
}
