/**
 * The ETag of a person. It changes exactly when the person or the membership does, and differs between the person's
 * tenants.
 */
export function userTag(user: { tenant_id: string; version: number; membership_version: number }): string {
  return `"${user.version}.${user.membership_version}-${user.tenant_id.slice(-12)}"`
}

type TenantState = { id: string; version: number; members: number; storage_bytes: number }

/** The ETag of a tenant: its version and id, then its counts of members and of stored bytes. */
export function tenantTag({ id, version, members, storage_bytes }: TenantState): string {
  return `"${tenantVersion({ id, version })}-${members}-${storage_bytes}"`
}

/** The part of a tenant's ETag that changes only when the tenant's own row does. */
export const tenantVersion = ({ id, version }: { id: string; version: number }) => `${version}-${id.slice(-12)}`

/**
 * Tells whether If-None-Match or If-Match names the tag: `*`, or a list of strong or weak tags (RFC 9110, 8.8.3).
 *
 * RFC 9110 asks for a strong comparison of If-Match. But a proxy that compresses replies makes their tags weak, and
 * behind it every conditional change would be refused. Our tags change with every change of the resource, so a weak
 * comparison is safe.
 */
export function matchesTag(header: string, tag: string): boolean {
  if (header.trim() === '*') return true
  return header.split(',').some((candidate) => {
    const trimmed = candidate.trim()
    return trimmed === tag || trimmed === `W/${tag}`
  })
}
