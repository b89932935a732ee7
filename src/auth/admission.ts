import {
  forbidden,
  type Problem,
  tenantMismatch,
  tenantNotFound,
  tenantSuspended,
  unauthenticated
} from '../http/problems.ts'
import type { KeyReach } from './api-keys/key-reach.ts'
import type { Permission } from './api-keys/permissions.ts'
import type { AccessClaims } from './claims.ts'
import { type Access, allows, type Role, roles } from './roles.ts'

/** A presented access token: its claims when the signature is valid, and the problem when the token is refused. */
export type Bearer = { claims: AccessClaims; problem: Problem | undefined } | { claims: undefined; problem: Problem }

/**
 * A route's declaration: who may call it, which permission an API key needs for it (`never`: no key may call it), and whether it
 * answers on `any` host, or on the host of a `suspended` tenant.
 */
export type Entrance = { access: Access; permission?: Permission | 'never'; host?: 'any' | 'suspended' }

/** The facts that the hooks have collected about a request. */
export type Facts = {
  /** The problem of an ambiguous request, for example with several Host headers. */
  malformed: Problem | undefined
  /** The problem when the sender is over a limit. */
  overLimit: Problem | undefined
  /** The problem when the host is not served. */
  hostProblem: Problem | undefined
  /** The tenant of the host. Undefined on the general host. */
  tenant: { id: string; status: 'active' | 'suspended' } | undefined
  /** The bearer token. Undefined when the request has none. */
  bearer: Bearer | undefined
  /** The address of the client. Undefined when the connection is gone. */
  readonly address?: string | undefined
}

/** The decision about a request. It has `refusal` or `caller`, or neither on a public route. */
export type Decision = {
  refusal?: Problem
  /** The claims of the caller, whose token is valid on this host. */
  caller?: AccessClaims
  /** The claims of a caller with a valid token who lacks permission: an attempt for the audit log. */
  attempt?: AccessClaims
  /**
   * The problem as which every refusal of this request is shown, also a later one. So a suspended tenant's host looks
   * unknown.
   */
  disguise?: Problem
}

/** Made once for each role, because a flood of refusals must stay cheap. */
const refusals = new Map<Role, Problem>(
  roles.map((role) => [
    role,
    forbidden({ detail: `this takes the role ${role}${role === 'owner' ? '' : ' or a higher one'}` })
  ])
)

/** The `forbidden` for callers whose role is below this one, which it names. */
export const roleTooLow = (needed: Role): Problem => refusals.get(needed) as Problem

/**
 * Decides whether a request may reach its handler. No other place decides this. The checks run in this order:
 *
 * 1. `malformed_request`: is the request unambiguous?
 * 2. `rate_limited`, `overloaded`: has the sender quota left?
 * 3. `unknown_host`, `tenant_not_found`, `unavailable`: is the host served? Skipped when the route answers on any host.
 * 4. `tenant_suspended` for members of a suspended tenant, `tenant_not_found` for all others on its host.
 * 5. `unauthenticated`, `invalid_token`, `tenant_mismatch`, `token_expired`, `session_revoked`, `invalid_dpop_proof`,
 *    `use_dpop_nonce`: is the token valid on this host, and has it the proof that it needs? Host and token are compared
 *    before any other problem of the token is shown.
 * 6. `forbidden`: is the caller's role sufficient, and for an API key also the address and its permissions?
 *
 * Checks 5 and 6 are skipped on public routes.
 */
export function decide(entrance: Entrance, facts: Facts): Decision {
  const { access, host } = entrance
  const { malformed, overLimit, hostProblem, tenant } = facts
  if (malformed) return { refusal: malformed }
  if (overLimit) return { refusal: overLimit }
  if (hostProblem && host !== 'any') return { refusal: hostProblem }
  if (tenant?.status === 'suspended' && host !== 'any') {
    const disguise = disguiseOf(facts)
    // the routes that answer on such a host (sign-out, refresh) are public
    return host === 'suspended' ? { disguise } : { refusal: disguise, disguise }
  }
  if (access === 'public') return {}
  // internal routes exist on the internal listener only; the public one refuses them
  if (access === 'internal') return { refusal: forbidden() }
  const decision = authenticate(facts)
  const { caller } = decision
  if (!caller) return decision
  const refusal = caller.key && findKeyRefusal(entrance, caller.key, facts)
  if (refusal) return { refusal, attempt: caller }
  if (access === 'user' || allows(access, caller.role)) return decision
  return { refusal: roleTooLow(access), attempt: caller }
}

/** Why an API key may not call a route, whatever its role is. A route for persons of any agency is for no key. */
function findKeyRefusal(
  { access, permission = 'never' }: Entrance,
  { allowsFrom, permissions }: KeyReach,
  facts: Facts
): Problem | undefined {
  if (allowsFrom && !allowsFrom(facts.address ?? '')) {
    return forbidden({ detail: 'this API key may not be used from this address' })
  }
  if (access === 'user' || permission === 'never') return forbidden({ detail: 'no API key may do this' })
  return permissions.has(permission)
    ? undefined
    : forbidden({ detail: `this API key lacks the permission ${permission}` })
}

function authenticate({ bearer, tenant }: Facts): Decision {
  if (!bearer) return { refusal: unauthenticated() }
  const { claims, problem } = bearer
  if (!claims) return { refusal: problem }
  if (tenant && tenant.id !== claims.tenant_id) {
    // a token that is expired or revoked is no attempt of its owner
    return problem ? { refusal: tenantMismatch() } : { refusal: tenantMismatch(), attempt: claims }
  }
  if (problem) return { refusal: problem }
  // also when this process has not read the revocation of the suspension yet
  return tenant?.status === 'suspended' ? { refusal: tenantSuspended() } : { caller: claims }
}

/** What is said of a member's token on the host of a suspended tenant. A proof is a matter of the client, not of the person. */
const memberCodes: ReadonlySet<string> = new Set(['tenant_suspended', 'invalid_dpop_proof', 'use_dpop_nonce'])

/** Only members of a suspended tenant may learn that it exists. No other tenant's audit log may show it either. */
function disguiseOf(facts: Facts): Problem {
  const { refusal } = authenticate(facts)
  return refusal && memberCodes.has(refusal.kind.code) ? tenantSuspended() : tenantNotFound()
}
