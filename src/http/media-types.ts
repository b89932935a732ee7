const token = "[!#$%&'*+.^_`|~0-9A-Za-z-]+"
const quoted = '"(?:[\\t !#-\\[\\]-~]|\\\\[\\t -~])*"'

/**
 * The grammar of a media type (RFC 9110, 8.3.1), in ASCII. What it lets through can stand in a header. No two parts of it can
 * take the same character, so a text is read once.
 */
export const mediaTypePattern = `^${token}/${token}(?:[ \\t]*;[ \\t]*${token}=(?:${token}|${quoted}))*$`

const json = 'application/json'
/** RFC 7396. */
export const mergePatch = 'application/merge-patch+json'

/** What a route reads a body as; undefined where it reads none. */
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
