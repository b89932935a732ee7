import type { FastifyPluginAsyncTypebox } from '@fastify/type-provider-typebox'
import type { FastifyRequest } from 'fastify'
import { queryIn, type TenantTransaction } from '../../db/gate/gate.ts'
import { queueAgencyNews } from '../../db/queries/accounts/mails.ts'
import { recordAudit } from '../../db/queries/audit.ts'
import { lockRoles } from '../../db/queries/members.ts'
import { isFresh } from '../../db/queries/sessions.ts'
import { roleTooLow } from '../../src/auth/admission.ts'
import { conflict, enforcementNotReady, notFound, reauthenticationRequired } from '../../src/http/problems.ts'
import { NoContent } from '../schemas.ts'
import {
  type Enforcement as EnforcementRow,
  findLacks,
  type Lack,
  lockProviders,
  maxBreakGlassOwners,
  readEnforcement,
  setBreakGlass,
  setEnforced
} from './queries.ts'
import { BreakGlassParams, Enforcement, EnforcementInput } from './schemas.ts'

/** An agency demands that its people come in through its own provider, but for break-glass owners. */
const enforcement: FastifyPluginAsyncTypebox = async (app) => {
  const tags = ['tenant']
  const access = 'owner'

  app.get(
    '',
    {
      config: { access, permission: 'never' },
      schema: {
        operationId: 'getEnforcement',
        summary: 'Through which provider people have to come in',
        description: 'And the break-glass owners, who may come in otherwise.',
        tags,
        response: { 200: Enforcement }
      }
    },
    async (request, reply) => {
      const [row] = await request.tenantQuery(readEnforcement, request.user)
      if (!row) throw notFound()
      reply.header('cache-control', 'private, no-cache')
      return row
    }
  )

  app.put(
    '',
    {
      config: {
        access,
        permission: 'never',
        problems: ['not_found', 'reauthentication_required', 'enforcement_not_ready']
      },
      schema: {
        operationId: 'enforceProvider',
        summary: "Demand that people come in through the agency's own provider",
        description:
          'From now on every other way in is closed for everybody but the break-glass owners: 403 `provider_required`. Sessions that were opened otherwise are not renewed. It needs a proven domain, an owner who came in through the provider within a day, and a break-glass owner with a password and a second factor: `missing` of `enforcement_not_ready` lists what there is not. All members get a mail, so an agency may demand a provider and a second factor ten times a day in all: `rate_limited`. Needs a sign-in within the last five minutes.',
        tags,
        body: EnforcementInput,
        response: { 200: Enforcement }
      }
    },
    async (request, reply) => {
      const { tenant_id } = request.user
      const { provider_id } = request.body
      const outcome = await request.withTenant(async (trx): Promise<Lack[] | EnforcementRow> => {
        // providers before memberships, as a sign-in locks them
        const { before, name } = await lockProviders(trx, tenant_id, provider_id)
        await requireOwner(trx, request)
        if (name === null) throw notFound()
        const lacks = await findLacks(trx, tenant_id, provider_id)
        if (lacks.length > 0) return lacks
        if (before !== provider_id) {
          await app.attempts.countDemand(request, reply)
          await setEnforced(trx, tenant_id, provider_id)
          const detail = { before: { provider_id: before }, after: { provider_id } }
          await recordAudit(trx, { action: 'enforcement.started', target_id: provider_id, detail })
          await queueAgencyNews(trx, 'provider_demanded', { provider: name })
        }
        const [row] = await queryIn(trx, readEnforcement, { tenant_id })
        return row as EnforcementRow
      })
      if (Array.isArray(outcome)) throw enforcementNotReady({ extensions: { missing: outcome } })
      app.mail.wake()
      return outcome
    }
  )

  app.delete(
    '',
    {
      config: { access, permission: 'never', problems: ['reauthentication_required'] },
      schema: {
        operationId: 'endEnforcement',
        summary: 'Let people come in as they like again',
        description:
          'Does nothing when no provider is demanded. All members get a mail. Needs a sign-in within the last five minutes.',
        tags,
        response: { 204: NoContent }
      }
    },
    async (request, reply) => {
      const { tenant_id } = request.user
      await request.withTenant(async (trx) => {
        const { before, name } = await lockProviders(trx, tenant_id, null)
        await requireOwner(trx, request)
        if (before === null || name === null) return
        await setEnforced(trx, tenant_id, null)
        await recordAudit(trx, { action: 'enforcement.ended', target_id: before })
        await queueAgencyNews(trx, 'provider_demand_ended', { provider: name })
      })
      app.mail.wake()
      reply.code(204)
    }
  )

  app.put(
    '/break-glass/:user_id',
    {
      config: { access, permission: 'never', problems: ['not_found', 'conflict', 'reauthentication_required'] },
      schema: {
        operationId: 'addBreakGlassOwner',
        summary: 'Let an owner come in without the provider',
        description:
          'They need a password and a second factor: `conflict`. Each time they come in so, all owners are told by mail. Needs a sign-in within the last five minutes.',
        tags,
        params: BreakGlassParams,
        response: { 204: NoContent }
      }
    },
    async (request, reply) => {
      await changeBreakGlass(request, true)
      reply.code(204)
    }
  )

  app.delete(
    '/break-glass/:user_id',
    {
      config: {
        access,
        permission: 'never',
        problems: ['not_found', 'last_break_glass_owner', 'reauthentication_required']
      },
      schema: {
        operationId: 'removeBreakGlassOwner',
        summary: 'Let an owner come in through the provider only',
        description:
          'The last one who is ready stays while a provider is demanded. Needs a sign-in within the last five minutes.',
        tags,
        params: BreakGlassParams,
        response: { 204: NoContent }
      }
    },
    async (request, reply) => {
      await changeBreakGlass(request, false)
      reply.code(204)
    }
  )

  async function changeBreakGlass(
    request: FastifyRequest<{ Params: { user_id: string } }>,
    breakGlass: boolean
  ): Promise<void> {
    const { user_id } = request.params
    await request.withTenant(async (trx) => {
      await requireOwner(trx, request)
      const outcome = await setBreakGlass(trx, user_id, breakGlass)
      // thrown here, so that nothing has changed
      if (outcome === 'not_found') throw notFound()
      if (outcome === 'unready') throw conflict({ detail: 'a break-glass owner needs a password and a second factor' })
      if (outcome === 'full') throw conflict({ detail: `there are ${maxBreakGlassOwners} break-glass owners` })
      if (outcome === 'unchanged') return
      const action = breakGlass ? 'member.break_glass_granted' : 'member.break_glass_removed'
      await recordAudit(trx, { action, target_id: user_id })
    })
  }
}

/** The role in the token may be a second old. Throws `forbidden`, and `reauthentication_required` after an older sign-in. */
async function requireOwner(trx: TenantTransaction, { user }: FastifyRequest): Promise<void> {
  if (!(await isFresh(trx, user))) throw reauthenticationRequired()
  const roles = await lockRoles(trx, [user.user_id])
  if (roles.find(({ user_id }) => user_id === user.user_id)?.role !== 'owner') throw roleTooLow('owner')
}

export default enforcement
