/**
 * The roles of a tenant, highest first, with their permissions. A role has the permissions of all roles below it.
 *
 * The guards, `x-authz` in the OpenAPI document and the page on roles are derived from this table and from the `access`
 * of each route.
 */
export const roleTable = {
  owner: { rank: 4, may: 'transfer, export and delete the agency; make and remove owners' },
  admin: { rank: 3, may: 'change the agency; invite, change and remove people up to admin; read the audit log' },
  member: { rank: 2, may: 'work: create, change and delete what belongs to the agency' },
  viewer: { rank: 1, may: 'read the agency, its people and what belongs to it' }
} as const

export type Role = keyof typeof roleTable
export const roles = Object.keys(roleTable) as Role[]

/** The roles that an invitation can give. An owner is never invited: an owner promotes a member. */
export const invitableRoles = ['admin', 'member', 'viewer'] as const
export type InvitableRole = (typeof invitableRoles)[number]

/**
 * The callers a route allows.
 *
 * `public`: everybody; a bearer token is ignored. `user`: every signed-in person, in whichever tenant. A role: persons
 * with that role or a higher one in the token's tenant. `internal`: the route does not exist on the public listener.
 */
export type Access = 'public' | 'user' | 'internal' | Role

/** Whether a role may call a route with this access. */
export function allows(access: Role | 'user', role: Role): boolean {
  return access === 'user' || roleTable[role].rank >= roleTable[access].rank
}

/** Whether the actor may grant, change or remove the target role: only roles up to their own. */
export function mayManage(actor: Role, target: Role): boolean {
  return roleTable[actor].rank >= roleTable[target].rank
}
