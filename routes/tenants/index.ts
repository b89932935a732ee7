import type { FastifyPluginAsyncTypebox } from '@fastify/type-provider-typebox'
import { Type } from '@sinclair/typebox'
import { v7 as uuidv7 } from 'uuid'
import { recordAudit } from '../../db/audit.ts'
import { queryIn } from '../../db/gate.ts'
import { insertOwner, insertTenant, readTenant } from '../../db/tenants.ts'
import { notFound, slugTaken } from '../../src/errors.ts'
import { tenantTag } from '../../src/etags.ts'
import { isReservedSlug } from '../../src/slugs.ts'
import { Name, presentTenant, Slug, Tenant } from '../schemas.ts'

const NewTenant = Type.Object({ name: Name, slug: Slug }, { additionalProperties: false, title: 'NewTenant' })

/** More agencies for people who have an account. */
const tenants: FastifyPluginAsyncTypebox = async (app) => {
  app.post(
    '',
    {
      config: { access: 'user', throttled: true, repeatable: true, problems: ['slug_taken'] },
      schema: {
        operationId: 'createTenant',
        summary: 'Another agency, owned by the caller',
        description: 'Use `POST /api/v1/auth/switch` to get tokens for it.',
        tags: ['tenant'],
        body: NewTenant,
        response: { 201: Tenant }
      }
    },
    async (request, reply) => {
      if (isReservedSlug(request.body.slug)) throw slugTaken()
      const scope = { tenant_id: uuidv7(), user_id: request.user.user_id }
      reply.code(201)
      const storageQuota = await app.storageQuota(scope.tenant_id)
      const created = await request.createOnce(
        reply,
        async (trx) => {
          if (!(await insertTenant(trx, { id: scope.tenant_id, ...request.body }))) throw slugTaken()
          await insertOwner(trx, scope.user_id)
          await recordAudit(trx, { action: 'tenant.registered', target_id: scope.tenant_id })
          const [row] = await queryIn(trx, readTenant, scope)
          if (!row) throw notFound()
          reply.header('etag', tenantTag(row))
          return presentTenant(row, storageQuota)
        },
        scope
      )
      app.tenants.created(request.body.slug)
      return created
    }
  )
}

export default tenants
