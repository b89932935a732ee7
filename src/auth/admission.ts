import {
  forbidden,
  type Problem,
  tenantMismatch,
  tenantNotFound,
  tenantSuspended,
  unauthenticated
} from '../http/problems.ts'
import type { AccessClaims } from './claims.ts'
import { type Access, allows } from './roles.ts'

/** A bearer token that was presented: its claims, where its signature is good, and why it does not count, where it does not. */
export type Bearer = { claims: AccessClaims; problem: Problem | undefined } | { claims: undefined; problem: Problem }

/** What a route says of itself: who may call it, and whether it answers on `any` host, or on that of a `suspended` tenant. */
export type Entrance = { access: Access; host?: 'any' | 'suspended' }

/** What the hooks have found out about a request. */
export type Facts = {
  /** The request can be read in two ways: several Host headers, say. */
  malformed: Problem | undefined
  /** Its sender is over a limit. */
  overLimit: Problem | undefined
  /** Its host is not served. */
  hostProblem: Problem | undefined
  /** The tenant of its host; undefined on the general host. */
  tenant: { id: string; status: 'active' | 'suspended' } | undefined
  /** What came as its bearer token; undefined where none did. */
  bearer: Bearer | undefined
}

/** What is to happen to a request. One of `refusal` and `caller` at most is there; a public route has neither. */
export type Decision = {
  refusal?: Problem
  /** Who is calling, with a token that is good here. */
  caller?: AccessClaims
  /** Somebody whose token is good and who asked for what is not theirs: an attempt for the audit log. */
  attempt?: AccessClaims
  /** What every refusal of this request, also a later one, is shown as, so that a suspended tenant's host looks like none. */
  disguise?: Problem
}

/**
 * Decides whether a request may reach its handler. This is the only place where that is decided, and the order of the questions
 * is the order in which they stand here:
 *
 * 1. `malformed_request`: can the request be read in one way only?
 * 2. `rate_limited`, `overloaded`: has its sender quota left?
 * 3. `unknown_host`, `tenant_not_found`, `unavailable`: is its host served? Not asked where the route answers on any host.
 * 4. `tenant_suspended` to members of a suspended tenant, `tenant_not_found` to everybody else on its host.
 * 5. `unauthenticated`, `invalid_token`, `tenant_mismatch`, `token_expired`, `session_revoked`: is the token good, here? Host and
 *    token are compared before anything else about the token is told.
 * 6. `forbidden`: is the caller's role enough?
 *
 * Questions 5 and 6 are not asked on public routes.
 */
export function decide({ access, host }: Entrance, facts: Facts): Decision {
  const { malformed, overLimit, hostProblem, tenant } = facts
  if (malformed) return { refusal: malformed }
  if (overLimit) return { refusal: overLimit }
  if (hostProblem && host !== 'any') return { refusal: hostProblem }
  if (tenant?.status === 'suspended' && host !== 'any') {
    const disguise = disguiseOf(facts)
    // the routes that answer there (sign-out, refresh) are public
    return host === 'suspended' ? { disguise } : { refusal: disguise, disguise }
  }
  if (access === 'public') return {}
  // for a listener of its own; on the public one nobody is internal
  if (access === 'internal') return { refusal: forbidden() }
  const decision = authenticate(facts)
  const { caller } = decision
  return caller && !allows(access, caller.role) ? { refusal: forbidden(), attempt: caller } : decision
}

function authenticate({ bearer, tenant }: Facts): Decision {
  if (!bearer) return { refusal: unauthenticated() }
  const { claims, problem } = bearer
  if (!claims) return { refusal: problem }
  if (tenant && tenant.id !== claims.tenant_id) {
    // a token that no longer counts is nobody's attempt
    return problem ? { refusal: tenantMismatch() } : { refusal: tenantMismatch(), attempt: claims }
  }
  if (problem) return { refusal: problem }
  // also where this process has not read the revocation that came with the suspension
  return tenant?.status === 'suspended' ? { refusal: tenantSuspended() } : { caller: claims }
}

/** A suspended tenant exists for its members only. That it exists must not show in the audit log of anybody else either. */
function disguiseOf(facts: Facts): Problem {
  const { refusal } = authenticate(facts)
  return refusal?.kind.code === 'tenant_suspended' ? refusal : tenantNotFound()
}
