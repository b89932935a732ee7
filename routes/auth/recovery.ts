import type { FastifyPluginAsyncTypebox } from '@fastify/type-provider-typebox'
import { systemScope } from '../../db/gate/gate-query.ts'
import { requestPasswordReset, requestVerification } from '../../db/queries/accounts/mails.ts'
import { findMyEmail } from '../../db/queries/users.ts'
import { mailboxOf, normalizeEmail } from '../../src/mail/mailboxes.ts'
import { Accepted, NoContent } from '../schemas.ts'
import { resetPassword, verifyAddress } from './links.ts'
import { EmailVerification, PasswordReset, PasswordResetRequest } from './schemas.ts'

const accepted = { status: 'accepted' as const }

/** A forgotten password, and the proof that an address belongs to its account. */
const recovery: FastifyPluginAsyncTypebox = async (app) => {
  const tags = ['auth']

  app.post(
    '/password/forgot',
    {
      config: { access: 'public', throttled: true },
      schema: {
        operationId: 'requestPasswordReset',
        summary: 'Ask for a mail to set a new password',
        description:
          'The answer is the same whether or not somebody has the address. The link of the mail leads to `/password/reset?token=` of the agency of the host, else of the one used last, and can be used once within an hour. How many of these mails an address gets in a day is limited.',
        tags,
        body: PasswordResetRequest,
        response: { 202: Accepted }
      }
    },
    async (request, reply) => {
      const email = normalizeEmail(request.body.email)
      await app.accounts.countRequest(request, reply, email)
      // who has the address is looked up when the mail is sent, and no mail is sent now: the next reply would be later
      await request.tenantQuery(
        requestPasswordReset,
        { email, mailbox: mailboxOf(email), tenant_id: request.tenant?.id ?? null, detail: null },
        systemScope
      )
      reply.code(202)
      return accepted
    }
  )

  app.post(
    '/password/reset',
    {
      config: { access: 'public', throttled: true, problems: ['link_expired'] },
      schema: {
        operationId: 'resetPassword',
        summary: 'Set a new password with the token of a mail',
        description:
          'Ends every session in every agency, and verifies the address. Signs nobody in: sign in with the new password. A token that cannot be used has one answer, whatever the reason.',
        tags,
        body: PasswordReset,
        response: { 204: NoContent }
      }
    },
    async (request, reply) => {
      await resetPassword(app, request)
      reply.code(204)
    }
  )

  app.post(
    '/email/verify',
    {
      config: { access: 'public', throttled: true, problems: ['link_expired'] },
      schema: {
        operationId: 'verifyEmail',
        summary: 'Confirm an address with the token of a mail',
        description:
          'For the mail after signing up, and for both mails of a change of the address, whose link leads to `/email/verify?token=`. A token that cannot be used has one answer, whatever the reason.',
        tags,
        body: EmailVerification,
        response: { 204: NoContent }
      }
    },
    async (request, reply) => {
      await verifyAddress(app, request)
      reply.code(204)
    }
  )

  app.post(
    '/email/resend',
    {
      config: { access: 'user', throttled: true },
      schema: {
        operationId: 'resendVerification',
        summary: 'Send the mail that confirms the address again',
        description:
          'The link of the mail can be used for a day, and makes the earlier one useless. When the address is confirmed already, the answer is the same and no mail is sent.',
        tags,
        response: { 202: Accepted }
      }
    },
    async (request, reply) => {
      const { tenant_id } = request.user
      const [me] = await request.tenantQuery(findMyEmail, {})
      if (me) await request.tenantQuery(requestVerification, { mailbox: mailboxOf(me.email), tenant_id })
      app.mail.wake()
      reply.code(202)
      return accepted
    }
  )
}

export default recovery
