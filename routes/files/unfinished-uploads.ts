import type { FastifyPluginAsyncTypebox } from '@fastify/type-provider-typebox'
import type { FastifyRequest } from 'fastify'
import { recordAudit } from '../../db/queries/audit.ts'
import { allows } from '../../src/auth/roles.ts'
import { notFound } from '../../src/http/problems.ts'
import { maxUuid } from '../../src/uuids.ts'
import { NoContent, PageQuery } from '../schemas.ts'
import { FileParams, UnfinishedUploadPage } from './schemas.ts'
import { endUpload, listUnfinishedUploads } from './upload-queries.ts'

/** Unfinished uploads, which hold storage. */
const unfinishedUploads: FastifyPluginAsyncTypebox = async (app) => {
  const tags = ['files']

  app.get(
    '/uploads',
    {
      config: { access: 'member', permission: 'files:read', problems: ['invalid_cursor'] },
      schema: {
        operationId: 'listUploads',
        summary: 'Unfinished uploads',
        description:
          'The newest first. Members see their own uploads, admins see all. Each upload holds storage until it ends or expires.',
        tags,
        querystring: PageQuery,
        response: { 200: UnfinishedUploadPage }
      }
    },
    async (request) => {
      const { tenant_id } = request.user
      const { limit = 25, cursor } = request.query
      const user_id = ownerFilter(request)
      const scope = `uploads ${tenant_id} ${user_id}`
      const [after_id = maxUuid] = app.cursors.require(scope, cursor)
      const rows = await request.tenantQuery(listUnfinishedUploads, { tenant_id, user_id, after_id, limit: limit + 1 })
      return app.cursors.page(scope, rows, limit, ({ id }) => [id])
    }
  )

  app.delete(
    '/uploads/:id',
    {
      config: { access: 'member', permission: 'files:write', problems: ['not_found'] },
      schema: {
        operationId: 'endUpload',
        summary: 'End an unfinished upload',
        description:
          'Members can end their own uploads, admins any. Removes the bytes that have arrived, and frees the storage.',
        tags,
        params: FileParams,
        response: { 204: NoContent }
      }
    },
    async (request, reply) => {
      const { id } = request.params
      const ended = await request.withTenant(async (trx) => {
        const upload = await endUpload(trx, request.user.tenant_id, id, ownerFilter(request))
        if (!upload) return false
        await recordAudit(trx, { action: 'upload.ended', target_id: id, detail: { before: upload } })
        return true
      })
      if (!ended) throw notFound()
      app.objectSweep.wake()
      reply.code(204)
    }
  )
}

/** The member whose uploads the caller may see and end; null for the uploads of all members. */
function ownerFilter({ user }: FastifyRequest): string | null {
  return allows('admin', user.role) ? null : user.user_id
}

export default unfinishedUploads
