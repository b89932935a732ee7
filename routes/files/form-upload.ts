import type { MultipartFile } from '@fastify/multipart'
import type { FastifyInstance, FastifyRequest } from 'fastify'
import type { FileRow } from '../../db/queries/files.ts'
import { rejectOnAbort } from '../../src/abort-signals.ts'
import { readFormData } from '../../src/files/form-data.ts'
import { malformedRequest } from '../../src/http/problems.ts'
import { receiveFile } from './receiving.ts'
import { FileForm } from './schemas.ts'

/** More than the boundaries, the headers of the parts and the fields of a form may have together. */
const maxOverheadBytes = 64 * 1024

/** Receives a form with one file and fields before or after the file. */
export async function receiveForm(app: FastifyInstance, request: FastifyRequest): Promise<FileRow> {
  const next = request.readForm(FileForm)
  const fields = new Map<string, unknown>()
  const { uploadSignal } = request

  /** Reads fields up to the file, or up to the end of the form. */
  async function readFields(): Promise<MultipartFile | undefined> {
    for (let part = await next(); part; part = await next()) {
      if (part.type === 'file') return part
      fields.set(part.fieldname, part.value)
    }
    return undefined
  }

  // a form without a file is refused when `next` reaches its end
  const part = (await readFields()) as MultipartFile
  const { filename: name, mimetype: content_type } = part
  if (name?.includes('\ufffd')) throw malformedRequest({ detail: 'the name of the file is not UTF-8' })
  const content = fileBytes(part, uploadSignal)
  return receiveFile(app, request, { name, content_type, minSize: minFileSize(request), content }, async () => {
    await readFields()
    return {
      purpose: (fields.get('purpose') as string | undefined) ?? null,
      // a field that was left empty
      sha256: (fields.get('sha256') as string | undefined) || undefined
    }
  })
}

/** The bytes of the file. A malformed or truncated form throws `malformed_request`. */
async function* fileBytes({ file }: MultipartFile, uploadSignal: AbortSignal | undefined): AsyncGenerator<Buffer> {
  const source = file[Symbol.asyncIterator]()
  for (;;) {
    const next = await readFormData(() => rejectOnAbort(uploadSignal, source.next()))
    if (next.done) break
    yield next.value
  }
  if (file.truncated) throw malformedRequest({ detail: 'the form ends within the file' })
}

/**
 * The least size that the file can have by Content-Length. Undefined without a Content-Length. Storage is reserved by
 * it: the bytes above it are reserved when they arrive, and a reservation that was too large is given back when the
 * file is complete.
 */
function minFileSize({ headers }: FastifyRequest): number | undefined {
  const total = headers['content-length']
  return total === undefined ? undefined : Math.max(0, Number(total) - maxOverheadBytes)
}
