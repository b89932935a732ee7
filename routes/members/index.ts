import type { FastifyPluginAsyncTypebox } from '@fastify/type-provider-typebox'
import type { FastifyRequest } from 'fastify'
import { changeRole, endSessionsOf, removeMember } from '../../db/queries/member-acts.ts'
import { listMembers, readMember } from '../../db/queries/members.ts'
import { revocationSeconds } from '../../src/auth/token-life.ts'
import { notFound } from '../../src/http/problems.ts'
import { requireDone } from '../../src/tenancy/member-outcomes.ts'
import { nilUuid } from '../../src/uuids.ts'
import { NoContent, PageQuery } from '../schemas.ts'
import { Member, MemberPage, MemberPatch, UserId } from './schemas.ts'

/** The people of an agency. */
const members: FastifyPluginAsyncTypebox = async (app) => {
  const tags = ['people']
  const token_seconds = revocationSeconds(app.config)

  const actOn = (request: FastifyRequest<{ Params: { user_id: string } }>) => ({
    actor_id: request.user.user_id,
    user_id: request.params.user_id,
    token_seconds
  })

  app.get(
    '',
    {
      config: { access: 'viewer', permission: 'members:read', problems: ['invalid_cursor'] },
      schema: {
        operationId: 'listMembers',
        summary: 'The people of the agency',
        description: 'In the order in which their accounts were created.',
        tags,
        querystring: PageQuery,
        response: { 200: MemberPage }
      }
    },
    async (request, reply) => {
      const { limit = 25, cursor } = request.query
      const { tenant_id } = request.user
      const scope = `members ${tenant_id}`
      const [after_id = nilUuid] = app.cursors.require(scope, cursor)
      const rows = await request.tenantQuery(listMembers, { tenant_id, after_id, limit: limit + 1 })
      reply.header('cache-control', 'private, no-cache')
      return app.cursors.page(scope, rows, limit, ({ user_id }) => [user_id])
    }
  )

  app.get(
    '/:user_id',
    {
      config: { access: 'viewer', permission: 'members:read', problems: ['not_found'] },
      schema: {
        operationId: 'getMember',
        summary: 'One person of the agency',
        description: 'For people of other agencies the answer is the same as for an unknown id.',
        tags,
        params: UserId,
        response: { 200: Member }
      }
    },
    async (request, reply) => {
      const { tenant_id } = request.user
      const [member] = await request.tenantQuery(readMember, { tenant_id, user_id: request.params.user_id })
      if (!member) throw notFound()
      reply.header('cache-control', 'private, no-cache')
      return member
    }
  )

  app.patch(
    '/:user_id',
    {
      config: {
        access: 'admin',
        permission: 'members:write',
        problems: ['not_found', 'last_owner', 'last_break_glass_owner']
      },
      schema: {
        operationId: 'updateMember',
        summary: "Change a member's role",
        description:
          'Nobody can change or grant a role above their own. Tokens with the old role become invalid within a second.',
        tags,
        params: UserId,
        body: MemberPatch,
        response: { 200: Member }
      }
    },
    async (request, reply) => {
      const { role } = request.body
      if (role !== undefined) {
        requireDone(await request.withTenant((trx) => changeRole(trx, actOn(request), role)))
        await app.revocations.readNow()
      }
      const { tenant_id } = request.user
      const [member] = await request.tenantQuery(readMember, { tenant_id, user_id: request.params.user_id })
      if (!member) throw notFound()
      reply.header('cache-control', 'private, no-cache')
      return member
    }
  )

  app.delete(
    '/:user_id',
    {
      config: {
        access: 'viewer',
        permission: 'members:write',
        problems: ['not_found', 'last_owner', 'last_break_glass_owner']
      },
      schema: {
        operationId: 'removeMember',
        summary: 'Remove a member, or leave',
        description:
          'Admins remove people up to their own role; everybody may leave. An agency keeps at least one owner.',
        tags,
        params: UserId,
        response: { 204: NoContent }
      }
    },
    async (request, reply) => {
      requireDone(await request.withTenant((trx) => removeMember(trx, actOn(request))))
      await app.revocations.readNow()
      reply.code(204)
    }
  )

  app.delete(
    '/:user_id/sessions',
    {
      config: { access: 'admin', permission: 'members:write', problems: ['not_found'] },
      schema: {
        operationId: 'endMemberSessions',
        summary: 'Sign a member out of this agency',
        description: 'Their sessions in other agencies stay open.',
        tags,
        params: UserId,
        response: { 204: NoContent }
      }
    },
    async (request, reply) => {
      requireDone(await request.withTenant((trx) => endSessionsOf(trx, actOn(request))))
      await app.revocations.readNow()
      reply.code(204)
    }
  )
}

export default members
