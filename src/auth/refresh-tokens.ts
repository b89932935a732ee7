import { createHmac, timingSafeEqual } from 'node:crypto'
import { deriveKey, type KeyRing } from '../keys.ts'
import { bytesToUuid, uuidToBytes } from '../uuids.ts'

/**
 * The content of a refresh token: it is the `counter`-th token of one session (`family`) of one tenant. Only the key with
 * this thumbprint may use it, if there is one.
 */
export type RefreshToken = { tenant_id: string; family: string; counter: number; key_thumbprint: string | null }

export type RefreshTokens = {
  issue(token: RefreshToken): string
  /** Returns the content of a token that this server issued, else undefined. */
  verify(token: string): RefreshToken | undefined
}

// key id (11 characters of base64url), tenant, family, counter, HMAC-SHA256; before the HMAC the thumbprint of a key
const sizes = { keyId: 11, uuid: 16, counter: 4, thumbprint: 32, mac: 32 }
const bodySize = sizes.keyId + 2 * sizes.uuid + sizes.counter
/** An older version, which knows no keys, refuses the longer token. */
const boundBodySize = bodySize + sizes.thumbprint
const maxTokenLength = Math.ceil(((boundBodySize + sizes.mac) * 4) / 3)

/**
 * Issues and verifies refresh tokens, which are not stored: an HMAC covers all of their content. So every replica can
 * compute the successor of a token again, and a copy of the database is not enough to forge one.
 *
 * This module only says whether a token is genuine. The session's row says whether it is still the current one.
 */
export function createRefreshTokens(ring: KeyRing): RefreshTokens {
  const macKeys = new Map([...ring.byId.values()].map((key) => [key.id, deriveKey(key.secret, 'refresh token')]))

  function sign(keyId: string, body: Buffer): Buffer | undefined {
    const key = macKeys.get(keyId)
    return key && createHmac('sha256', key).update(body).digest()
  }

  return {
    issue({ tenant_id, family, counter, key_thumbprint }) {
      const body = Buffer.alloc(key_thumbprint === null ? bodySize : boundBodySize)
      body.write(ring.first.id, 0, 'latin1')
      uuidToBytes(tenant_id).copy(body, sizes.keyId)
      uuidToBytes(family).copy(body, sizes.keyId + sizes.uuid)
      body.writeUInt32BE(counter, bodySize - sizes.counter)
      if (key_thumbprint !== null) body.write(key_thumbprint, bodySize, 'base64url')
      return Buffer.concat([body, sign(ring.first.id, body) as Buffer]).toString('base64url')
    },
    verify(token) {
      if (token.length > maxTokenLength) return undefined
      const bytes = Buffer.from(token, 'base64url')
      const size = bytes.length - sizes.mac
      // reject other base64 spellings of the same bytes
      if ((size !== bodySize && size !== boundBodySize) || bytes.toString('base64url') !== token) return undefined
      const body = bytes.subarray(0, size)
      const expected = sign(body.toString('latin1', 0, sizes.keyId), body)
      if (!expected || !timingSafeEqual(expected, bytes.subarray(size))) return undefined
      return {
        tenant_id: bytesToUuid(body, sizes.keyId),
        family: bytesToUuid(body, sizes.keyId + sizes.uuid),
        counter: body.readUInt32BE(bodySize - sizes.counter),
        key_thumbprint: size === bodySize ? null : body.toString('base64url', bodySize)
      }
    }
  }
}
