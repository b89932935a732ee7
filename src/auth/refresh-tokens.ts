import { createHmac, timingSafeEqual } from 'node:crypto'
import { bytesToUuid, uuidToBytes } from '../uuids.ts'
import { deriveKey, type KeyRing } from './keys.ts'

/** What a refresh token says: the `counter`-th token of one session (`family`) of one tenant. */
export type RefreshToken = { tenant_id: string; family: string; counter: number }

export type RefreshTokens = {
  issue(token: RefreshToken): string
  /** The content of a token that this server issued, or undefined for anything else. */
  verify(token: string): RefreshToken | undefined
}

// key id (8 bytes of base64url text as 11 characters), tenant, family, counter, HMAC-SHA256
const sizes = { keyId: 11, uuid: 16, counter: 4, mac: 32 }
const bodySize = sizes.keyId + 2 * sizes.uuid + sizes.counter
const tokenSize = bodySize + sizes.mac
const tokenLength = Math.ceil((tokenSize * 4) / 3)

/**
 * Refresh tokens that need no storage: all content is under one HMAC, so any replica can make the successor of a token
 * again, and a copy of the database forges nothing.
 *
 * Whether a genuine token is still current is the session row's answer, not this module's.
 */
export function createRefreshTokens(ring: KeyRing): RefreshTokens {
  const macKeys = new Map([...ring.byId.values()].map((key) => [key.id, deriveKey(key.secret, 'refresh token')]))

  function sign(keyId: string, body: Buffer): Buffer | undefined {
    const key = macKeys.get(keyId)
    return key && createHmac('sha256', key).update(body).digest()
  }

  return {
    issue({ tenant_id, family, counter }) {
      const body = Buffer.alloc(bodySize)
      body.write(ring.first.id, 0, 'latin1')
      uuidToBytes(tenant_id).copy(body, sizes.keyId)
      uuidToBytes(family).copy(body, sizes.keyId + sizes.uuid)
      body.writeUInt32BE(counter, bodySize - sizes.counter)
      return Buffer.concat([body, sign(ring.first.id, body) as Buffer]).toString('base64url')
    },
    verify(token) {
      if (token.length !== tokenLength) return undefined
      const bytes = Buffer.from(token, 'base64url')
      // base64 has several spellings of the same bytes; only ours is the token
      if (bytes.length !== tokenSize || bytes.toString('base64url') !== token) return undefined
      const body = bytes.subarray(0, bodySize)
      const expected = sign(body.toString('latin1', 0, sizes.keyId), body)
      if (!expected || !timingSafeEqual(expected, bytes.subarray(bodySize))) return undefined
      return {
        tenant_id: bytesToUuid(body, sizes.keyId),
        family: bytesToUuid(body, sizes.keyId + sizes.uuid),
        counter: body.readUInt32BE(bodySize - sizes.counter)
      }
    }
  }
}
