import { forbidden, lastOwner, notFound, type Problem, sessionRevoked } from '../http/problems.ts'

const aboveYours = () => forbidden({ detail: 'admins change people up to admin, and only owners change owners' })
/** The problem of each outcome that the queries return. */
const refusals = { forbidden: aboveYours, last_owner: lastOwner, not_found: notFound, gone: sessionRevoked }

/** Throws the problem of a refused change of a member. */
export function requireDone(outcome: 'done' | keyof typeof refusals): void {
  const refusal: (() => Problem) | undefined = outcome === 'done' ? undefined : refusals[outcome]
  if (refusal) throw refusal()
}
