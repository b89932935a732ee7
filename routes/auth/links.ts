import type { FastifyInstance, FastifyRequest } from 'fastify'
import { queryIn } from '../../db/gate/gate.ts'
import { systemScope } from '../../db/gate/gate-query.ts'
import { confirmEmailChange, findAccountLink, recordMyEvent, useAccountLink } from '../../db/queries/accounts/links.ts'
import { queueNotice } from '../../db/queries/accounts/mails.ts'
import { forgetFailures } from '../../db/queries/directory.ts'
import { forgetIdentities } from '../../db/queries/sign-in/identities.ts'
import { removeFactors } from '../../db/queries/sign-in/second-factors.ts'
import { changePassword, endUserSessions, verifyEmail } from '../../db/queries/users.ts'
import type { LinkPurpose } from '../../src/auth/one-time-tokens.ts'
import { requireAcceptablePassword } from '../../src/auth/passwords.ts'
import { revocationSeconds } from '../../src/auth/token-life.ts'
import { linkExpired } from '../../src/http/problems.ts'
import { nilUuid } from '../../src/uuids.ts'
import type { EmailVerification, PasswordReset } from './schemas.ts'

/**
 * Sets a new password with a mailed token. The mailbox is proven by it, so the address is verified, and wrong passwords
 * are forgotten. All sessions end, and none is opened: the person signs in as usual.
 *
 * Throws `link_expired`, or `validation_failed` for a password that is not acceptable; the token can then be used again.
 */
export async function resetPassword(app: FastifyInstance, request: FastifyRequest<{ Body: PasswordReset }>) {
  const { token, password } = request.body
  const link = await requireLink(app, request, token, ['reset'])
  const { user_id, email, name } = link
  requireAcceptablePassword(password, '/body/password', app.config.passwordMinLength, [email, name])
  await app.refuseBreached(password, '/body/password')
  const hash = await app.passwords.hash(password, request.fairnessKey)
  const token_seconds = revocationSeconds(app.config)
  const done = await request.withTenant(
    async (trx) => {
      // comes first, so that of several concurrent requests only one goes on
      const version = await useAccountLink(trx, link)
      if (version === undefined || !(await changePassword(trx, user_id, version, hash))) return false
      if (await verifyEmail(trx, user_id)) {
        await recordMyEvent(trx, 'user.email_verified')
        // whoever set one up never proved the mailbox, and may have registered somebody else's address
        await removeFactors(trx, { actor_id: user_id, token_seconds })
        await forgetIdentities(trx)
      }
      await endUserSessions(trx, null, token_seconds)
      await queryIn(trx, forgetFailures, { email })
      await recordMyEvent(trx, 'user.password_reset')
      await queueNotice(trx, 'password_changed')
      return true
    },
    { tenant_id: null, user_id }
  )
  if (!done) throw linkExpired()
  await app.revocations.readNow()
  app.mail.wake()
}

/** Verifies an address with a mailed token, or confirms a change of the address. Throws `link_expired`. */
export async function verifyAddress(app: FastifyInstance, request: FastifyRequest<{ Body: EmailVerification }>) {
  const link = await requireLink(app, request, request.body.token, ['verification', 'change_from', 'change_to'])
  const { user_id, purpose } = link
  const done = await request.withTenant(
    async (trx) => {
      if (purpose !== 'verification') return (await confirmEmailChange(trx, link)) !== 'unusable'
      if ((await useAccountLink(trx, link)) === undefined) return false
      // a reset or an invitation may have verified it since
      if (await verifyEmail(trx, user_id)) await recordMyEvent(trx, 'user.email_verified')
      return true
    },
    { tenant_id: null, user_id }
  )
  if (!done) throw linkExpired()
  app.mail.wake()
}

/**
 * Finds the account of a mailed token. A token that names an agency can't be used on the host of another one.
 *
 * Every token that can't be used gets the same answer, whatever the reason.
 */
async function requireLink(
  app: FastifyInstance,
  request: FastifyRequest,
  token: string,
  purposes: readonly LinkPurpose[]
) {
  for (const purpose of purposes) {
    const content = app.oneTimeTokens.verify(purpose, token)
    if (!content) continue
    const { id, tenant_id } = content
    if (request.tenant && tenant_id !== nilUuid && tenant_id !== request.tenant.id) break
    const [found] = await request.tenantQuery(findAccountLink, { id, purpose }, systemScope)
    if (found) return { id, purpose, ...found }
  }
  throw linkExpired()
}
