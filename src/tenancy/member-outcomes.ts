import { forbidden, lastOwner, notFound, type Problem, sessionRevoked } from '../http/problems.ts'

const refusals = { forbidden, last_owner: lastOwner, not_found: notFound, gone: sessionRevoked }

/** Throws what an act on a member was refused for. */
export function requireDone(outcome: 'done' | keyof typeof refusals): void {
  const refusal: (() => Problem) | undefined = outcome === 'done' ? undefined : refusals[outcome]
  if (refusal) throw refusal()
}
