import type { FastifyPluginAsyncTypebox } from '@fastify/type-provider-typebox'
import { requestEmailChange } from '../../db/queries/accounts/links.ts'
import { recordAudit } from '../../db/queries/audit.ts'
import { lockPerson } from '../../db/queries/users.ts'
import { mailedLinkSeconds } from '../../src/auth/one-time-tokens.ts'
import { invalidMembers } from '../../src/http/field-errors.ts'
import { invalidCredentials } from '../../src/http/problems.ts'
import { mailboxOf, normalizeEmail } from '../../src/mail/mailboxes.ts'
import { Accepted } from '../schemas.ts'
import { EmailChange } from './schemas.ts'

/** Changes the address of the signed-in person. */
const email: FastifyPluginAsyncTypebox = async (app) => {
  app.post(
    '/me/email',
    {
      config: { access: 'user', reach: 'person', throttled: true, problems: ['invalid_credentials'] },
      schema: {
        operationId: 'changeEmail',
        summary: 'Change the e-mail address',
        description:
          'Both addresses get a mail with a link, which can be used within an hour. The change takes effect when both have been confirmed (`POST /api/v1/auth/email/verify`), in either order; a newer change replaces one that waits. The answer is the same when somebody else has the address: they get a mail that says so, without a link. Who has no password sets one first, by `POST /api/v1/auth/password/forgot`.',
        tags: ['me'],
        body: EmailChange,
        response: { 202: Accepted }
      }
    },
    async (request, reply) => {
      const { user_id, tenant_id, sid } = request.user
      const checked = await app.credentials.requirePassword(request, reply, request.body.password)
      const address = normalizeEmail(request.body.email)
      if (address === checked.email) {
        throw invalidMembers([{ path: '/body/email', message: 'must differ from the current one' }])
      }
      const requested = await request.withTenant(async (trx) => {
        if (!(await lockPerson(trx, checked.password_version))) return false
        await app.mail.requireAllowance(trx, address)
        await requestEmailChange(trx, {
          email: address,
          old_mailbox: mailboxOf(checked.email),
          new_mailbox: mailboxOf(address),
          tenant_id,
          seconds: mailedLinkSeconds.change_to
        })
        await recordAudit(trx, {
          action: 'user.email_change_requested',
          target_id: user_id,
          session_id: sid,
          detail: { after: { email: address } }
        })
        return true
      })
      if (!requested) throw invalidCredentials()
      // the mails are sent later, as that of a forgotten password is, so that no time tells whether somebody has the address
      reply.code(202)
      return { status: 'accepted' as const }
    }
  )
}

export default email
