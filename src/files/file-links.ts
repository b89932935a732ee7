import { createHmac, type KeyObject, timingSafeEqual } from 'node:crypto'
import { deriveKey, type KeyRing } from '../keys.ts'
import { bytesToUuid, uuidToBytes } from '../uuids.ts'

/** The content of a link: it gives access to one file of one tenant until it expires. */
export type FileLink = { tenant_id: string; id: string; expires_at: Date }
/** What the holder of a link may do with the file. */
export type LinkPurpose = 'read' | 'write'

export type FileLinks = {
  issue(purpose: LinkPurpose, link: FileLink): string
  /** Returns the content of a link that was issued for this purpose and has not expired, else undefined. */
  verify(purpose: LinkPurpose, token: string): FileLink | undefined
}

/** The lifetime of a link in seconds. */
export const linkSeconds = 300

// tenant, id, milliseconds of the expiry
const bodySize = 16 + 16 + 6
const macSize = 32

/** Issues and verifies the tokens of links, for clients that can't send a header. A token needs no other sign-in. */
export function createFileLinks(ring: KeyRing): FileLinks {
  const keys = (purpose: LinkPurpose) =>
    [...ring.byId.values()].map(({ secret }) => deriveKey(secret, `file link ${purpose}`))
  const byPurpose = { read: keys('read'), write: keys('write') }
  const sign = (key: KeyObject, body: Buffer) => createHmac('sha256', key).update(body).digest()

  return {
    issue(purpose, { tenant_id, id, expires_at }) {
      const body = Buffer.alloc(bodySize)
      uuidToBytes(tenant_id).copy(body, 0)
      uuidToBytes(id).copy(body, 16)
      body.writeUIntBE(expires_at.getTime(), 32, 6)
      return Buffer.concat([body, sign(byPurpose[purpose][0] as KeyObject, body)]).toString('base64url')
    },
    verify(purpose, token) {
      const bytes = Buffer.from(token, 'base64url')
      if (bytes.length !== bodySize + macSize || bytes.toString('base64url') !== token) return undefined
      const body = bytes.subarray(0, bodySize)
      const genuine = byPurpose[purpose].some((key) => timingSafeEqual(sign(key, body), bytes.subarray(bodySize)))
      const expires_at = new Date(body.readUIntBE(32, 6))
      if (!genuine || expires_at.getTime() <= Date.now()) return undefined
      return { tenant_id: bytesToUuid(body, 0), id: bytesToUuid(body, 16), expires_at }
    }
  }
}
