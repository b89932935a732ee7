import { createHash, createSecretKey, hkdfSync, type KeyObject } from 'node:crypto'

/**
 * One secret of a rotation list under its public name.
 *
 * `id` names the key in tokens and hashes and says nothing about it: 64 bits of a digest of at least 256 random ones.
 */
export type Key = { id: string; secret: string }

/** The secrets of a list, in order: the first signs, all verify. */
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
 * A key of 32 bytes for one purpose, from which neither the secret nor a key for another purpose can be found. As an object of
 * Node's: bytes it would make into one for every HMAC, at six times the cost of the HMAC.
 */
export function deriveKey(secret: string, purpose: string): KeyObject {
  return createSecretKey(Buffer.from(hkdfSync('sha256', secret, '', `aggios ${purpose}`, 32)))
}
