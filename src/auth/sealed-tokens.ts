import { createCipheriv, createDecipheriv, type KeyObject, randomBytes } from 'node:crypto'
import { deriveKey, type KeyRing } from '../keys.ts'

const algorithm = 'aes-256-gcm'
const sizes = { keyId: 11, nonce: 12, tag: 16 }
const start = sizes.keyId + sizes.nonce + sizes.tag

export type SealedTokens<Content extends object> = {
  issue(content: Content): string
  /** Returns the content of a token of this server that has not expired, else undefined. */
  open(token: string): Content | undefined
}

/**
 * Issues tokens whose content only this server can read and make (AES-256-GCM, with a key for each purpose), so that
 * nothing has to be stored between two requests and any process can serve the second one.
 *
 * This module only says whether a token is genuine and fresh. The database says whether it was used.
 */
export function createSealedTokens<Content extends object>(
  ring: KeyRing,
  purpose: string,
  seconds: number
): SealedTokens<Content> {
  const keys = new Map<string, KeyObject>(
    [...ring.byId.values()].map(({ id, secret }) => [id, deriveKey(secret, purpose)])
  )

  return {
    issue(content) {
      const { id } = ring.first
      const nonce = randomBytes(sizes.nonce)
      const cipher = createCipheriv(algorithm, keys.get(id) as KeyObject, nonce)
      const end = Math.floor(Date.now() / 1000) + seconds
      const sealed = Buffer.concat([cipher.update(JSON.stringify({ content, end })), cipher.final()])
      return Buffer.concat([Buffer.from(id, 'latin1'), nonce, cipher.getAuthTag(), sealed]).toString('base64url')
    },
    open(token) {
      const bytes = Buffer.from(token, 'base64url')
      // reject other base64 spellings of the same bytes
      if (bytes.length <= start || bytes.toString('base64url') !== token) return undefined
      const key = keys.get(bytes.toString('latin1', 0, sizes.keyId))
      if (!key) return undefined
      const nonceEnd = sizes.keyId + sizes.nonce
      const decipher = createDecipheriv(algorithm, key, bytes.subarray(sizes.keyId, nonceEnd), {
        authTagLength: sizes.tag
      })
      decipher.setAuthTag(bytes.subarray(nonceEnd, start))
      try {
        const text = Buffer.concat([decipher.update(bytes.subarray(start)), decipher.final()]).toString()
        const { content, end } = JSON.parse(text) as { content: Content; end: number }
        return end * 1000 > Date.now() ? content : undefined
      } catch {
        return undefined
      }
    }
  }
}
