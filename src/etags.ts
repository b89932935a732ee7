type TenantState = { id: string; version: number; members: number; storage_bytes: number }

/** The tag of a tenant: the first part changes with what can be written, the others with what is counted. */
export function tenantTag({ id, version, members, storage_bytes }: TenantState): string {
  return `"${tenantVersion({ id, version })}-${members}-${storage_bytes}"`
}

/** The part of the tag that changes with the tenant's own row. */
export const tenantVersion = ({ id, version }: { id: string; version: number }) => `${version}-${id.slice(-12)}`

/**
 * Whether a condition header names the tag: `*`, or a list of tags (RFC 9110, 8.8.3).
 *
 * If-None-Match compares weakly (`W/` makes no difference); If-Match compares strongly, so a weak tag never matches there.
 */
export function matchesTag(header: string, tag: string, comparison: 'weak' | 'strong'): boolean {
  if (header.trim() === '*') return true
  return header.split(',').some((candidate) => {
    const trimmed = candidate.trim()
    return trimmed === tag || (comparison === 'weak' && trimmed === `W/${tag}`)
  })
}
