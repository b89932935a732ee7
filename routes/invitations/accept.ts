import type { FastifyInstance, FastifyReply, FastifyRequest } from 'fastify'
import { v7 as uuidv7 } from 'uuid'
import { queryIn } from '../../db/gate/gate.ts'
import { systemScope } from '../../db/gate/gate-query.ts'
import { recordAudit } from '../../db/queries/audit.ts'
import { findAccount, type Identity } from '../../db/queries/directory.ts'
import { insertMember } from '../../db/queries/members.ts'
import { publishMember } from '../../db/queries/revocations.ts'
import { findOpenSession, openSession, passwordOnly, type SessionProof } from '../../db/queries/sessions.ts'
import { findInvitation, releaseAddress, useInvitation } from '../../db/queries/sign-in/invitations.ts'
import { type FactorProof, factorsOf, usableFactor, useFactor } from '../../db/queries/sign-in/second-factors.ts'
import { insertUser, lockPerson, verifyEmail } from '../../db/queries/users.ts'
import { passwordFault, storedHash } from '../../src/auth/passwords.ts'
import { revocationSeconds } from '../../src/auth/token-life.ts'
import { invalidMembers } from '../../src/http/field-errors.ts'
import {
  alreadyAMember,
  conflict,
  emailTaken,
  forbidden,
  invalidCredentials,
  invitationExpired,
  mfaRequired,
  notFound,
  type Problem,
  providerRequired,
  sessionRevoked,
  tenantSuspended
} from '../../src/http/problems.ts'
import type { Acceptance } from './schemas.ts'

type AcceptRequest = FastifyRequest<{ Body: Acceptance }>
type Account = Awaited<ReturnType<FastifyInstance['accounts']['find']>>

/** The person who accepts: an existing account, or a new account that is created with the membership. */
type Acceptor = {
  id: string
  /** The version of the password when the password or the bearer token was checked. */
  password_version: number
  /** What the person has proved: just now, or in the session of the bearer token. */
  proof: SessionProof
  /** A code that was checked, and is used up by the acceptance. */
  code?: FactorProof
  /** The account whose failed attempts are forgotten when there is a session: not before the factor is right too. */
  account?: Account
  /** The bearer token was the proof, and no password. */
  byBearer?: true
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
 *
 * Throws `mfa_required`, and nothing has changed, when the person has a second factor and neither a code nor the session
 * of the bearer token has proved it. Throws `provider_required` where the tenant demands its own provider, and nothing has
 * changed either: the invitation is accepted by a sign-in there. Where the tenant demands a factor and the person has none, somebody with a bearer
 * token sets one up first. Others become members and get no session: the problem has the token to set one up with.
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

  const subject = { tenant_id, user_id: acceptor.id }
  const key_thumbprint = request.keyThumbprint
  const token_seconds = revocationSeconds(app.config)
  const outcome = await request
    .withTenant(async (trx) => {
      const { password_version } = acceptor
      const proof = { ...acceptor.proof }
      // of several concurrent requests only one goes on from here
      if (!(await useInvitation(trx, token))) return undefined
      if (acceptor.code) {
        const mfa_at = await useFactor(trx, acceptor.code, { actor_id: acceptor.id })
        if (!mfa_at) throw codeUsed
        proof.mfa_at = mfa_at
      }
      const released = acceptor.releasesAddress && (await releaseAddress(trx, email))
      if (acceptor.created) {
        const { id, created } = acceptor
        if (!(await insertUser(trx, { id, email, ...created, email_verified_at: new Date() }))) throw emailTaken()
      } else {
        if (!(await lockPerson(trx, password_version))) throw invalidCredentials()
        await verifyEmail(trx, acceptor.id)
      }
      // the throw rolls back, so the invitation can still be used
      if (!(await insertMember(trx, acceptor.id, role))) throw alreadyAMember()
      // replaces what was published when the person left the tenant earlier
      await publishMember(trx, acceptor.id, role, token_seconds)
      const [admission] = await queryIn(trx, openSession, {
        ...{ ...subject, ...proof, password_version, token_seconds },
        ...{ session_seconds: app.config.sessionMaxAge, action: null, key_thumbprint }
      })
      const enrolls = admission?.outcome === 'enrollment_required' && !acceptor.byBearer
      if (admission?.outcome !== 'opened' && !enrolls) throw refusalOf(admission)
      const session_id = admission.session_id ?? undefined
      const detail = { role, ...(released && { address_released_by: released }) }
      const session = session_id === undefined ? {} : { session_id }
      await recordAudit(trx, { action: 'invitation.accepted', target_id: token.id, detail, ...session })
      await recordAudit(trx, { action: 'member.added', target_id: acceptor.id, detail: { role }, ...session })
      return { session_id }
    }, subject)
    .catch((err: unknown) => {
      if (err !== codeUsed) throw err
      return 'code_used' as const
    })
  if (outcome === 'code_used') throw await app.secondFactors.refuse(request, email)
  if (!outcome) throw invitationExpired()
  await app.revocations.readNow()
  const { session_id: sid } = outcome
  if (sid === undefined) {
    const { password_version } = acceptor
    throw app.secondFactors.demand('enrollment_required', { ...subject, password_version, key_thumbprint })
  }
  if (acceptor.account) await app.accounts.succeeded(request, acceptor.account)
  return app.tokens.issue({ ...subject, email, role, sid, key_thumbprint }, 0)
}

/** Rolls an acceptance back whose code was used by another request meanwhile. */
const codeUsed = new Error('the code was used')

/** The problem of an acceptance that opens no session. Thrown in the transaction, so that nothing changes. */
function refusalOf(admission: { outcome: string; provider: string | null } | undefined): Problem {
  switch (admission?.outcome) {
    case 'provider_required':
      return providerRequired({ extensions: { provider: admission.provider } })
    case 'mfa_required':
      return mfaRequired({
        detail: 'send a code of your second factor as `code` too, or sign in first and accept with the access token'
      })
    case 'enrollment_required': {
      const detail =
        'this agency demands a second factor: set one up at POST /api/v1/users/me/mfa/totp, then accept again'
      return mfaRequired({ detail, extensions: { enroll: true } })
    }
    case 'suspended':
      return tenantSuspended()
    default:
      return invalidCredentials()
  }
}

async function requireAcceptor(
  app: FastifyInstance,
  request: AcceptRequest,
  reply: FastifyReply,
  email: string
): Promise<Acceptor> {
  const { name, password, code } = request.body
  const [found] = await request.tenantQuery(findAccount, { email }, systemScope)
  const bearer = app.bearers.findLive(request)
  if (bearer) {
    if (!found || bearer.user_id !== found.id) {
      request.denied = bearer
      throw forbidden({ detail: 'the invitation is for somebody else: sign out, or sign in as that person' })
    }
    const { tenant_id, sid: session_id } = bearer
    const values = { tenant_id, session_id, idle_seconds: app.config.refreshTokenTtl }
    const [open] = await request.tenantQuery(findOpenSession, values, bearer)
    if (!open) throw sessionRevoked()
    // the agency decides what its provider says, so this does not prove the person to another agency
    if (open.provider_id !== null) throw forbidden({ detail: 'sign in with your password, or send it as `password`' })
    const { password_version, ...proof } = open
    const acceptor = { id: bearer.user_id, password_version, proof, byBearer: true } as const
    return code === undefined
      ? acceptor
      : { ...acceptor, ...(await checkCode(app, request, reply, bearer.user_id, code)) }
  }
  if (found?.id) {
    if (password === undefined) {
      throw invalidMembers([{ path: '/body/password', message: 'is required, or the bearer of this account' }])
    }
    const account = await findByPassword(app, request, reply, email, password)
    if (account) {
      const { id, password_version } = account.identity
      const acceptor = { id, password_version, proof: passwordOnly, account }
      return code === undefined ? acceptor : { ...acceptor, ...(await checkCode(app, request, reply, id, code)) }
    }
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
    proof: passwordOnly,
    created: { name, ...(await app.passwords.hash(password, request.fairnessKey)) }
  }
}

/** Checks a code of the second factor of somebody who has proved who they are otherwise. */
async function checkCode(
  app: FastifyInstance,
  request: AcceptRequest,
  reply: FastifyReply,
  user_id: string,
  code: string
): Promise<{ code: FactorProof; account: Account }> {
  const person = { tenant_id: null, user_id }
  const row = await app.secondFactors.find(request, person)
  if (!row) throw invalidCredentials()
  if (row.id === null || factorsOf(row).length === 0) throw conflict({ detail: 'there is no second factor' })
  const { proof, account } = await app.secondFactors.check(
    request,
    reply,
    person,
    usableFactor({ ...row, id: row.id }),
    code
  )
  return { code: proof, account }
}

/** Finds the account of the address, when the password is right and the account is not disabled. */
async function findByPassword(
  app: FastifyInstance,
  request: FastifyRequest,
  reply: FastifyReply,
  email: string,
  password: string
): Promise<(Account & { identity: Identity }) | undefined> {
  const account = await app.accounts.find(request, reply, email, { proven: true })
  const { identity } = account
  const correct = await app.passwords.verify(password, identity && storedHash(identity), request.fairnessKey)
  return correct && identity && !identity.disabled_at ? { ...account, identity } : undefined
}
