import { forbidden, type Problem } from '../http/problems.ts'
import { type Role, roles } from './roles.ts'

/** Made once for each role, because a flood of refusals must stay cheap. */
const refusals = new Map<Role, Problem>(
  roles.map((role) => [
    role,
    forbidden({ detail: `this takes the role ${role}${role === 'owner' ? '' : ' or a higher one'}` })
  ])
)

/** The `forbidden` for callers whose role is below this one, which it names. */
export const roleTooLow = (needed: Role): Problem => refusals.get(needed) as Problem
