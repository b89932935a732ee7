/** The roles that a key can have. A key is never an owner. */
export const keyRoles = ['admin', 'member', 'viewer'] as const
export type KeyRole = (typeof keyRoles)[number]

/**
 * What an API key may be allowed, with the lowest role that a key needs for it. A route names the permission that a key needs,
 * beside its `access`.
 *
 * Every permission of this table ends up in the OpenAPI document and on the page about keys.
 */
export const permissionTable = {
  'tenant:read': { role: 'viewer', may: 'read the agency' },
  'tenant:write': {
    role: 'admin',
    may: 'change the name, the logo and the settings of the agency, but for `allowed_origins` and `mfa_required_from`'
  },
  'members:read': { role: 'viewer', may: 'read who is in the agency' },
  'members:write': { role: 'admin', may: 'change roles up to admin, sign people out and remove them' },
  'invitations:read': { role: 'admin', may: 'read invitations' },
  'invitations:write': { role: 'admin', may: 'invite people, and take invitations back' },
  'files:read': { role: 'viewer', may: 'list and download files' },
  'files:write': { role: 'member', may: 'upload, change and delete files' },
  'events:read': { role: 'viewer', may: 'follow what happens, as far as its role sees it' },
  'audit:read': { role: 'admin', may: 'read, export and check the audit log' },
  // no key makes an endpoint: it would go on to get events when the key has ended
  'webhooks:read': { role: 'admin', may: 'read webhooks and what was sent to them' },
  'webhooks:replay': { role: 'admin', may: 'have events sent to webhooks again, and test events' }
} as const satisfies Record<string, { role: KeyRole; may: string }>

export type Permission = keyof typeof permissionTable
export const permissions = Object.keys(permissionTable) as Permission[]

export const isPermission = (text: string): text is Permission => Object.hasOwn(permissionTable, text)
