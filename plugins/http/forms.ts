import type { MultipartFile, MultipartValue } from '@fastify/multipart'
import type { TObject } from '@sinclair/typebox'
import { Value } from '@sinclair/typebox/value'
import type { FastifyRequest } from 'fastify'
import fp from 'fastify-plugin'
import { rejectOnAbort } from '../../src/abort-signals.ts'
import { readFormData } from '../../src/files/form-data.ts'
import { invalidMembers, messageKeyword } from '../../src/http/field-errors.ts'

type Part = MultipartFile | MultipartValue

declare module 'fastify' {
  interface FastifyRequest {
    /**
     * Starts to read a multipart form. Each call of the returned function reads the next part, and resolves to
     * undefined after the last part. The members of `form` are the parts: members of format `binary` are files, the
     * others are texts, which are validated by their schemas.
     *
     * Throws `validation_failed` for a part that is unknown, of the wrong kind or repeated, and after the last part
     * when a required part is missing.
     */
    readForm(form: TObject, fileSize?: number): () => Promise<Part | undefined>
  }
}

/** Multipart forms, which are validated by their schemas part by part, as they arrive. */
export default fp(
  async (app) => {
    app.decorateRequest('readForm', function (this: FastifyRequest, form, fileSize = Number.MAX_SAFE_INTEGER) {
      // one part more than there are members: it is unknown or repeated, and is refused with that message
      const most = Object.keys(form.properties).length + 1
      const counts = { files: most, fields: most, parts: most }
      const sizes = { fileSize, fieldNameSize: 100, fieldSize: 1024, headerPairs: 20, headerSize: 8192 }
      const options = { limits: { ...counts, ...sizes }, throwFileSizeLimit: false, defParamCharset: 'utf8' }
      const parts = this.parts(options as never)
      const seen = new Set<string>()

      return async () => {
        const part: Part | undefined = await readFormData(
          async () => (await rejectOnAbort(this.uploadSignal, parts.next())).value
        )
        if (part) {
          const { fieldname } = part
          const fault = faultOf(part, form, seen)
          if (fault !== undefined) throw invalidMembers([{ path: `/body/${fieldname.slice(0, 100)}`, message: fault }])
          seen.add(fieldname)
          return part
        }
        const missing = (form.required ?? []).filter((name) => !seen.has(name))
        if (missing.length === 0) return undefined
        throw invalidMembers(missing.map((name) => ({ path: `/body/${name}`, message: 'is required' })))
      }
    })
  },
  { name: 'forms' }
)

function faultOf(part: Part, form: TObject, seen: Set<string>): string | undefined {
  const { fieldname, type } = part
  const schema = Object.hasOwn(form.properties, fieldname) ? form.properties[fieldname] : undefined
  if (!schema) return `is no part of this form, which has ${listOf(Object.keys(form.properties))}`
  if (seen.has(fieldname)) return 'appears twice: a form has one such part'
  const isFile = schema.format === 'binary'
  if (isFile && type === 'field') return 'must be a file: its part needs a filename'
  if (!isFile && type === 'file') return 'must be a text: its part has a filename'
  if (type === 'file') return undefined
  const { value, valueTruncated } = part as MultipartValue & { valueTruncated?: boolean }
  return valueTruncated || !Value.Check(schema, value) ? schema[messageKeyword] : undefined
}

const listOf = (names: string[]) => new Intl.ListFormat('en').format(names)
