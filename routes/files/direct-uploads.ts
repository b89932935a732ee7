import type { FastifyPluginAsyncTypebox } from '@fastify/type-provider-typebox'
import type { FastifyRequest } from 'fastify'
import { linkSeconds } from '../../src/files/file-links.ts'
import { cleanFileName } from '../../src/files/file-names.ts'
import { fileKey, uploadKey } from '../../src/files/store/keys.ts'
import { writeObject } from '../../src/files/store/object-writer.ts'
import { invalidMembers } from '../../src/http/field-errors.ts'
import { conflict, malformedRequest, notFound, payloadTooLarge, tenantMismatch } from '../../src/http/problems.ts'
import { Bytes, NoContent } from '../schemas.ts'
import { completeUpload, findCompleted } from './completion.ts'
import { bodyOf, withUpload } from './receiving.ts'
import { File, FileParams, LinkParams, Upload, UploadInput } from './schemas.ts'
import { readUpload } from './upload-queries.ts'

/** A direct upload that is not completed within this time is abandoned. */
export const completionTimeoutSeconds = 3600

/**
 * Uploads that clients send directly to the store, or to a signed link when clients can't reach the store. They are
 * checked on completion.
 */
const directUploads: FastifyPluginAsyncTypebox = async (app) => {
  const tags = ['files']

  app.post(
    '/uploads',
    {
      config: {
        access: 'member',
        permission: 'files:write',
        throttled: 12,
        problems: ['file_too_large', 'quota_exceeded']
      },
      schema: {
        operationId: 'createUpload',
        summary: 'Begin a direct upload',
        description:
          'Send exactly these bytes with `method` and `headers` to `url` within five minutes, then complete the upload with `POST /files/{id}/complete`. The file exists after that.',
        tags,
        body: UploadInput,
        response: { 201: Upload }
      }
    },
    async (request, reply) => {
      const { tenant_id } = request.user
      const { name: given, content_type, size, sha256: hex, purpose = null } = request.body
      const name = cleanFileName(given)
      const sha256 = Buffer.from(hex, 'hex')
      const expires_at = new Date(Date.now() + linkSeconds * 1000)
      const begin = async (id: string) => {
        const target = await app.objects.direct?.put(
          uploadKey(tenant_id, id),
          { size, sha256, content_type },
          linkSeconds
        )
        const token = app.fileLinks.issue('write', { tenant_id, id, expires_at })
        return {
          id,
          url: target?.url ?? `${request.origin}/api/v1/files/links/${token}/content`,
          method: 'PUT' as const,
          headers: target?.headers ?? { 'content-type': content_type, 'content-length': String(size) },
          expires_at
        }
      }
      const upload = await withUpload(
        app,
        request,
        { name, content_type, purpose, size },
        { sha256, timeoutSeconds: completionTimeoutSeconds },
        begin
      )
      reply.code(201)
      return upload
    }
  )

  app.post(
    '/:id/complete',
    {
      config: {
        access: 'member',
        permission: 'files:write',
        problems: ['not_found', 'conflict', 'validation_failed', 'unsupported_media_type', 'storage_full']
      },
      schema: {
        operationId: 'completeUpload',
        summary: 'Complete a direct upload',
        description:
          'Checks the size, SHA-256 and type of the uploaded bytes. A repeated request, after a lost reply, returns the file again.',
        tags,
        params: FileParams,
        response: { 200: File }
      }
    },
    async (request) => {
      const { id } = request.params
      const { tenant_id, user_id } = request.user
      const [upload] = await request.tenantQuery(readUpload, { tenant_id, id })
      if (upload?.created_by !== user_id || upload.sha256 === null) return requireCompleted(request, id)
      const [from, to] = [uploadKey(tenant_id, id), fileKey(tenant_id, id)]
      const arrived = upload.size === 0 ? 0 : ((await app.objects.size(from)) ?? (await app.objects.size(to)))
      if (arrived === undefined) {
        // another request may have completed the upload meanwhile
        const done = await findCompleted(request, id)
        if (done) return done
        throw conflict({ detail: 'nothing has arrived yet' })
      }
      return app.withUploadSlot(request, request.user, () =>
        // moves the object before it is checked, so that the client can't change it any more
        completeUpload(app, request, id, upload, () => app.objects.move(from, to))
      )
    }
  )

  /** The file that the caller completed before. Throws `not_found`. */
  async function requireCompleted(request: FastifyRequest, id: string) {
    const file = await findCompleted(request, id)
    if (file?.created_by !== request.user.user_id) throw notFound()
    return file
  }

  app.register(async (scope) => {
    scope.removeAllContentTypeParsers()
    scope.addContentTypeParser('*', (_request, payload, done) => done(null, payload))

    scope.put(
      '/links/:token/content',
      {
        config: {
          access: 'public',
          upload: true,
          receives: { type: 'application/octet-stream', anyType: true, schema: Bytes },
          problems: ['not_found', 'tenant_mismatch', 'storage_full']
        },
        schema: {
          operationId: 'putLinkedFileContent',
          summary: 'Send the bytes of a direct upload',
          description: 'The target of a direct upload when clients can not reach the store.',
          tags,
          params: LinkParams,
          response: { 204: NoContent }
        }
      },
      async (request, reply) => {
        const link = app.fileLinks.verify('write', (request.params as { token: string }).token)
        if (!link) throw notFound()
        const { tenant_id, id } = link
        if (request.tenant && request.tenant.id !== tenant_id) throw tenantMismatch()
        const [upload] = await request.tenantQuery(readUpload, { tenant_id, id }, { tenant_id, user_id: null })
        if (!upload) throw notFound()
        // counts as an upload of the person who created the link
        await app.withUploadSlot(request, { user_id: upload.created_by, tenant_id }, () =>
          writeObject(app.objects, uploadKey(tenant_id, id), requireExactSize(bodyOf(request), upload.size))
        )
        reply.code(204)
      }
    )
  })
}

/** Passes bytes through, and throws when their number differs from the announced size. */
async function* requireExactSize(content: AsyncIterable<Buffer>, size: number): AsyncGenerator<Buffer> {
  let passed = 0
  try {
    for await (const chunk of content) {
      passed += chunk.length
      if (passed > size) throw payloadTooLarge({ detail: `${size} bytes were announced` })
      yield chunk
    }
  } catch (err) {
    if ((err as { code?: string }).code === 'ECONNRESET') throw malformedRequest({ cause: err })
    throw err
  }
  const message = `must have the ${size} bytes that were announced`
  if (passed < size) throw invalidMembers([{ path: '/body', message }])
}

export default directUploads
