import { createHash, createSecretKey, hkdfSync, type KeyObject } from 'node:crypto'

/**
 * One secret of a rotation list, with its public id.
 *
 * `id` names the key in tokens and hashes. It does not reveal the secret: it is 66 bits of a digest, and the secret has
 * at least 256 random bits.
 */
export type Key = { id: string; secret: string }

/** The keys of a rotation list, in its order. The first key signs, and all keys verify. */
export type KeyRing = { first: Key; byId: ReadonlyMap<string, Key> }

export function createKeyRing(secrets: readonly string[], purpose: string): KeyRing {
  const keys = secrets.map((secret) => ({ id: keyId(secret, purpose), secret }))
  const [first] = keys
  if (!first) throw new TypeError('a key ring needs a secret')
  return { first, byId: new Map(keys.map((key) => [key.id, key])) }
}

function keyId(secret: string, purpose: string): string {
  return createHash('sha256').update(`aggios ${purpose} key id\0`).update(secret).digest('base64url').slice(0, 11)
}

/**
 * Derives a key of 32 bytes for one purpose (HKDF-SHA256). Neither the secret nor a key for another purpose can be
 * computed from it.
 *
 * The result is a KeyObject, because Node would convert a buffer into one for every HMAC, at six times the cost of the
 * HMAC.
 */
export function deriveKey(secret: string, purpose: string): KeyObject {
  return createSecretKey(Buffer.from(hkdfSync('sha256', secret, '', `aggios ${purpose}`, 32)))
}
