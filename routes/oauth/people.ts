import type { FastifyInstance, FastifyRequest } from 'fastify'
import { v7 as uuidv7 } from 'uuid'
import type { TenantTransaction } from '../../db/gate/gate.ts'
import { systemScope } from '../../db/gate/gate-query.ts'
import { queueNotice } from '../../db/queries/accounts/mails.ts'
import { recordAudit } from '../../db/queries/audit.ts'
import { findAccount, findTenantLastUsed } from '../../db/queries/directory.ts'
import { insertMember } from '../../db/queries/members.ts'
import { publishMember } from '../../db/queries/revocations.ts'
import { findUserIdentity, isLinkable, linkIdentity, mayVouchFor } from '../../db/queries/sign-in/identities.ts'
import { findNewcomerRole } from '../../db/queries/sign-in/identity-providers.ts'
import { insertUser, readUser } from '../../db/queries/users.ts'
import type { Profile, Provider } from '../../src/auth/providers/provider.ts'
import { revocationSeconds } from '../../src/auth/token-life.ts'
import { identityNotLinked, identityTaken, notAMember } from '../../src/http/problems.ts'
import { readEmail } from '../../src/mail/mailboxes.ts'
import { trimName } from '../../src/names.ts'

type Arrival = { provider: Provider; profile: Profile; tenant_id: string | null }
/** Somebody whose session may be opened. */
export type Admitted = { tenant_id: string; user_id: string; password_version: number; identity_id: string }

/**
 * Decides who it is that a provider has sent, and whether they may come in.
 *
 * Only (issuer, subject) says who it is. An e-mail address never links an identity of a provider for everybody, because
 * whoever registered the account may not own the address. An agency's own provider may add people of a domain that the
 * agency has proven, and link members whose address is verified.
 *
 * Throws `identity_not_linked` or `not_a_member`. Nothing about an unknown person is stored then. An agency decides what
 * its own provider says, so it gets one refusal for all addresses: another one would tell it who has an account.
 */
export async function admitPerson(app: FastifyInstance, request: FastifyRequest, arrival: Arrival): Promise<Admitted> {
  const known = await findKnown(request, arrival)
  if (known) return known
  const { provider, profile } = arrival
  const email = profile.email_verified ? readEmail(profile.email) : undefined
  if (email === undefined) throw provider.own ? identityNotLinked() : notAMember()
  const { tenant_id } = arrival
  if (!provider.own) throw (await hasAccount(request, email)) ? identityNotLinked() : notAMember()
  if (tenant_id === null || !(await mayVouch(request, { tenant_id, provider: provider.key, email }))) {
    throw identityNotLinked()
  }
  const [account] = await request.tenantQuery(findAccount, { email }, systemScope)
  const added = account?.id
    ? await linkMember(request, { ...arrival, tenant_id, email, user_id: account.id })
    : await addNewcomer(app, request, { ...arrival, tenant_id, email, user_id: uuidv7() })
  if (added) app.mail.wake()
  // not added: another request of the same person was faster, or they may not come in
  const found = await findKnown(request, arrival)
  if (!found) throw identityNotLinked()
  return found
}

async function hasAccount(request: FastifyRequest, email: string): Promise<boolean> {
  const [account] = await request.tenantQuery(findAccount, { email }, systemScope)
  return Boolean(account?.id)
}

/** Whether the agency's own provider may say that an address is somebody's: of a proven domain, or where it is demanded. */
export async function mayVouch(
  request: FastifyRequest,
  { tenant_id, ...vouched }: { tenant_id: string; provider: string; email: string }
): Promise<boolean> {
  const [verdict] = await request.tenantQuery(mayVouchFor, vouched, { tenant_id, user_id: null })
  return verdict?.allowed ?? false
}

async function findKnown(request: FastifyRequest, { provider, profile, tenant_id }: Arrival) {
  const { issuer, subject } = profile
  const scope = { tenant_id, user_id: null }
  const [identity] = await request.tenantQuery(findUserIdentity, { own: provider.own, issuer, subject }, scope)
  if (!identity) return undefined
  const { id: identity_id, user_id, password_version, disabled_at } = identity
  const lastUsed = { tenant_id: null, user_id }
  const tenantId = tenant_id ?? (await request.tenantQuery(findTenantLastUsed, {}, lastUsed))[0]?.id
  if (tenantId === undefined || disabled_at) throw notAMember()
  const person = { tenant_id: tenantId, user_id }
  const [member] = await request.tenantQuery(readUser, person, person)
  if (!member) throw notAMember()
  return { ...person, password_version, identity_id }
}

type Addition = { provider: Provider; profile: Profile; tenant_id: string; email: string; user_id: string }

/** Links an identity of the agency's own provider to a member of the agency, and tells them by mail. */
function linkMember(request: FastifyRequest, addition: Addition): Promise<boolean> {
  const { email, user_id, tenant_id } = addition
  return request.withTenant(
    async (trx) => {
      if (!(await isLinkable(trx, { email, provider: addition.provider.key })) || !(await link(trx, addition)))
        return false
      const detail = { provider: addition.provider.key, by: 'address' }
      await recordAudit(trx, { action: 'user.identity_linked', target_id: user_id, detail })
      await queueNotice(trx, 'identity_linked')
      return true
    },
    { tenant_id, user_id }
  )
}

/** The name of a new account: that at the provider, else the first part of the address. */
export const newcomerName = (profile: Profile, email: string): string =>
  trimName(profile.name ?? '') || (email.split('@', 1)[0] as string)

/** Creates an account without a password, for somebody whose agency vouches for their address. */
async function addNewcomer(app: FastifyInstance, request: FastifyRequest, addition: Addition): Promise<boolean> {
  const { email, user_id, tenant_id, provider, profile } = addition
  const name = newcomerName(profile, email)
  const token_seconds = revocationSeconds(app.config)
  return request.withTenant(
    async (trx) => {
      const role = await findNewcomerRole(trx, { id: provider.key, email })
      if (role === undefined) return false
      const person = { id: user_id, email, name, password_hash: null, pepper_id: null }
      if (!(await insertUser(trx, { ...person, email_verified_at: new Date() }))) return false
      await insertMember(trx, user_id, role)
      await publishMember(trx, user_id, role, token_seconds)
      // rolls the account back
      if (!(await link(trx, addition))) throw identityTaken()
      await recordAudit(trx, { action: 'member.added', target_id: user_id, detail: { role, provider: provider.key } })
      return true
    },
    { tenant_id, user_id }
  )
}

async function link(trx: TenantTransaction, { provider, profile, email }: Addition): Promise<boolean> {
  const { issuer, subject } = profile
  const identity = { id: uuidv7(), provider: provider.key, own: provider.own, issuer, subject, email }
  return (await linkIdentity(trx, identity)) === 'linked'
}
