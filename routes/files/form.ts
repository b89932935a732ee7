import type { MultipartFile } from '@fastify/multipart'
import type { FastifyInstance, FastifyRequest } from 'fastify'
import type { FileRow } from '../../db/queries/files.ts'
import { rejectOnAbort } from '../../src/abort-signals.ts'
import { readable } from '../../src/http/forms.ts'
import { malformedRequest } from '../../src/http/problems.ts'
import { receiveFile } from './receiving.ts'
import { FileForm } from './schemas.ts'

/** What the fields and what frames them may have, generously. */
const fieldsBytes = 8 * 1024

/** The one file of a form, and the fields beside it, which may stand before or after it. */
export async function receiveForm(app: FastifyInstance, request: FastifyRequest): Promise<FileRow> {
  const next = request.readForm(FileForm)
  const fields = new Map<string, unknown>()
  const { uploadEnd } = request

  /** Up to the file, or up to the end. */
  async function readFields(): Promise<MultipartFile | undefined> {
    for (let part = await next(); part; part = await next()) {
      if (part.type === 'file') return part
      fields.set(part.fieldname, part.value)
    }
    return undefined
  }

  // that there is no file is refused at the end
  const part = (await readFields()) as MultipartFile
  const { filename: name, mimetype: content_type } = part
  if (name?.includes('\ufffd')) throw malformedRequest({ detail: 'the name of the file is not UTF-8' })
  const size = expectedSize(request, part, fields, app.config.maxFileSize)
  return receiveFile(app, request, { name, content_type, size, content: chunks(part, uploadEnd) }, async () => {
    await readFields()
    return {
      purpose: (fields.get('purpose') as string | undefined) ?? null,
      // a field that nobody has filled in
      sha256: (fields.get('sha256') as string | undefined) || undefined
    }
  })
}

/** The bytes of a part; what is wrong with the form that they stand in is the sender's mistake. */
async function* chunks({ file }: MultipartFile, uploadEnd: AbortSignal | undefined): AsyncGenerator<Buffer> {
  const source = file[Symbol.asyncIterator]()
  for (;;) {
    const next = await readable(() => rejectOnAbort(uploadEnd, source.next()))
    if (next.done) break
    yield next.value
  }
  if (file.truncated) throw malformedRequest({ detail: 'the form ends within the file' })
}

/**
 * How large the file is if nothing follows it in the form: what the request says, less what frames the file. Undefined where
 * the request does not say. What follows can be fields, for which a file of the limit is not refused.
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
  return size > limit && size - limit < fieldsBytes ? limit : Math.max(0, size)
}
