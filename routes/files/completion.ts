import { createHash } from 'node:crypto'
import type { FastifyInstance, FastifyRequest } from 'fastify'
import { confirmEarlier } from '../../db/queries/confirmation.ts'
import { type FileRow, readFile } from '../../db/queries/files.ts'
import { headBytes, requireFileType } from '../../src/files/file-types.ts'
import { fileKey } from '../../src/files/store/keys.ts'
import { conflict, Problem } from '../../src/http/problems.ts'
import { abandonUpload, publishFile, requireChecksum } from './receiving.ts'
import { leaseCompletion, releaseCompletion, renewCompletion, type UploadRow } from './upload-queries.ts'

/**
 * The lease of the request that completes an upload: longer than the store takes to assemble the object. The lease is
 * renewed while the object is read. After a crash of this process, other requests wait until it expires.
 */
const leaseSeconds = 90
const renewMs = 30_000

/**
 * Completes an upload whose bytes are in the store but were not checked: reads them, and checks size, SHA-256 and type.
 * `assemble` makes the object, and is skipped when an earlier attempt has made it.
 *
 * Throws `conflict` while another request completes the upload. When the bytes are wrong, the upload is abandoned. When
 * the store or the database fails, the upload stays for another attempt.
 */
export async function completeUpload(
  app: FastifyInstance,
  request: FastifyRequest,
  id: string,
  upload: UploadRow,
  assemble: () => Promise<void>
): Promise<FileRow> {
  const { tenant_id } = request.user
  const [lease] = await request.tenantQuery(leaseCompletion, { tenant_id, id, seconds: leaseSeconds })
  if (!lease) {
    const done = await findCompleted(request, id)
    if (done) return done
    throw conflict({ detail: 'the upload is being completed' })
  }
  try {
    const key = fileKey(tenant_id, id)
    if ((await app.objects.size(key)) === undefined) {
      await (upload.size === 0 ? app.objects.put(key, Buffer.alloc(0)) : assemble())
    }
    return await checkObject(app, request, id, upload)
  } catch (err) {
    if (err instanceof Problem) await abandonUpload(app, request, id)
    else await request.tenantQuery(releaseCompletion, { tenant_id, id }).catch(() => {})
    throw err
  }
}

/** The file that an earlier request has completed, for a reply that says so. */
export async function findCompleted(request: FastifyRequest, id: string): Promise<FileRow | undefined> {
  const { tenant_id } = request.user
  const [file] = await request.tenantQuery(readFile, { tenant_id, id })
  if (file) await request.tenantQuery(confirmEarlier, {})
  return file
}

/** Reads the object, checks it, and publishes the file. */
async function checkObject(
  app: FastifyInstance,
  request: FastifyRequest,
  id: string,
  upload: UploadRow
): Promise<FileRow> {
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
    await request.tenantQuery(renewCompletion, { tenant_id, id, seconds: leaseSeconds })
    renewedAt = Date.now()
  }
  const sha256 = hash.digest()
  if (size !== upload.size) throw conflict({ detail: `${size} bytes arrived and ${upload.size} were announced` })
  requireChecksum(sha256, upload.sha256?.toString('hex'), '/body/sha256')
  const content_type = await requireFileType(
    Buffer.concat(head).subarray(0, headBytes),
    upload.name,
    upload.content_type,
    (bytes) => app.decoders.findType(bytes, tenant_id)
  )
  return publishFile(request, { id, size, sha256, content_type, purpose: upload.purpose })
}
