import type { FastifyInstance, FastifyReply, FastifyRequest } from 'fastify'
import { v7 as uuidv7 } from 'uuid'
import { systemScope } from '../../db/gate/gate-query.ts'
import { recordAudit } from '../../db/queries/audit.ts'
import { findAccount, type Identity } from '../../db/queries/directory.ts'
import { insertMember } from '../../db/queries/members.ts'
import { publishMember } from '../../db/queries/revocations.ts'
import { openFirstSession } from '../../db/queries/sessions.ts'
import { insertUser, lockPerson, verifyEmail } from '../../db/queries/users.ts'
import { passwordFault, storedHash } from '../../src/auth/passwords.ts'
import { revocationSeconds } from '../../src/auth/token-life.ts'
import { invalidMembers } from '../../src/http/field-errors.ts'
import {
  alreadyAMember,
  emailTaken,
  forbidden,
  invalidCredentials,
  invitationExpired,
  notFound,
  tenantSuspended
} from '../../src/http/problems.ts'
import { findInvitation, releaseAddress, useInvitation } from './queries.ts'
import type { Acceptance } from './schemas.ts'

type AcceptRequest = FastifyRequest<{ Body: Acceptance }>

/** The person who accepts: an existing account, or a new account that is created with the membership. */
type Acceptor = {
  id: string
  /** The version of the password when the password or the bearer token was checked. */
  password_version: number
  created?: { name: string; password_hash: string; pepper_id: string }
  /** The new account takes the address from an account that never verified it. */
  releasesAddress?: true
}

/**
 * Redeems a mailed token for a membership, and opens a session in that tenant.
 *
 * The token proves that the address belongs to the person. An existing account needs its bearer token or its password
 * as well, so that a mail that somebody else reads does not open the account.
 *
 * An account that never verified its address loses the address to a person who has the token but not the password.
 * Otherwise anybody could register a foreign address and keep its owner out. The new account gets nothing else of the
 * old one.
 */
export async function acceptInvitation(app: FastifyInstance, request: AcceptRequest, reply: FastifyReply) {
  const token = app.oneTimeTokens.verify('invitation', request.body.token)
  if (!token || (request.tenant && request.tenant.id !== token.tenant_id)) throw notFound()
  const { tenant_id } = token
  const [invitation] = await request.tenantQuery(findInvitation, token, { tenant_id, user_id: null })
  if (!invitation) throw invitationExpired()
  const { email, role, good, suspended } = invitation
  if (suspended) throw tenantSuspended()
  if (!good) throw invitationExpired()
  const acceptor = await requireAcceptor(app, request, reply, email)

  const token_seconds = revocationSeconds(app.config)
  const sid = await request.withTenant(
    async (trx) => {
      // comes first, so that of several concurrent requests only one goes on
      if (!(await useInvitation(trx, token))) return undefined
      const released = acceptor.releasesAddress && (await releaseAddress(trx, email))
      if (acceptor.created) {
        const { id, created } = acceptor
        if (!(await insertUser(trx, { id, email, ...created, email_verified_at: new Date() }))) throw emailTaken()
      } else {
        if (!(await lockPerson(trx, acceptor.id, acceptor.password_version))) throw invalidCredentials()
        await verifyEmail(trx, acceptor.id)
      }
      // the throw rolls back, so the invitation can still be used
      if (!(await insertMember(trx, acceptor.id, role))) throw alreadyAMember()
      // replaces what was published when the person left the tenant earlier
      await publishMember(trx, acceptor.id, role, token_seconds)
      const session_seconds = app.config.sessionMaxAge
      const session_id = await openFirstSession(trx, { user_id: acceptor.id, session_seconds, token_seconds })
      const detail = { role, ...(released && { address_released_by: released }) }
      await recordAudit(trx, { action: 'invitation.accepted', target_id: token.id, session_id, detail })
      return session_id
    },
    { tenant_id, user_id: acceptor.id }
  )
  if (sid === undefined) throw invitationExpired()
  await app.revocations.readNow()
  return app.tokens.issue({ user_id: acceptor.id, email, tenant_id, role, sid }, 0)
}

async function requireAcceptor(
  app: FastifyInstance,
  request: AcceptRequest,
  reply: FastifyReply,
  email: string
): Promise<Acceptor> {
  const { name, password } = request.body
  const [found] = await request.tenantQuery(findAccount, { email }, systemScope)
  const bearer = app.bearers.findLive(request)
  if (bearer) {
    if (!found || bearer.user_id !== found.id) {
      request.denied = bearer
      throw forbidden()
    }
    return { id: bearer.user_id, password_version: found.password_version }
  }
  if (found?.id) {
    if (password === undefined) {
      throw invalidMembers([{ path: '/body/password', message: 'is required, or the bearer of this account' }])
    }
    const identity = await findByPassword(app, request, reply, email, password)
    if (identity) return { id: identity.id, password_version: identity.password_version }
    const isReleasable = found.email_verified_at === null && found.disabled_at === null && name !== undefined
    if (!isReleasable) {
      await app.accounts.failed(request, email)
      throw invalidCredentials()
    }
    return { ...(await createAcceptor(app, request, email, name, password)), releasesAddress: true }
  }

  return createAcceptor(app, request, email, name, password)
}

async function createAcceptor(
  app: FastifyInstance,
  request: FastifyRequest,
  email: string,
  name: string | undefined,
  password: string | undefined
): Promise<Acceptor> {
  const required = 'is required for a new account'
  const nameFault = name === undefined ? required : undefined
  const fault =
    password === undefined ? required : passwordFault(password, app.config.passwordMinLength, [email, name ?? ''])
  if (name === undefined || password === undefined || fault) {
    throw invalidMembers([
      ...(nameFault ? [{ path: '/body/name', message: nameFault }] : []),
      ...(fault ? [{ path: '/body/password', message: fault }] : [])
    ])
  }
  await app.refuseBreached(password, '/body/password')
  return {
    id: uuidv7(),
    password_version: 1,
    created: { name, ...(await app.passwords.hash(password, request.fairnessKey)) }
  }
}

/** Finds the account of the address, when the password is right and the account is not disabled. */
async function findByPassword(
  app: FastifyInstance,
  request: FastifyRequest,
  reply: FastifyReply,
  email: string,
  password: string
): Promise<Identity | undefined> {
  const account = await app.accounts.find(request, reply, email, { proven: true })
  const { identity } = account
  const correct = await app.passwords.verify(password, identity && storedHash(identity), request.fairnessKey)
  if (!correct || !identity || identity.disabled_at) return undefined
  await app.accounts.succeeded(request, account)
  return identity
}
