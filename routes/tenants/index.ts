import type { FastifyPluginAsyncTypebox } from '@fastify/type-provider-typebox'
import { Type } from '@sinclair/typebox'
import { v7 as uuidv7 } from 'uuid'
import { queryIn, type TenantTransaction } from '../../db/gate/gate.ts'
import { recordAudit } from '../../db/queries/audit.ts'
import { foundingWait, insertOwner, insertTenant, readTenant } from '../../db/queries/tenants.ts'
import { tenantTag } from '../../src/http/etags.ts'
import { notFound, rateLimited, slugTaken } from '../../src/http/problems.ts'
import { requireUnreserved } from '../../src/tenancy/slugs.ts'
import { Name, presentTenant, Slug, Tenant } from '../schemas.ts'

const TenantInput = Type.Object(
  { name: { ...Name, examples: ['Another agency'] }, slug: { ...Slug, examples: ['another-agency'] } },
  { additionalProperties: false, title: 'TenantInput' }
)

/** Further agencies of people who have an account. */
const tenants: FastifyPluginAsyncTypebox = async (app) => {
  app.post(
    '',
    {
      config: { access: 'user', reach: 'person', throttled: true, repeatable: true, problems: ['slug_taken'] },
      schema: {
        operationId: 'createTenant',
        summary: 'Another agency, owned by the caller',
        description:
          'Use `POST /api/v1/auth/switch` to get tokens for it. The number of agencies that a person creates in a day is limited: `rate_limited`.',
        tags: ['tenant'],
        body: TenantInput,
        response: { 201: Tenant }
      }
    },
    async (request, reply) => {
      requireUnreserved(request.body.slug)
      const scope = { tenant_id: uuidv7(), user_id: request.user.user_id }
      reply.code(201)
      const storageQuota = await app.storageQuota(scope.tenant_id)
      const created = await request.createOnce(
        reply,
        async (trx) => {
          await requireDailyAllowance(trx)
          if (!(await insertTenant(trx, { id: scope.tenant_id, ...request.body })))
            throw slugTaken({ detail: 'another agency has this slug' })
          await insertOwner(trx, scope.user_id)
          await app.attempts.countTenant(request, reply)
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

  /**
   * Throws `rate_limited` when the person has created TENANTS_PER_DAY agencies within a day, with any of their tokens.
   */
  async function requireDailyAllowance(trx: TenantTransaction): Promise<void> {
    const { tenantsPerDay } = app.config
    if (tenantsPerDay === 0) return
    const [wait] = await queryIn(trx, foundingWait, { daily_limit: tenantsPerDay })
    if (wait?.seconds == null) return
    throw rateLimited({
      detail: `one person may make ${tenantsPerDay} agencies a day`,
      headers: { 'retry-after': String(wait.seconds) }
    })
  }
}

export default tenants
