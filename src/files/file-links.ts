import { createHmac, type KeyObject, timingSafeEqual } from 'node:crypto'
import { deriveKey, type KeyRing } from '../auth/keys.ts'
import { bytesToUuid, uuidToBytes } from '../uuids.ts'

/** What whoever holds a link may do with one file of one tenant, and until when. */
export type FileLink = { tenant_id: string; id: string; expires_at: Date }
export type LinkPurpose = 'read' | 'write'

export type FileLinks = {
  issue(purpose: LinkPurpose, link: FileLink): string
  /** The content of a link that was issued for this purpose and is still good, or undefined. */
  verify(purpose: LinkPurpose, token: string): FileLink | undefined
}

/** Seconds for which a link is good. */
export const linkSeconds = 300

const bodySize = 16 + 16 + 6
const macSize = 32

/** Tokens in links, for what can't send a header: good by themselves, for one file and a short time. */
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
