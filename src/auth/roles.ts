/**
 * The roles of a tenant, highest first, and what each may do. Guards, `x-authz` in the OpenAPI document and the page on roles
 * derive from this table and from the one word at each route.
 *
 * A role may do all that the roles below it may.
 */
export const roleTable = {
  owner: { rank: 4, may: 'transfer, export and delete the agency; make and remove owners' },
  admin: { rank: 3, may: 'change the agency; invite, change and remove people up to admin; read the audit log' },
  member: { rank: 2, may: 'work: create, change and delete what belongs to the agency' },
  viewer: { rank: 1, may: 'read the agency, its people and what belongs to it' }
} as const

export type Role = keyof typeof roleTable
export const roles = Object.keys(roleTable) as Role[]

/** An owner is made by an owner from a member, never by mail. */
export const invitableRoles = ['admin', 'member', 'viewer'] as const
export type InvitableRole = (typeof invitableRoles)[number]

/**
 * Who may call a route.
 *
 * `public`: anybody; a bearer is not looked at. `user`: any signed-in person, whatever the tenant. `internal`: nobody on
 * the public listener. A role: that role or a higher one in the token's tenant.
 */
export type Access = 'public' | 'user' | 'internal' | Role

/** Whether a role meets what a route asks for. */
export function allows(access: Role | 'user', role: Role): boolean {
  return access === 'user' || roleTable[role].rank >= roleTable[access].rank
}

/** Nobody grants, changes or removes a role above their own. */
export function mayManage(actor: Role, target: Role): boolean {
  return roleTable[actor].rank >= roleTable[target].rank
}
