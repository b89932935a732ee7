import { createCipheriv, createDecipheriv, type KeyObject, randomBytes } from 'node:crypto'
import { createKeyRing, deriveKey } from '../keys.ts'
import { uuidToBytes } from '../uuids.ts'

const purpose = 'second factor'
const algorithm = 'aes-256-gcm'
const sizes = { nonce: 12, tag: 16 }

/** An encrypted secret as it is stored, with the id of its key. */
export type SealedSecret = { secret: Buffer; key_id: string }

export type FactorSecrets = ReturnType<typeof createFactorSecrets>

/**
 * Encrypts the secrets of second factors (AES-256-GCM), so that a copy of the database makes no codes. A sealed secret
 * opens only for the person whom it was sealed for.
 *
 * The keys are derived from the password peppers, which stay configured for as long as something stored needs them. A
 * token secret would not do, because it may have to be removed at once, and then nobody's codes would be accepted.
 */
export function createFactorSecrets(peppers: readonly string[]) {
  const ring = createKeyRing(peppers, purpose)
  const keys = new Map<string, KeyObject>(
    [...ring.byId.values()].map(({ id, secret }) => [id, deriveKey(secret, purpose)])
  )

  return {
    /** The id of the key that seals. */
    first: ring.first.id,
    has: (keyId: string): boolean => keys.has(keyId),
    seal(userId: string, secret: Uint8Array): SealedSecret {
      const nonce = randomBytes(sizes.nonce)
      const cipher = createCipheriv(algorithm, keys.get(ring.first.id) as KeyObject, nonce)
      cipher.setAAD(uuidToBytes(userId))
      const content = Buffer.concat([cipher.update(secret), cipher.final()])
      return { secret: Buffer.concat([nonce, cipher.getAuthTag(), content]), key_id: ring.first.id }
    },
    /** Undefined when the key is not configured, or the bytes were not sealed for this person. */
    open(userId: string, { secret, key_id }: SealedSecret): Buffer | undefined {
      const key = keys.get(key_id)
      const start = sizes.nonce + sizes.tag
      if (!key || secret.length <= start) return undefined
      const decipher = createDecipheriv(algorithm, key, secret.subarray(0, sizes.nonce), { authTagLength: sizes.tag })
      decipher.setAAD(uuidToBytes(userId)).setAuthTag(secret.subarray(sizes.nonce, start))
      try {
        return Buffer.concat([decipher.update(secret.subarray(start)), decipher.final()])
      } catch {
        return undefined
      }
    }
  }
}
