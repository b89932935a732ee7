/** The roles of a tenant, highest first, and the words a route may say about who calls it. */
export const roles = ['owner', 'admin', 'member', 'viewer'] as const
export type Role = (typeof roles)[number]

/**
 * Who may call a route.
 *
 * `public`: anybody; a bearer is not looked at. `user`: any signed-in person, whatever the tenant. `internal`: nobody on
 * the public listener. A role: that role or a higher one in the token's tenant.
 */
export type Access = 'public' | 'user' | 'internal' | Role

const rank: Record<Role, number> = { owner: 4, admin: 3, member: 2, viewer: 1 }

/** Whether a role meets what a route asks for. */
export function allows(access: Role | 'user', role: Role): boolean {
  return access === 'user' || rank[role] >= rank[access]
}
