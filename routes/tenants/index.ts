import type { FastifyPluginAsyncTypebox } from '@fastify/type-provider-typebox'
import { Type } from '@sinclair/typebox'
import { v7 as uuidv7 } from 'uuid'
import { recordAudit } from '../../db/audit.ts'
import { insertOwner, insertTenant, readTenant } from '../../db/tenants.ts'
import { notFound, slugTaken } from '../../src/errors.ts'
import { isReservedSlug } from '../../src/slugs.ts'
import { Name, presentTenant, Slug, Tenant } from '../schemas.ts'

const NewTenant = Type.Object({ name: Name, slug: Slug }, { additionalProperties: false, title: 'NewTenant' })

/** More agencies for people who have an account. */
const tenants: FastifyPluginAsyncTypebox = async (app) => {
  app.post(
    '',
    {
      config: { access: 'user', problems: ['slug_taken'] },
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
      const created = await request.withTenant(async (trx) => {
        if (!(await insertTenant(trx, { id: scope.tenant_id, ...request.body }))) return false
        await insertOwner(trx, scope.user_id)
        await recordAudit(trx, { action: 'tenant.registered', target_id: scope.tenant_id })
        return true
      }, scope)
      if (!created) throw slugTaken()
      app.tenants.created(request.body.slug)

      const [row] = await request.tenantQuery(readTenant, scope, scope)
      if (!row) throw notFound()
      reply.code(201)
      return presentTenant(row, await app.storageQuota(row.id))
    }
  )
}

export default tenants
