const token = "[!#$%&'*+.^_`|~0-9A-Za-z-]+"
const quoted = '"(?:[\\t !#-\\[\\]-~]|\\\\[\\t -~])*"'

/**
 * The grammar of a media type (RFC 9110, 8.3.1) in ASCII. A matching text is safe in a header. No two adjacent parts of
 * the pattern match the same character, so matching takes linear time.
 */
export const mediaTypePattern = `^${token}/${token}(?:[ \\t]*;[ \\t]*${token}=(?:${token}|${quoted}))*$`

const json = 'application/json'
/** JSON merge patch (RFC 7396). */
export const mergePatch = 'application/merge-patch+json'

/** The media types that a route accepts as a body; undefined for a route without a body. */
export function acceptedTypes(route: {
  method: string | string[]
  schema?: { body?: unknown }
  config?: { receives?: { type: string; anyType?: boolean } }
}): string[] | undefined {
  const { receives } = route.config ?? {}
  if (receives) return [receives.anyType ? '*/*' : receives.type]
  if (!route.schema?.body) return undefined
  return route.method === 'PATCH' ? [json, mergePatch] : [json]
}
