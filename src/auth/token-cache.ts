import { LRUCache } from 'lru-cache'

/** An HS256 signature in base64url. */
const signatureLength = 43
const scheme = /^(?:bearer|dpop) $/i
const presented = /^(?:bearer|dpop) ([A-Za-z0-9._~+/-]+=*)$/i
const upperD = 'D'.charCodeAt(0)
const lowerD = 'd'.charCodeAt(0)

/** The authentication scheme of a token: alone (RFC 6750), or with a proof of a key (RFC 9449). */
export type TokenScheme = 'Bearer' | 'DPoP'

/** The scheme of an Authorization header that has a token. */
export function schemeOf(authorization: string): TokenScheme {
  const first = authorization.charCodeAt(0)
  return first === upperD || first === lowerD ? 'DPoP' : 'Bearer'
}

/** The token in an Authorization header of either scheme. */
export function tokenIn(authorization: string): string | undefined {
  return presented.exec(authorization)?.[1]
}

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
      if (!entry) return undefined
      const { length } = schemeOf(authorization)
      if (authorization.slice(length + 1) !== entry.token) return undefined
      return scheme.test(authorization.slice(0, length + 1)) ? entry.known : undefined
    },
    set(token: string, known: Known): void {
      entries.set(signatureOf(token), { token, known })
    },
    clear: () => entries.clear(),
    size: () => entries.size
  }
}
