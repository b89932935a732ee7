import { LRUCache } from 'lru-cache'

/** An HS256 signature in base64url. */
const signatureLength = 43
const scheme = /^bearer $/i
const schemeLength = 'Bearer '.length

/**
 * What is known of tokens that were verified, found by the Authorization header as it came.
 *
 * A token counts as known when all of it is the same. Its signature is only where to look: to hash 43 characters instead of 450
 * takes half of the time that a look-up takes.
 */
export function createTokenMemory<Known extends object>(max: number) {
  const entries = new LRUCache<string, { token: string; known: Known }>({ max })
  const placeOf = (text: string) => text.slice(-signatureLength)

  return {
    find(authorization: string): Known | undefined {
      const entry = entries.get(placeOf(authorization))
      if (!entry || authorization.length !== entry.token.length + schemeLength) return undefined
      const isSame = authorization.endsWith(entry.token) && scheme.test(authorization.slice(0, schemeLength))
      return isSame ? entry.known : undefined
    },
    set(token: string, known: Known): void {
      entries.set(placeOf(token), { token, known })
    },
    size: () => entries.size
  }
}
