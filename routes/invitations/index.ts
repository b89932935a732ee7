import type { FastifyPluginAsyncTypebox } from '@fastify/type-provider-typebox'
import { v7 as uuidv7 } from 'uuid'
import { recordAudit } from '../../db/queries/audit.ts'
import { mayManage } from '../../src/auth/roles.ts'
import { alreadyAMember, alreadyInvited, forbidden, notFound } from '../../src/http/problems.ts'
import { normalizeEmail } from '../../src/mail/mailboxes.ts'
import { maxUuid } from '../../src/uuids.ts'
import { Accepted, NoContent, PageQuery, TokenReply } from '../schemas.ts'
import { acceptInvitation } from './accept.ts'
import { deleteInvitation, insertInvitation, isMember, listInvitations, renewInvitation } from './queries.ts'
import { Acceptance, Invitation, InvitationId, InvitationInput, InvitationPage } from './schemas.ts'

/** Invitations by e-mail, which admins send. */
const invitations: FastifyPluginAsyncTypebox = async (app) => {
  const access = 'admin'
  const tags = ['people']

  app.get(
    '',
    {
      config: { access, permission: 'invitations:read', problems: ['invalid_cursor'] },
      schema: {
        operationId: 'listInvitations',
        summary: 'Invitations that wait',
        description: 'The newest first, including invitations that have expired or whose mail was not delivered.',
        tags,
        querystring: PageQuery,
        response: { 200: InvitationPage }
      }
    },
    async (request, reply) => {
      const { limit = 25, cursor } = request.query
      const { tenant_id } = request.user
      const scope = `invitations ${tenant_id}`
      const [after_id = maxUuid] = app.cursors.require(scope, cursor)
      const rows = await request.tenantQuery(listInvitations, { tenant_id, after_id, limit: limit + 1 })
      reply.header('cache-control', 'private, no-cache')
      return app.cursors.page(scope, rows, limit, ({ id }) => [id])
    }
  )

  app.post(
    '',
    {
      config: {
        access,
        permission: 'invitations:write',
        throttled: true,
        repeatable: true,
        problems: ['already_invited', 'already_a_member']
      },
      schema: {
        operationId: 'createInvitation',
        summary: 'Invite somebody by e-mail',
        description:
          'The mail carries the token, which is valid for seven days. Nobody can invite to a role above their own. When a person may no longer invite, their open invitations become invalid. The number of mails that one person causes in a day, and that one address gets, is limited over all agencies: `rate_limited`.',
        tags,
        body: InvitationInput,
        response: { 201: Invitation }
      }
    },
    async (request, reply) => {
      const { role } = request.body
      const email = normalizeEmail(request.body.email)
      if (!mayManage(request.user.role, role))
        throw forbidden({ detail: 'nobody can invite to a role above their own' })
      reply.code(201)
      const invitation = await request.createOnce(reply, async (trx) => {
        if (await isMember(trx, email)) throw alreadyAMember()
        const created = await insertInvitation(trx, { id: uuidv7(), email, role })
        if (!created) throw alreadyInvited()
        const { generation, ...invitation } = created
        await app.mail.queue(trx, { kind: 'invitation', subject_id: invitation.id, generation, to: email })
        await recordAudit(trx, {
          action: 'invitation.created',
          target_id: invitation.id,
          detail: { after: { email, role } }
        })
        return { ...invitation, valid: true, delivery: 'queued' as const }
      })
      app.mail.wake()
      return invitation
    }
  )

  app.post(
    '/:id/resend',
    {
      config: { access, permission: 'invitations:write', problems: ['not_found'] },
      schema: {
        operationId: 'resendInvitation',
        summary: 'Send an invitation again',
        description: 'With a new token for another seven days. The previous token becomes invalid.',
        tags,
        params: InvitationId,
        response: { 202: Accepted }
      }
    },
    async (request, reply) => {
      // limits the mails to one address
      await app.attempts.countAccount(request, reply, `resend ${request.user.tenant_id} ${request.params.id}`)
      const renewed = await request.withTenant(async (trx) => {
        const invitation = await renewInvitation(trx, request.params.id)
        if (!invitation) return undefined
        const { id, generation, email: to } = invitation
        await app.mail.queue(trx, { kind: 'invitation', subject_id: id, generation, to })
        await recordAudit(trx, { action: 'invitation.resent', target_id: id })
        return invitation
      })
      if (!renewed) throw notFound()
      app.mail.wake()
      reply.code(202)
      return { status: 'accepted' as const }
    }
  )

  app.delete(
    '/:id',
    {
      config: { access, permission: 'invitations:write', problems: ['not_found'] },
      schema: {
        operationId: 'revokeInvitation',
        summary: 'Take an invitation back',
        description: 'Its token becomes invalid at once.',
        tags,
        params: InvitationId,
        response: { 204: NoContent }
      }
    },
    async (request, reply) => {
      const revoked = await request.withTenant(async (trx) => {
        const invitation = await deleteInvitation(trx, request.params.id)
        if (!invitation) return undefined
        const { id, email, role } = invitation
        await recordAudit(trx, { action: 'invitation.revoked', target_id: id, detail: { before: { email, role } } })
        return invitation
      })
      if (!revoked) throw notFound()
      reply.code(204)
    }
  )

  app.post(
    '/accept',
    {
      config: {
        access: 'public',
        throttled: true,
        takesProof: true,
        problems: [
          'not_found',
          'invitation_expired',
          'already_a_member',
          'conflict',
          'invalid_credentials',
          'mfa_required',
          'provider_required',
          'forbidden',
          'unauthenticated',
          'invalid_token',
          'token_expired',
          'session_revoked',
          'tenant_suspended'
        ]
      },
      schema: {
        operationId: 'acceptInvitation',
        summary: 'Accept an invitation',
        description:
          'A new person sends `name` and `password`. A person with an account sends its bearer token or its `password`; the bearer token of another person is refused. When the address of an account was never verified, a request with `name` and a different `password` takes the address over: the old account is closed, and its agencies stay without it. Send no `name` to sign in to the old account. An account with a second factor needs its `code` as well, unless the session of the bearer token has proved it: `mfa_required`. Where the agency demands a second factor and the account has none, the invitation is accepted and the same problem has a token to set one up with. Where it demands its own provider the answer is `provider_required`, and the invitation stays as it was: accept it by `GET /api/v1/auth/oauth/{provider}` with `invitation`.',
        tags,
        security: [{ bearer: [] }, { dpop: [] }, {}],
        body: Acceptance,
        response: { 200: TokenReply }
      }
    },
    (request, reply) => acceptInvitation(app, request, reply)
  )
}

export default invitations
