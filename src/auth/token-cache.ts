import { LRUCache } from 'lru-cache'

/** An HS256 signature in base64url. */
const signatureLength = 43
const scheme = /^bearer $/i
const schemeLength = 'Bearer '.length

/**
 * Caches data of verified tokens (LRU). `find` takes the Authorization header as it was received.
 *
 * The cache key is the token's signature, and a hit requires that the whole token is equal. Hashing all 450 characters
 * of a token that has just arrived would take ten times as long as comparing them.
 */
export function createTokenCache<Known extends object>(max: number) {
  const entries = new LRUCache<string, { token: string; known: Known }>({ max })
  const signatureOf = (text: string) => text.slice(-signatureLength)

  return {
    find(authorization: string): Known | undefined {
      const entry = entries.get(signatureOf(authorization))
      // endsWith would take twenty times as long
      if (!entry || authorization.slice(schemeLength) !== entry.token) return undefined
      return scheme.test(authorization.slice(0, schemeLength)) ? entry.known : undefined
    },
    set(token: string, known: Known): void {
      entries.set(signatureOf(token), { token, known })
    },
    size: () => entries.size
  }
}
