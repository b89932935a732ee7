import { hash, verify } from 'node:crypto'
import { LRUCache } from 'lru-cache'
import { type ProofKey, readProofKey } from './keys.ts'
import type { ProofNonces } from './nonces.ts'

/** The one algorithm: ECDSA on P-256, which the secure hardware of phones and all browsers have. */
export const proofAlgorithm = 'ES256'

/** The request for which a proof must have been made. */
export type ProvenRequest = {
  method: string
  /** Scheme and host under which the client has reached this server. */
  origin: string
  /** The path as it was sent. What follows a `?` is left out of account. */
  url: string
  /** The access token that the request presents. */
  token: string | undefined
}

/** `id` names the proof among all proofs of all keys, and `second` is when its nonce was issued. */
export type Proof = { key_thumbprint: string; id: string; second: number }
/**
 * What is wrong with a proof, for the developer of the client. `nonce`: it needs a nonce, or a newer one. `key`: another key
 * has signed.
 */
export type ProofFault = { fault: 'nonce' } | { fault: 'key' | 'invalid'; detail: string }

export type ProofReader = {
  /** Checks everything but whether the proof was used before. With `key_thumbprint` only that key may have signed. */
  read(header: string, request: ProvenRequest, key_thumbprint?: string): Proof | ProofFault
}

/** The header of a proof with a key takes some 250 characters. */
const shape = /^([A-Za-z0-9_-]{1,1024})\.([A-Za-z0-9_-]{1,3072})\.([A-Za-z0-9_-]{86})$/
const maxProofLength = 4096
export const maxIdLength = 128

const invalid = (detail: string): ProofFault => ({ fault: 'invalid', detail })

/**
 * Reads proofs of possession (DPoP, RFC 9449, 4.3).
 *
 * Checks that cost nothing come first, and the signature last. `keys` is how many keys are remembered: all proofs of one
 * key begin with the same header, and reading a key costs as much as checking a signature.
 *
 * The time in a proof (`iat`) decides nothing, because the nonce says how old it is at most.
 */
export function createProofReader(nonces: ProofNonces, { keys }: { keys: number }): ProofReader {
  const known = new LRUCache<string, ProofKey>({ max: keys })

  return {
    read(header, request, key_thumbprint) {
      const parts = header.length <= maxProofLength ? shape.exec(header) : null
      if (!parts) return invalid('the DPoP header must be one JWT')
      const [, head = '', body = '', signature = ''] = parts
      const key = known.get(head) ?? readHead(head)
      if (!key) return invalid('the header must have typ dpop+jwt, alg ES256 and a public key of P-256 as jwk')
      if (key_thumbprint !== undefined && key.thumbprint !== key_thumbprint) {
        return { fault: 'key', detail: 'another key has signed than the one that the tokens are bound to' }
      }
      const claims = parse(body)
      const detail = claims ? claimsFault(claims, request) : 'the content must be a JSON object'
      if (!claims || detail !== undefined) return invalid(detail ?? '')
      const second = typeof claims.nonce === 'string' ? nonces.read(claims.nonce) : undefined
      if (second === undefined) return { fault: 'nonce' }
      const isSigned = verify(
        'sha256',
        Buffer.from(`${head}.${body}`),
        { key: key.key, dsaEncoding: 'ieee-p1363' },
        Buffer.from(signature, 'base64url')
      )
      if (!isSigned) return invalid('the signature is wrong')
      // only keys that have signed, so that nobody can fill the memory with keys of others
      known.set(head, key)
      // not of the signature: one of ECDSA can be changed to another that is valid as well
      const id = hash('sha256', `${key.thumbprint}.${claims.jti}`, 'base64url').slice(0, 22)
      return { key_thumbprint: key.thumbprint, id, second }
    }
  }
}

type Json = Record<string, unknown>

function parse(part: string): Json | undefined {
  try {
    const value: unknown = JSON.parse(Buffer.from(part, 'base64url').toString())
    return typeof value === 'object' && value !== null && !Array.isArray(value) ? (value as Json) : undefined
  } catch {
    return undefined
  }
}

function readHead(head: string): ProofKey | undefined {
  const { typ, alg, jwk, crit } = parse(head) ?? {}
  if (typ !== 'dpop+jwt' || alg !== proofAlgorithm || crit !== undefined) return undefined
  return readProofKey(jwk)
}

/** What is wrong with the claims. Undefined when nothing is. */
function claimsFault({ jti, htm, htu, iat, ath }: Json, { method, origin, url, token }: ProvenRequest) {
  if (typeof jti !== 'string' || jti.length === 0 || jti.length > maxIdLength) {
    return `jti must be a text of 1 to ${maxIdLength} characters`
  }
  if (!Number.isSafeInteger(iat) || (iat as number) < 0) return 'iat must be a time in seconds'
  if (htm !== method) return 'htm must be the method of the request'
  if (typeof htu !== 'string' || !isSameUrl(htu, origin, url)) return 'htu must be the address of the request'
  if (token !== undefined && ath !== hash('sha256', token, 'base64url'))
    return 'ath must be the hash of the access token'
  return undefined
}

/** Compares two addresses after normalization (RFC 3986, 6.2), without query and fragment. */
function isSameUrl(given: string, origin: string, url: string): boolean {
  const end = url.indexOf('?')
  const expected = origin + (end === -1 ? url : url.slice(0, end))
  if (given === expected) return true
  if (!URL.canParse(given) || !URL.canParse(expected)) return false
  const [a, b] = [new URL(given), new URL(expected)]
  const isPlain = a.username === '' && a.password === ''
  return isPlain && a.protocol === b.protocol && a.host === b.host && a.pathname === b.pathname
}
