type TenantState = { id: string; version: number; members: number; storage_bytes: number }

/** The tag of a tenant: the first part changes with what can be written, the others with what is counted. */
export function tenantTag({ id, version, members, storage_bytes }: TenantState): string {
  return `"${tenantVersion({ id, version })}-${members}-${storage_bytes}"`
}

/** The part of the tag that changes with the tenant's own row. */
export const tenantVersion = ({ id, version }: { id: string; version: number }) => `${version}-${id.slice(-12)}`

/**
 * Whether If-None-Match or If-Match names the tag: `*`, or a list of tags (RFC 9110, 8.8.3), `W/` or not.
 *
 * RFC 9110 wants If-Match compared strongly. A proxy that compresses replies makes tags weak, though, and every conditional change
 * behind it would be refused for ever. Our tags change with each change of what they stand for, so a weak one is as good.
 */
export function matchesTag(header: string, tag: string): boolean {
  if (header.trim() === '*') return true
  return header.split(',').some((candidate) => {
    const trimmed = candidate.trim()
    return trimmed === tag || trimmed === `W/${tag}`
  })
}
