import type { FastifyInstance, FastifyReply, FastifyRequest } from 'fastify'
import { v7 as uuidv7 } from 'uuid'
import { systemScope } from '../../db/gate/gate-query.ts'
import { recordAudit } from '../../db/queries/audit.ts'
import { findAccount, type Identity } from '../../db/queries/directory.ts'
import { insertMember } from '../../db/queries/members.ts'
import { publishMember } from '../../db/queries/revocations.ts'
import { openFirstSession } from '../../db/queries/sessions.ts'
import { insertUser } from '../../db/queries/users.ts'
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
import { findInvitation, lockPerson, releaseAddress, useInvitation, verifyEmail } from './queries.ts'
import type { Acceptance } from './schemas.ts'

type AcceptRequest = FastifyRequest<{ Body: Acceptance }>

/** Who accepts: somebody with an identity, or the identity that is made with the membership. */
type Acceptor = {
  id: string
  /** What the password was checked against, or what the person had when the bearer was. */
  password_version: number
  created?: { name: string; password_hash: string; pepper_id: string }
  /** The address is taken from an identity that never showed that it is theirs. */
  releases?: true
}

/**
 * Redeems a mailed token for a membership and a session in it.
 *
 * The token shows that the address is theirs. An identity that exists already proves itself by its bearer or its password
 * besides: a mail that was read by somebody else must not open an account. One that was never verified, and whose password is not
 * known either, yields the address: whoever registered it can't keep the person out who has the mailbox. Nothing else of it
 * changes hands.
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
      // first, so that of many who accept at once all but one stop here
      if (!(await useInvitation(trx, token))) return undefined
      const released = acceptor.releases && (await releaseAddress(trx, email))
      if (acceptor.created) {
        const { id, created } = acceptor
        if (!(await insertUser(trx, { id, email, ...created, email_verified_at: new Date() }))) throw emailTaken()
      } else {
        if (!(await lockPerson(trx, acceptor.id, acceptor.password_version))) throw invalidCredentials()
        await verifyEmail(trx, acceptor.id)
      }
      // thrown, it leaves the invitation as it was
      if (!(await insertMember(trx, acceptor.id, role))) throw alreadyAMember()
      // whatever was published when they left before is over
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
    const identity = await findProven(app, request, reply, email, password)
    if (identity) return { id: identity.id, password_version: identity.password_version }
    const yields = found.email_verified_at === null && found.disabled_at === null && name !== undefined
    if (!yields) {
      await app.accounts.failed(request, email)
      throw invalidCredentials()
    }
    return { ...(await createAcceptor(app, request, email, name, password)), releases: true }
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
  return {
    id: uuidv7(),
    password_version: 1,
    created: { name, ...(await app.passwords.hash(password, request.party)) }
  }
}

/** The identity of the address, if the password is its own. */
async function findProven(
  app: FastifyInstance,
  request: FastifyRequest,
  reply: FastifyReply,
  email: string,
  password: string
): Promise<Identity | undefined> {
  const account = await app.accounts.find(request, reply, email, { proven: true })
  const { identity } = account
  const correct = await app.passwords.verify(password, identity && storedHash(identity), request.party)
  if (!correct || !identity || identity.disabled_at) return undefined
  await app.accounts.succeeded(request, account)
  return identity
}
