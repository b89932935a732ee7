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
