import { problem } from './problem-documents.ts'

/*
 * The part of the catalogue in problems.ts that is about the domains of an agency, and the demand of its provider.
 */

/** Only after the password, or another proof, was right. `provider` is its id. */
export const providerRequired = problem(
  'provider_required',
  403,
  'The agency demands its own provider',
  'Begin a sign-in at `GET /api/v1/auth/oauth/{provider}` with the `provider` of this document.'
)
/** `missing` lists what the agency lacks. */
export const enforcementNotReady = problem(
  'enforcement_not_ready',
  409,
  'The agency cannot demand its provider yet',
  'Bring about what `missing` lists: a domain that is proven (`proven_domain`), an owner who came in through the provider within a day (`owner_sign_in`), and a break-glass owner with a password and a second factor (`break_glass_owner`).'
)
export const lastBreakGlassOwner = problem(
  'last_break_glass_owner',
  409,
  'An agency that demands its provider keeps a break-glass owner',
  'Make another owner with a password and a second factor a break-glass owner, or end the demand, first.'
)
/** `reason` says what DNS answered. */
export const domainNotProven = problem(
  'domain_not_proven',
  409,
  'The record of the domain was not found',
  'Publish `record` of the domain in DNS, wait until the name servers have it, and verify again. `detail` says what was found.'
)
