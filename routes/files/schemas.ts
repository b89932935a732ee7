import { type Static, Type } from '@sinclair/typebox'
import { messageKeyword } from '../../src/http/field-errors.ts'
import { mediaTypePattern } from '../../src/http/media-types.ts'
import { Bytes, Id, Line, Nullable, Page, PageQuery, StringEnum, Timestamp } from '../schemas.ts'

const strict = { additionalProperties: false }

export const FileName = Line({
  minLength: 1,
  maxLength: 255,
  description: 'Name of the file; never used as part of a path',
  examples: ['Contract.pdf']
})
/** The purpose of a file, in a word that the client chooses. */
export const Purpose = Type.String({
  pattern: '^[a-z][a-z0-9_-]{0,39}$',
  [messageKeyword]: 'must be 1 to 40 lower-case letters, digits, hyphens and underscores, and begin with a letter',
  examples: ['contract']
})
export const ContentType = Type.String({
  maxLength: 127,
  pattern: mediaTypePattern,
  [messageKeyword]: 'must be a media type such as application/pdf',
  description: 'A media type (RFC 9110, 8.3.1)',
  examples: ['application/pdf']
})
export const Sha256 = Type.String({
  pattern: '^[0-9a-f]{64}$',
  [messageKeyword]: 'must be a SHA-256 in hex: 64 digits, in lower case',
  examples: ['9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08']
})
/**
 * A SHA-256 in a form. Forms send unfilled fields as empty text, so empty is accepted. The example is empty to fit any
 * file.
 */
export const FormSha256 = Type.String({
  pattern: '^([0-9a-f]{64})?$',
  [messageKeyword]: 'must be a SHA-256 in hex: 64 digits, in lower case',
  description: 'SHA-256 of the file in hex; may be empty',
  examples: ['']
})
const Size = Type.Integer({ format: 'int64', minimum: 0, maximum: 2 ** 50, examples: [1024] })

export const File = Type.Object(
  {
    id: Id,
    name: FileName,
    purpose: Nullable(Purpose),
    content_type: Type.String({ description: 'Determined from the content', examples: ['application/pdf'] }),
    size: Size,
    sha256: Sha256,
    created_by: Nullable(Id),
    created_at: Timestamp
  },
  // the Kotlin generator has a class `File` of its own
  { title: 'FileMetadata' }
)
/** The parts of an upload form, which form-upload.ts reads. */
export const FileForm = Type.Object(
  {
    file: Bytes,
    purpose: Type.Optional(Purpose),
    sha256: Type.Optional(FormSha256)
  },
  { ...strict, title: 'FileForm' }
)
export const FilePage = Page(File, 'FilePage')
export const FileParams = Type.Object({ id: Id })

export const LinkParams = Type.Object({ token: Type.String({ minLength: 1, maxLength: 200 }) })

export const FileQuery = Type.Object(
  {
    ...PageQuery.properties,
    purpose: Type.Optional(Purpose),
    q: Type.Optional(
      Type.String({
        minLength: 1,
        maxLength: 100,
        description: 'Part of the name; case and accents make no difference'
      })
    ),
    deleted: Type.Optional(Type.Boolean({ description: 'Lists deleted files that can be restored', default: false }))
  },
  strict
)

export const Deletion = Type.Object(
  {
    permanent: Type.Optional(Type.Boolean({ description: 'Deletes for good and frees the storage', default: false }))
  },
  strict
)

export const FileLink = Type.Object(
  { url: Type.String({ format: 'uri', examples: ['https://storage.example.com/aggios/file'] }), expires_at: Timestamp },
  { title: 'FileLink' }
)

export const UploadInput = Type.Object(
  {
    name: FileName,
    content_type: ContentType,
    // size and SHA-256 of the example content in the document
    size: { ...Size, examples: [8] },
    sha256: { ...Sha256, examples: ['86edbaa24831badfa0a8b04bb410141e2ee4182b6d0014493fe262a7a331c20b'] },
    purpose: Type.Optional(Purpose)
  },
  { ...strict, title: 'UploadInput' }
)
export type UploadInput = Static<typeof UploadInput>

export const Upload = Type.Object(
  {
    id: Id,
    url: Type.String({ format: 'uri', examples: ['https://storage.example.com/aggios/file'] }),
    method: StringEnum(['PUT'], { examples: ['PUT'] }),
    headers: Type.Record(Type.String(), Type.String(), {
      description: 'Headers to send with the bytes, unchanged',
      examples: [{ 'content-type': 'application/pdf' }]
    }),
    expires_at: Timestamp
  },
  { title: 'Upload' }
)

export const UnfinishedUpload = Type.Object(
  {
    id: Id,
    name: FileName,
    purpose: Nullable(Purpose),
    content_type: Type.String({ description: 'As declared by the sender', examples: ['application/pdf'] }),
    size: Size,
    received: Type.Integer({
      format: 'int64',
      description: 'Received bytes of a resumable upload',
      examples: [512]
    }),
    created_by: Nullable(Id),
    created_at: Timestamp,
    expires_at: Timestamp
  },
  { title: 'UnfinishedUpload' }
)
export const UnfinishedUploadPage = Page(UnfinishedUpload, 'UnfinishedUploadPage')
