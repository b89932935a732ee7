import type { FastifyInstance, FastifyReply, FastifyRequest } from 'fastify'
import { v7 as uuidv7 } from 'uuid'
import { queryIn } from '../../db/gate/gate.ts'
import { requestVerification } from '../../db/queries/accounts/mails.ts'
import { recordAudit } from '../../db/queries/audit.ts'
import { openFirstSession } from '../../db/queries/sessions.ts'
import { insertOwner, insertTenant, readTenant } from '../../db/queries/tenants.ts'
import { insertUser, readUser } from '../../db/queries/users.ts'
import { revocationSeconds } from '../../src/auth/token-life.ts'
import { emailTaken, notFound, slugTaken } from '../../src/http/problems.ts'
import { mailboxOf, normalizeEmail } from '../../src/mail/mailboxes.ts'
import { requireUnreserved } from '../../src/tenancy/slugs.ts'
import { presentTenant } from '../schemas.ts'
import type { RegistrationInput } from './schemas.ts'

/**
 * Creates an agency, its first owner and their first session in one transaction. Throws `slug_taken` or `email_taken`.
 */
export async function register(
  app: FastifyInstance,
  request: FastifyRequest<{ Body: RegistrationInput }>,
  reply: FastifyReply
) {
  const { tenant, name, password } = request.body
  const email = normalizeEmail(request.body.email)
  const { sessionMaxAge } = app.config
  requireUnreserved(tenant.slug)

  await app.refuseBreached(password, '/body/password')
  const hash = await app.passwords.hash(password, request.fairnessKey)
  const scope = { tenant_id: uuidv7(), user_id: uuidv7() }
  const sid = await request.withTenant(async (trx) => {
    // always the slug before the e-mail: with one order, two registrations can't deadlock. A throw rolls the
    // transaction back
    if (!(await insertTenant(trx, { id: scope.tenant_id, ...tenant })))
      throw slugTaken({ detail: 'another agency has this slug' })
    if (!(await insertUser(trx, { id: scope.user_id, email, name, ...hash }))) throw emailTaken()
    await app.attempts.countTenant(request, reply)
    await insertOwner(trx, scope.user_id)
    const session_id = await openFirstSession(trx, {
      user_id: scope.user_id,
      key_thumbprint: request.keyThumbprint,
      session_seconds: sessionMaxAge,
      token_seconds: revocationSeconds(app.config)
    })
    await queryIn(trx, requestVerification, { mailbox: mailboxOf(email), tenant_id: scope.tenant_id })
    await recordAudit(trx, { action: 'tenant.registered', target_id: scope.tenant_id, session_id })
    return session_id
  }, scope)
  app.tenants.created(tenant.slug)
  app.mail.wake()

  const [[user], [row]] = await Promise.all([
    request.tenantQuery(readUser, scope, scope),
    request.tenantQuery(readTenant, scope, scope)
  ])
  if (!user || !row) throw notFound()
  return {
    ...app.tokens.issue({ ...scope, email, role: 'owner', sid, key_thumbprint: request.keyThumbprint }, 0),
    user,
    tenant: presentTenant(row, await app.storageQuota(row.id))
  }
}
