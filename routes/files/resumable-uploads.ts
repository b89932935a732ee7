import type { FastifyPluginAsyncTypebox } from '@fastify/type-provider-typebox'
import { Type } from '@sinclair/typebox'
import type { FastifyRequest } from 'fastify'
import { confirmEarlier } from '../../db/queries/confirmation.ts'
import { abandonFile, readFile } from '../../db/queries/files.ts'
import { cleanFileName } from '../../src/files/file-names.ts'
import { fileKey } from '../../src/files/store/keys.ts'
import { partBytes } from '../../src/files/store/object-writer.ts'
import { messageKeyword } from '../../src/http/field-errors.ts'
import { conflict, notFound, payloadTooLarge, unsupportedVersion } from '../../src/http/problems.ts'
import { Bytes, NoContent } from '../schemas.ts'
import { append, idleTimeoutSeconds } from './appending.ts'
import { completeUpload } from './completion.ts'
import { withUpload } from './receiving.ts'
import { FileParams } from './schemas.ts'
import { readMetadata } from './tus-metadata.ts'
import { readUpload, type UploadRow } from './upload-queries.ts'

const version = '1.0.0'
const text = Type.String()
const byteCount = { pattern: '^\\d{1,15}$', [messageKeyword]: 'must be a number of bytes, of at most 15 digits' }

const Version = Type.Object({
  'tus-resumable': Type.Optional(
    Type.String({
      pattern: `^${version.replaceAll('.', '\\.')}$`,
      [messageKeyword]: `must be ${version}, or be left out`,
      examples: [version]
    })
  )
})
const Creation = Type.Object({
  ...Version.properties,
  'upload-length': Type.String({ ...byteCount, description: 'Size of the whole file in bytes', examples: ['1024'] }),
  'upload-metadata': Type.Optional(
    Type.String({
      maxLength: 4096,
      description: 'Keys with values in base64: `filename`, `filetype`, `purpose`, `sha256`',
      examples: ['filename Q29udHJhY3QucGRm']
    })
  )
})
const Offset = Type.Object({
  ...Version.properties,
  'upload-offset': Type.String({ ...byteCount, description: 'Number of bytes that the server has', examples: ['0'] })
})

/**
 * Uploads that survive a lost connection: tus 1.0 with creation, expiration and termination. Errors are problem
 * documents.
 *
 * Complete parts go to the store. The bytes of an incomplete part go to the database as pieces, and one statement
 * writes a piece together with the count of bytes. So the offset that the server reports is correct after any crash.
 */
const resumableUploads: FastifyPluginAsyncTypebox = async (app) => {
  const tags = ['files']
  const access = 'member'

  app.addHook('onSend', (_request, reply, _payload, done) => {
    reply.header('tus-resumable', version)
    done()
  })
  // comes before the validation of schemas, which refuses with another status
  app.addHook('preValidation', (request, reply, done) => {
    const requested = request.headers['tus-resumable']
    if (request.method === 'OPTIONS' || requested === undefined || requested === version) return done()
    reply.header('tus-version', version)
    done(unsupportedVersion({ detail: `this server speaks tus ${version}` }))
  })
  app.removeAllContentTypeParsers()
  app.addContentTypeParser('application/offset+octet-stream', (_request, payload, done) => done(null, payload))

  // tus clients discover the server's abilities here; not an operation of the OpenAPI document
  app.options('', { config: { access: 'public' }, schema: { hide: true } }, async (_request, reply) => {
    reply
      .code(204)
      .header('tus-version', version)
      .header('tus-extension', 'creation,expiration,termination')
      .header('tus-max-size', app.config.maxFileSize)
  })

  app.post(
    '',
    {
      config: {
        access,
        permission: 'files:write',
        throttled: 12,
        problems: ['file_too_large', 'quota_exceeded', 'unsupported_version']
      },
      schema: {
        operationId: 'createResumableUpload',
        summary: 'Begin a resumable upload',
        description:
          'tus 1.0. Storage for the whole file is reserved until the upload ends. An upload expires when no byte has come for a quarter of an hour, and when it is a day old. The unfinished uploads of a member may hold a limited share of the storage of the agency.',
        tags,
        headers: Creation,
        response: {
          201: Type.Null({
            description: 'Created; `Location` is the URL of the upload',
            headers: { Location: text, 'Upload-Expires': text }
          })
        }
      }
    },
    async (request, reply) => {
      const facts = readMetadata(request.headers['upload-metadata'] ?? '')
      const size = Number(request.headers['upload-length'])
      const name = cleanFileName(facts.filename)
      const file = { name, content_type: facts.filetype ?? '', purpose: facts.purpose ?? null, size }
      const sha256 = facts.sha256 === undefined ? null : Buffer.from(facts.sha256, 'hex')
      const begin = async (id: string) => {
        if (size === 0) await completeUpload(app, request, id, await requireUpload(request, id), async () => {})
        return id
      }
      const id = await withUpload(app, request, file, { sha256, timeoutSeconds: idleTimeoutSeconds }, begin)
      reply
        .code(201)
        .header('location', `/api/v1/files/resumable/${id}/content`)
        .header('upload-expires', new Date(Date.now() + idleTimeoutSeconds * 1000).toUTCString())
    }
  )

  app.head(
    '/:id/content',
    {
      // HEAD is hidden in the OpenAPI document for other routes
      config: {
        access,
        permission: 'files:write',
        problems: ['not_found', 'unsupported_version'],
        swagger: { exposeHeadRoute: true }
      },
      schema: {
        operationId: 'getResumableUpload',
        summary: 'How much of an upload has arrived',
        description: 'tus 1.0. For a completed upload, the offset is the size of the file.',
        tags,
        params: FileParams,
        headers: Version,
        response: {
          200: Type.Null({
            description: 'The number of bytes is in `Upload-Offset`',
            headers: { 'Upload-Offset': text, 'Upload-Length': text, 'Upload-Expires': text }
          })
        }
      }
    },
    async (request, reply) => {
      const { id } = request.params
      const { tenant_id, user_id } = request.user
      const [upload] = await request.tenantQuery(readUpload, { tenant_id, id })
      const [file] = upload ? [] : await request.tenantQuery(readFile, { tenant_id, id })
      const known = upload ?? file
      if (known?.created_by !== user_id) throw notFound()
      // the whole size tells the client that its upload is done
      if (file) await request.tenantQuery(confirmEarlier, {})
      reply.header('upload-length', known.size).header('upload-offset', upload ? upload.received : known.size)
      if (upload) reply.header('upload-expires', upload.expires_at.toUTCString())
    }
  )

  app.patch(
    '/:id/content',
    {
      config: {
        access,
        permission: 'files:write',
        upload: true,
        receives: { type: 'application/offset+octet-stream', schema: Bytes },
        problems: ['not_found', 'conflict', 'unsupported_version', 'validation_failed', 'storage_full']
      },
      schema: {
        operationId: 'continueResumableUpload',
        summary: 'Send the next bytes of an upload',
        description:
          'Bytes from `Upload-Offset` on, as `application/offset+octet-stream`. After the last byte the file is checked and created. A POST with `X-HTTP-Method-Override: PATCH` does the same, for proxies without PATCH.',
        tags,
        params: FileParams,
        headers: Offset,
        response: {
          204: Type.Unsafe<void>({ ...NoContent, headers: { 'Upload-Offset': text, 'Upload-Expires': text } })
        }
      }
    },
    async (request, reply) => {
      const { id } = request.params
      const upload = await requireUpload(request, id)
      const offset = Number(request.headers['upload-offset'])
      if (offset !== upload.received) throw conflict({ detail: `the server has ${upload.received} bytes` })
      if (Number(request.headers['content-length'] ?? 0) > upload.size - offset) {
        throw payloadTooLarge({ detail: `${upload.size} bytes were announced` })
      }
      const state = await app.withUploadSlot(request, request.user, async () => {
        const appended = await append(app, request, id, upload)
        if (appended.last) await complete(request, id, { ...upload, ...appended }, appended.last)
        return appended
      })
      reply.header('upload-offset', state.last ? upload.size : state.received)
      if (!state.last) reply.header('upload-expires', state.expires_at.toUTCString())
      reply.code(204)
    }
  )

  app.delete(
    '/:id/content',
    {
      config: { access, permission: 'files:write', problems: ['not_found', 'unsupported_version'] },
      schema: {
        operationId: 'cancelResumableUpload',
        summary: 'Give an upload up',
        description: 'Removes the bytes that have arrived, and frees the reserved storage.',
        tags,
        params: FileParams,
        headers: Version,
        response: { 204: NoContent }
      }
    },
    async (request, reply) => {
      const { id } = request.params
      await requireUpload(request, id)
      // the sweep removes the bytes, because it checks that the store belongs to this database
      await request.tenantQuery(abandonFile, { tenant_id: request.user.tenant_id, id, lease_seconds: 0 })
      app.objectSweep.wake()
      reply.code(204)
    }
  )

  /** Reads an unfinished upload of the caller. Throws `not_found` for an upload of another person. */
  async function requireUpload(request: FastifyRequest, id: string): Promise<UploadRow> {
    const { tenant_id, user_id } = request.user
    const [upload] = await request.tenantQuery(readUpload, { tenant_id, id })
    if (upload?.created_by !== user_id) throw notFound()
    return upload
  }

  /** Assembles the object from its parts, and completes the upload. */
  async function complete(request: FastifyRequest, id: string, upload: UploadRow, last: Buffer): Promise<void> {
    const key = fileKey(request.user.tenant_id, id)
    await completeUpload(app, request, id, upload, async () => {
      if (upload.store_id === null) return app.objects.put(key, last)
      const parts = upload.tags.map((tag, index) => ({ number: index + 1, tag }))
      const at = parts.length * partBytes
      parts.push(await app.objects.putPart(key, upload.store_id, parts.length + 1, at, last))
      await app.objects.finishParts(key, upload.store_id, parts)
    })
  }
}

export default resumableUploads
