import type { FastifyInstance, FastifyRequest } from 'fastify'
import { v7 as uuidv7 } from 'uuid'
import { queryIn, type TenantTransaction } from '../../db/gate/gate.ts'
import { systemScope } from '../../db/gate/gate-query.ts'
import { queueNotice } from '../../db/queries/accounts/mails.ts'
import { recordAudit } from '../../db/queries/audit.ts'
import { findAccount } from '../../db/queries/directory.ts'
import { insertMember } from '../../db/queries/members.ts'
import { publishMember } from '../../db/queries/revocations.ts'
import { openSession } from '../../db/queries/sessions.ts'
import {
  findUserIdentity,
  isLinkable,
  linkIdentity,
  noteSessionOfCode,
  touchIdentity,
  useOnce
} from '../../db/queries/sign-in/identities.ts'
import { findInvitation, type OpenInvitation, useInvitation } from '../../db/queries/sign-in/invitations.ts'
import { factorsOf } from '../../db/queries/sign-in/second-factors.ts'
import { insertUser, lockPersonAsDecided, verifyEmail } from '../../db/queries/users.ts'
import { type FlowCode, markSeconds } from '../../src/auth/oauth-flows.ts'
import type { OneTimeToken } from '../../src/auth/one-time-tokens.ts'
import type { Profile } from '../../src/auth/providers/provider.ts'
import { revocationSeconds } from '../../src/auth/token-life.ts'
import {
  alreadyAMember,
  identityNotLinked,
  identityTaken,
  invalidSignInCode,
  invitationExpired,
  invitationForAnother,
  notAMember,
  type Problem,
  providerRequired,
  tenantSuspended
} from '../../src/http/problems.ts'
import { readEmail } from '../../src/mail/mailboxes.ts'
import { mayVouch, newcomerName } from './people.ts'
import { endReplayed } from './replays.ts'

/** Somebody whom a provider has sent, who holds an invitation. */
type Arrival = { provider: string; own: boolean; profile: Profile; invitation: OneTimeToken }
type InvitationCode = Extract<FlowCode, { purpose: 'invitation' }>

/** The person who accepts. Without `identity_id` the identity is linked by the acceptance. */
type Acceptor = {
  user_id: string
  password_version: number
  identity_id?: string
  /** There is no account yet, and it gets this name. */
  created?: { name: string }
}

const acceptOtherwise = 'accept the invitation with the password of the account, or with its access token'

/** Reads an invitation that can be used. Throws `invitation_expired` or `tenant_suspended` for another one. */
export async function requireInvitation(request: FastifyRequest, token: OneTimeToken): Promise<OpenInvitation> {
  const scope = { tenant_id: token.tenant_id, user_id: null }
  const [invitation] = await request.tenantQuery(findInvitation, token, scope)
  if (invitation?.suspended) throw tenantSuspended()
  if (!invitation?.good) throw invitationExpired()
  return invitation
}

/**
 * Decides who accepts an invitation by a sign-in at a provider. Nothing has changed after a refusal, so that the invitation
 * can still be used.
 *
 * - A linked identity is its account, and the account must have the invited address.
 * - Somebody unknown must have that address at the provider, and verified there. The invitation proves the mailbox as well,
 *   so an account is created whatever the domain of the address is.
 * - An account that has the address already is not linked by it, with one exception that every sign-in knows: the agency's
 *   own provider, where it may vouch for an address that is verified here too.
 *
 * Throws `invitation_for_another`, `identity_not_linked`, `not_a_member` for somebody who is disabled, and what
 * `requireInvitation` throws.
 */
export async function requireAcceptor(request: FastifyRequest, arrival: Arrival): Promise<Acceptor> {
  const { provider, own, profile, invitation } = arrival
  const { tenant_id } = invitation
  const { email: invited } = await requireInvitation(request, invitation)
  const { issuer, subject } = profile
  const [known] = await request.tenantQuery(findUserIdentity, { own, issuer, subject }, { tenant_id, user_id: null })
  if (known) {
    if (known.disabled_at) throw notAMember()
    if (known.email !== invited) throw invitationForAnother()
    return { user_id: known.user_id, password_version: known.password_version, identity_id: known.id }
  }
  const email = profile.email_verified ? readEmail(profile.email) : undefined
  if (email !== invited) throw invitationForAnother()
  const [account] = await request.tenantQuery(findAccount, { email }, systemScope)
  if (!account?.id) return { user_id: uuidv7(), password_version: 1, created: { name: newcomerName(profile, email) } }
  const linkable = own && account.email_verified_at !== null && account.disabled_at === null
  if (!linkable || !(await mayVouch(request, { tenant_id, provider, email }))) {
    throw identityNotLinked({ detail: acceptOtherwise })
  }
  return { user_id: account.id, password_version: account.password_version }
}

/**
 * Accepts an invitation with the code of a sign-in at a provider, and opens a session in that tenant. One transaction uses up
 * the code and the invitation, creates or links the account, and opens the session: of any number of requests, in whichever
 * processes, one succeeds.
 *
 * Who has a second factor, or whose agency demands one, becomes a member and gets no session yet: throws `mfa_required`, as
 * after a password. Throws `provider_required` where the tenant demands another provider, and the invitation can still be used.
 */
export async function acceptThroughProvider(app: FastifyInstance, request: FastifyRequest, code: InvitationCode) {
  const { id, tenant_id, provider: by, own } = code
  const token = { tenant_id, ...code.invitation }
  const decided = await decide(request, code, token).catch(async (err: unknown) => {
    // the invitation is used as well when the code was, by a request before or at the same moment
    if (await endReplayed(app, request, code)) throw invalidSignInCode()
    throw err
  })
  const { acceptor, email, role } = decided
  const { user_id, password_version } = acceptor
  const subject = { tenant_id, user_id }
  const key_thumbprint = request.keyThumbprint
  const provider_id = own ? by : null
  const token_seconds = revocationSeconds(app.config)
  const outcome = await request.withTenant(async (trx) => {
    const [mark] = await queryIn(trx, useOnce, { id, seconds: markSeconds })
    if (!mark?.used) return 'used'
    // of several requests only one goes on from here
    if (!(await useInvitation(trx, token))) return 'expired'
    // the throws roll back, so that the invitation can still be used
    await takePlace(trx, acceptor, email)
    if (!(await insertMember(trx, user_id, role))) throw alreadyAMember()
    await publishMember(trx, user_id, role, token_seconds)
    if (acceptor.identity_id === undefined) await link(trx, { acceptor, code, email })
    const [admission] = await queryIn(trx, openSession, {
      ...{ ...subject, password_version, by, provider_id, token_seconds, action: null },
      ...{ session_seconds: app.config.sessionMaxAge, authenticated_at: null, mfa_at: null, key_thumbprint }
    })
    const waits = admission?.outcome === 'mfa_required' || admission?.outcome === 'enrollment_required'
    if (admission?.outcome !== 'opened' && !waits) throw refusalOf(admission)
    const session_id = admission.session_id ?? undefined
    if (session_id !== undefined) await noteSessionOfCode(trx, id, session_id)
    const session = session_id === undefined ? {} : { session_id }
    await recordAudit(trx, { action: 'invitation.accepted', target_id: token.id, detail: { role, by }, ...session })
    await recordAudit(trx, { action: 'member.added', target_id: user_id, detail: { role }, ...session })
    return admission
  }, subject)
  if (outcome === 'used') {
    await endReplayed(app, request, code)
    throw invalidSignInCode()
  }
  if (outcome === 'expired') throw invitationExpired()
  app.mail.wake()
  await app.revocations.readNow()
  if (outcome.outcome === 'mfa_required' || outcome.outcome === 'enrollment_required') {
    const row = await app.secondFactors.find(request, subject)
    const waiting = { ...subject, id, password_version, by, provider_id, key_thumbprint }
    throw app.secondFactors.demand(outcome.outcome, waiting, row && factorsOf(row))
  }
  return app.tokens.issue({ ...subject, email, role, sid: outcome.session_id as string, key_thumbprint }, 0)
}

async function decide(request: FastifyRequest, { provider, own, profile }: InvitationCode, invitation: OneTimeToken) {
  const acceptor = await requireAcceptor(request, { provider, own, profile, invitation })
  return { acceptor, ...(await requireInvitation(request, invitation)) }
}

/** Creates the account, or locks it as it was when it was decided about. */
async function takePlace(trx: TenantTransaction, acceptor: Acceptor, email: string): Promise<void> {
  const { user_id, password_version, identity_id, created } = acceptor
  if (created) {
    const person = { id: user_id, email, ...created, password_hash: null, pepper_id: null }
    // somebody has registered the address meanwhile
    if (!(await insertUser(trx, { ...person, email_verified_at: new Date() })))
      throw identityNotLinked({ detail: acceptOtherwise })
    return
  }
  if (!(await lockPersonAsDecided(trx, { password_version, email }))) throw invalidSignInCode()
  if (identity_id !== undefined && !(await touchIdentity(trx, identity_id, null))) throw invalidSignInCode()
  await verifyEmail(trx, user_id)
}

type Link = { acceptor: Acceptor; code: InvitationCode; email: string }

/** Links the identity to the new member. Whoever had an account before is told by mail. */
async function link(trx: TenantTransaction, { acceptor, code, email }: Link): Promise<void> {
  const { provider, own, profile } = code
  const { issuer, subject } = profile
  if (!acceptor.created && !(await isLinkable(trx, { email, provider }))) throw identityNotLinked()
  const identity = { id: uuidv7(), provider, own, issuer, subject, email }
  const linked = await linkIdentity(trx, identity)
  if (linked !== 'linked') throw linked === 'gone' ? invalidSignInCode() : identityTaken()
  if (acceptor.created) return
  const detail = { provider, by: 'address' }
  await recordAudit(trx, { action: 'user.identity_linked', target_id: acceptor.user_id, detail })
  await queueNotice(trx, 'identity_linked')
}

function refusalOf(admission: { outcome: string; provider: string | null } | undefined): Problem {
  if (admission?.outcome === 'suspended') return tenantSuspended()
  if (admission?.outcome === 'provider_required') {
    return providerRequired({ extensions: { provider: admission.provider } })
  }
  return invalidSignInCode()
}
