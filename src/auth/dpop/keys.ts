import { createPublicKey, hash, type KeyObject } from 'node:crypto'

/** A public key that signs proofs. The thumbprint (RFC 7638, SHA-256 in base64url) names it. */
export type ProofKey = { thumbprint: string; key: KeyObject }

/** 32 bytes in base64url, in their one spelling. */
const coordinate = /^[A-Za-z0-9_-]{42}[AEIMQUYcgkosw048]$/
/** The members of private and of symmetric keys of any type (RFC 7518, 6). */
const secretMembers = ['d', 'p', 'q', 'dp', 'dq', 'qi', 'oth', 'k']

/**
 * Reads the public key of a proof. Undefined for anything but a point of the curve P-256: a key of another type would be a
 * way to another algorithm, and a private key must not be sent.
 */
export function readProofKey(jwk: unknown): ProofKey | undefined {
  if (typeof jwk !== 'object' || jwk === null) return undefined
  const { kty, crv, x, y } = jwk as Record<string, unknown>
  if (kty !== 'EC' || crv !== 'P-256' || typeof x !== 'string' || typeof y !== 'string') return undefined
  if (!coordinate.test(x) || !coordinate.test(y) || secretMembers.some((name) => name in jwk)) return undefined
  try {
    const key = createPublicKey({ format: 'jwk', key: { kty, crv, x, y } })
    return { thumbprint: hash('sha256', `{"crv":"P-256","kty":"EC","x":"${x}","y":"${y}"}`, 'base64url'), key }
  } catch {
    // the point is not on the curve
    return undefined
  }
}
