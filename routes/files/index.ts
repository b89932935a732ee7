import multipart from '@fastify/multipart'
import type { FastifyPluginAsyncTypebox } from '@fastify/type-provider-typebox'
import { recordAudit } from '../../db/queries/audit.ts'
import { allows, type Role } from '../../src/auth/roles.ts'
import { foldText } from '../../src/files/file-names.ts'
import { conflict, forbidden, notFound } from '../../src/http/problems.ts'
import { maxUuid } from '../../src/uuids.ts'
import { NoContent } from '../schemas.ts'
import content from './content.ts'
import directUploads from './direct-uploads.ts'
import { requireFile } from './file-lookup.ts'
import { receiveForm } from './form-upload.ts'
import { filesBy, hideFile, type LockedFile, lockFile, restoreFile } from './queries.ts'
import resumableUploads from './resumable-uploads.ts'
import { Deletion, File, FileForm, FilePage, FileParams, FileQuery } from './schemas.ts'
import unfinishedUploads from './unfinished-uploads.ts'

/** Files of the agency. */
const files: FastifyPluginAsyncTypebox = async (app) => {
  const tags = ['files']
  await app.register(multipart)
  app.register(content)
  app.register(directUploads)
  app.register(unfinishedUploads)
  app.register(resumableUploads, { prefix: '/resumable' })

  app.post(
    '',
    {
      config: {
        access: 'member',
        permission: 'files:write',
        throttled: 12,
        upload: true,
        receives: { type: 'multipart/form-data', schema: FileForm },
        problems: ['file_too_large', 'quota_exceeded', 'validation_failed', 'storage_full']
      },
      schema: {
        operationId: 'createFile',
        summary: 'Upload a file',
        description:
          'A form with one part `file`, and optionally `purpose` and `sha256` (in hex; other bytes are refused). The type of the file is determined from its content. Programs, and files whose content does not match their name or declared type, are refused.',
        tags,
        response: { 201: File }
      }
    },
    async (request, reply) => {
      const file = await app.withUploadSlot(request, request.user, () => receiveForm(app, request))
      reply.code(201).header('location', `/api/v1/files/${file.id}`)
      return file
    }
  )

  app.get(
    '',
    {
      config: { access: 'viewer', permission: 'files:read', problems: ['invalid_cursor'] },
      schema: {
        operationId: 'listFiles',
        summary: 'Files',
        description: 'The newest first. A cursor belongs to the filters with which it was given.',
        tags,
        querystring: FileQuery,
        response: { 200: FilePage }
      }
    },
    async (request, reply) => {
      const { tenant_id } = request.user
      const { limit = 25, cursor, purpose = null, q, deleted = false } = request.query
      const filter = {
        purpose,
        // folding removes accents: a text of accents only would become empty, and match every name
        q: q === undefined ? null : foldText(q) || q,
        status: deleted ? 'deleted' : 'ready'
      } as const
      const scope = `files ${tenant_id} ${JSON.stringify(filter)}`
      const [after_id = maxUuid] = app.cursors.require(scope, cursor)
      const rows = await request.tenantQuery(filesBy(filter), { ...filter, tenant_id, after_id, limit: limit + 1 })
      reply.header('cache-control', 'private, no-cache')
      return app.cursors.page(scope, rows, limit, ({ id }) => [id])
    }
  )

  app.get(
    '/:id',
    {
      config: { access: 'viewer', permission: 'files:read', problems: ['not_found'] },
      schema: {
        operationId: 'getFile',
        summary: 'A file, without its bytes',
        description: 'The metadata of a file. A deleted file or an unfinished upload answers 404.',
        tags,
        params: FileParams,
        response: { 200: File }
      }
    },
    async (request, reply) => {
      reply.header('cache-control', 'private, no-cache')
      return requireFile(request, request.params.id)
    }
  )

  app.delete(
    '/:id',
    {
      config: { access: 'member', permission: 'files:write', problems: ['not_found'] },
      schema: {
        operationId: 'deleteFile',
        summary: 'Delete a file',
        description:
          'Members can delete their own files, admins any. The file can be restored for a while, and counts as storage until then. `permanent` deletes a file for good, also one that is deleted already.',
        tags,
        params: FileParams,
        querystring: Deletion,
        response: { 204: NoContent }
      }
    },
    async (request, reply) => {
      const { id } = request.params
      const { tenant_id } = request.user
      const { permanent = false } = request.query
      const outcome = await request.withTenant(async (trx) => {
        const file = await lockFile(trx, tenant_id, id)
        if (!file || (file.status === 'deleted' && !permanent)) return 'gone'
        if (!mayChange(request.user, file)) return 'forbidden'
        await hideFile(trx, tenant_id, id, permanent ? 0 : app.config.fileRestoreFor)
        const detail = { before: { name: file.name }, permanent: permanent || app.config.fileRestoreFor === 0 }
        await recordAudit(trx, { action: 'file.deleted', target_id: id, detail })
        return 'deleted'
      })
      if (outcome === 'gone') throw notFound()
      if (outcome === 'forbidden') throw notYours()
      app.objectSweep.wake()
      reply.code(204)
    }
  )

  app.post(
    '/:id/restore',
    {
      config: { access: 'member', permission: 'files:write', problems: ['not_found', 'conflict'] },
      schema: {
        operationId: 'restoreFile',
        summary: 'Restore a deleted file',
        description: 'Members can restore their own files, admins any, until the file is removed for good.',
        tags,
        params: FileParams,
        response: { 200: File }
      }
    },
    async (request) => {
      const { id } = request.params
      const { tenant_id } = request.user
      const outcome = await request.withTenant(async (trx) => {
        const file = await lockFile(trx, tenant_id, id)
        if (!file) return 'gone'
        if (file.status === 'ready') return 'ready'
        if (!mayChange(request.user, file)) return 'forbidden'
        await restoreFile(trx, tenant_id, id)
        await recordAudit(trx, { action: 'file.restored', target_id: id, detail: { after: { name: file.name } } })
        return 'restored'
      })
      if (outcome === 'gone') throw notFound()
      if (outcome === 'ready') throw conflict({ detail: 'the file is not deleted' })
      if (outcome === 'forbidden') throw notYours()
      return requireFile(request, id)
    }
  )
}

const notYours = () => forbidden({ detail: 'members change files of their own, and admins those of anybody' })

/** Members may change their own files, admins may change any. */
function mayChange(user: { user_id: string; role: Role }, file: LockedFile): boolean {
  return file.created_by === user.user_id || allows('admin', user.role)
}

export default files
