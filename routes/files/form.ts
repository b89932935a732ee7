import type { MultipartFile, MultipartValue } from '@fastify/multipart'
import { Value } from '@sinclair/typebox/value'
import type { FastifyInstance, FastifyRequest } from 'fastify'
import type { FileRow } from '../../db/files.ts'
import { malformedRequest, Problem, unsupportedMediaType, validationFailed } from '../../src/errors.ts'
import { StoreFailure } from '../../src/objects/store.ts'
import { unlessEnded } from '../../src/pace.ts'
import { receiveFile } from './receiving.ts'
import { Purpose, Sha256 } from './schemas.ts'

const limits = { files: 1, fields: 4, parts: 5, fieldNameSize: 100, fieldSize: 1024, headerPairs: 20, headerSize: 8192 }

/** What the fields and what frames them may have, generously. */
const fieldsBytes = 8 * 1024

/** The one file of a form, and the fields beside it, which may stand before or after it. */
export async function receiveForm(app: FastifyInstance, request: FastifyRequest): Promise<FileRow> {
  if (!request.isMultipart()) throw unsupportedMediaType({ detail: 'a form is expected: multipart/form-data' })
  const parts = request.parts({
    limits: { ...limits, fileSize: Number.MAX_SAFE_INTEGER },
    defParamCharset: 'utf8'
  } as never)
  const fields = new Map<string, unknown>()
  const { uploadEnd } = request
  const next = () =>
    readable(
      async () => (await unlessEnded(uploadEnd, parts.next())).value as MultipartFile | MultipartValue | undefined
    )

  for (let part = await next(); part; part = await next()) {
    if (part.type === 'field') {
      addField(fields, part)
      continue
    }
    const { filename: name, mimetype: content_type } = part
    if (name?.includes('\ufffd')) throw malformedRequest({ detail: 'the name of the file is not UTF-8' })
    if (part.fieldname !== 'file') throw invalid('/body', `has no part called ${part.fieldname.slice(0, 100)}`)
    return receiveFile(
      app,
      request,
      {
        name,
        content_type,
        size: expectedSize(request, part, fields, app.config.maxFileSize),
        content: chunks(part, uploadEnd)
      },
      async () => {
        for (let rest = await next(); rest; rest = await next()) {
          if (rest.type === 'file') throw invalid('/body', 'has more than one file')
          addField(fields, rest)
        }
        return {
          purpose: (fields.get('purpose') as string | undefined) ?? null,
          sha256: fields.get('sha256') as string | undefined
        }
      }
    )
  }
  throw invalid('/body/file', 'is required')
}

const fieldSchemas = new Map([
  ['purpose', Purpose],
  ['sha256', Sha256]
])

function addField(
  fields: Map<string, unknown>,
  { fieldname, value, valueTruncated }: MultipartValue & { valueTruncated?: boolean }
) {
  const schema = fieldSchemas.get(fieldname)
  const path = `/body/${fieldname.slice(0, 100)}`
  if (!schema) throw invalid(path, 'must NOT have additional properties')
  if (fields.has(fieldname)) throw invalid(path, 'appears twice')
  if (valueTruncated || !Value.Check(schema, value)) throw invalid(path, `must match pattern "${schema.pattern}"`)
  fields.set(fieldname, value)
}

function invalid(path: string, message: string): Problem {
  return validationFailed({ detail: `${path.slice(1)} ${message}`, errors: [{ path, message }] })
}

/** The bytes of a part; what is wrong with the form that they stand in is the sender's mistake. */
async function* chunks({ file }: MultipartFile, uploadEnd: AbortSignal | undefined): AsyncGenerator<Buffer> {
  const source = file[Symbol.asyncIterator]()
  for (;;) {
    const next = await readable(() => unlessEnded(uploadEnd, source.next()))
    if (next.done) break
    yield next.value
  }
  if (file.truncated) throw malformedRequest({ detail: 'the form ends within the file' })
}

async function readable<T>(read: () => Promise<T>): Promise<T> {
  try {
    return await read()
  } catch (err) {
    const { code } = err as { code?: string }
    if (err instanceof Problem || err instanceof StoreFailure || (code?.startsWith('FST_') && code.endsWith('_LIMIT')))
      throw err
    throw malformedRequest({ detail: 'the form can not be read', cause: err })
  }
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
