import { createCipheriv, createDecipheriv, type KeyObject, randomBytes } from 'node:crypto'
import { createKeyRing, deriveKey } from '../keys.ts'
import { uuidToBytes } from '../uuids.ts'

const algorithm = 'aes-256-gcm'
const sizes = { nonce: 12, tag: 16 }

/** An encrypted secret as it is stored, with the id of its key. */
export type SealedSecret = { secret: Buffer; key_id: string }

/** What a key is for. The name is part of the derivation, so it never changes. */
export type SecretPurpose = 'second factor' | 'identity provider' | 'webhook'
export type StoredSecrets = ReturnType<typeof createStoredSecrets>

/**
 * Encrypts secrets that the server must be able to read again (AES-256-GCM), so that a copy of the database is not enough
 * to use them. A sealed secret opens only for the owner whom it was sealed for: a person, a provider or a webhook.
 *
 * The keys are derived from the password peppers, which stay configured for as long as something stored needs them. A
 * token secret would not do, because it may have to be removed at once, and everything that is stored would be lost.
 */
export function createStoredSecrets(peppers: readonly string[], purpose: SecretPurpose) {
  const ring = createKeyRing(peppers, purpose)
  const keys = new Map<string, KeyObject>(
    [...ring.byId.values()].map(({ id, secret }) => [id, deriveKey(secret, purpose)])
  )

  return {
    /** The id of the key that seals. */
    first: ring.first.id,
    has: (keyId: string): boolean => keys.has(keyId),
    seal(ownerId: string, secret: Uint8Array): SealedSecret {
      const nonce = randomBytes(sizes.nonce)
      const cipher = createCipheriv(algorithm, keys.get(ring.first.id) as KeyObject, nonce)
      cipher.setAAD(uuidToBytes(ownerId))
      const content = Buffer.concat([cipher.update(secret), cipher.final()])
      return { secret: Buffer.concat([nonce, cipher.getAuthTag(), content]), key_id: ring.first.id }
    },
    /** Undefined when the key is not configured, or the bytes were not sealed for this owner. */
    open(ownerId: string, { secret, key_id }: SealedSecret): Buffer | undefined {
      const key = keys.get(key_id)
      const start = sizes.nonce + sizes.tag
      if (!key || secret.length <= start) return undefined
      const decipher = createDecipheriv(algorithm, key, secret.subarray(0, sizes.nonce), { authTagLength: sizes.tag })
      decipher.setAAD(uuidToBytes(ownerId)).setAuthTag(secret.subarray(sizes.nonce, start))
      try {
        return Buffer.concat([decipher.update(secret.subarray(start)), decipher.final()])
      } catch {
        return undefined
      }
    }
  }
}
