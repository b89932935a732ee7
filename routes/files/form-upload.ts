import type { MultipartFile } from '@fastify/multipart'
import type { FastifyInstance, FastifyRequest } from 'fastify'
import type { FileRow } from '../../db/queries/files.ts'
import { rejectOnAbort } from '../../src/abort-signals.ts'
import { readFormData } from '../../src/http/forms.ts'
import { malformedRequest } from '../../src/http/problems.ts'
import { receiveFile } from './receiving.ts'
import { FileForm } from './schemas.ts'

/** A generous upper bound for the fields of the form and their framing. */
const maxFieldsBytes = 8 * 1024

/** Receives a form with one file and fields before or after the file. */
export async function receiveForm(app: FastifyInstance, request: FastifyRequest): Promise<FileRow> {
  const next = request.readForm(FileForm)
  const fields = new Map<string, unknown>()
  const { uploadEnd } = request

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
  const size = expectedSize(request, part, fields, app.config.maxFileSize)
  return receiveFile(app, request, { name, content_type, size, content: fileBytes(part, uploadEnd) }, async () => {
    await readFields()
    return {
      purpose: (fields.get('purpose') as string | undefined) ?? null,
      // a field that was left empty
      sha256: (fields.get('sha256') as string | undefined) || undefined
    }
  })
}

/** The bytes of the file. A malformed or truncated form throws `malformed_request`. */
async function* fileBytes({ file }: MultipartFile, uploadEnd: AbortSignal | undefined): AsyncGenerator<Buffer> {
  const source = file[Symbol.asyncIterator]()
  for (;;) {
    const next = await readFormData(() => rejectOnAbort(uploadEnd, source.next()))
    if (next.done) break
    yield next.value
  }
  if (file.truncated) throw malformedRequest({ detail: 'the form ends within the file' })
}

/**
 * Estimates the size of the file from Content-Length, less the framing and the fields before the file. Undefined
 * without a Content-Length.
 *
 * The estimate is too large when fields follow the file. So an estimate slightly above the limit counts as the limit,
 * and a file of exactly the maximum size is not refused.
 */
function expectedSize(
  request: FastifyRequest,
  part: MultipartFile,
  fields: Map<string, unknown>,
  limit: number
): number | undefined {
  const total = Number(request.headers['content-length'] ?? Number.NaN)
  const boundary = /boundary="?([^";]+)"?/i.exec(request.headers['content-type'] ?? '')?.[1] ?? ''
  const line = (text: string) => Buffer.byteLength(text) + 2
  const opening = line(`--${boundary}`)
  const framed = [...fields].map(
    ([name, value]) => opening + line(`Content-Disposition: form-data; name="${name}"`) + 2 + line(String(value))
  )
  const head =
    line(`Content-Disposition: form-data; name="${part.fieldname}"; filename="${part.filename}"`) +
    line(`Content-Type: ${part.mimetype}`)
  const size = total - framed.reduce((sum, each) => sum + each, 0) - opening - head - 2 - 2 - line(`--${boundary}--`)
  if (Number.isNaN(size)) return undefined
  return size > limit && size - limit < maxFieldsBytes ? limit : Math.max(0, size)
}
