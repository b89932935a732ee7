import { createHmac, timingSafeEqual } from 'node:crypto'
import { deriveKey, type KeyRing } from '../keys.ts'
import { bytesToUuid, uuidToBytes } from '../uuids.ts'

/** What a link in a mail about an account is for. A change of the address needs a link from each of the two mailboxes. */
export const linkPurposes = ['reset', 'verification', 'change_from', 'change_to'] as const
export type LinkPurpose = (typeof linkPurposes)[number]

/** How long the link of a mail can be used, from when the mail is sent. */
export const mailedLinkSeconds = { reset: 3600, change_from: 3600, change_to: 3600, verification: 86_400 } as const

/** The purpose of a mailed token. A token is not valid for another purpose. */
export type Purpose = 'invitation' | LinkPurpose

export type OneTimeToken = { tenant_id: string; id: string; generation: number }

export type OneTimeTokens = {
  issue(purpose: Purpose, token: OneTimeToken): string
  /**
   * Returns the content of a token that was issued for this purpose, else undefined. Its row says whether it is still
   * valid.
   */
  verify(purpose: Purpose, token: string): OneTimeToken | undefined
}

// key id, tenant, id, generation
const bodySize = 11 + 16 + 16 + 4
const macSize = 32

/**
 * Issues and verifies the tokens of mails. A token is computed again when its mail is sent, so neither it nor its hash
 * is stored.
 */
export function createOneTimeTokens(ring: KeyRing): OneTimeTokens {
  function sign(purpose: Purpose, keyId: string, body: Buffer): Buffer | undefined {
    const key = ring.byId.get(keyId)
    return (
      key &&
      createHmac('sha256', deriveKey(key.secret, `one-time ${purpose}`))
        .update(body)
        .digest()
    )
  }

  return {
    issue(purpose, { tenant_id, id, generation }) {
      const body = Buffer.alloc(bodySize)
      body.write(ring.first.id, 0, 'latin1')
      uuidToBytes(tenant_id).copy(body, 11)
      uuidToBytes(id).copy(body, 27)
      body.writeUInt32BE(generation, 43)
      return Buffer.concat([body, sign(purpose, ring.first.id, body) as Buffer]).toString('base64url')
    },
    verify(purpose, token) {
      const bytes = Buffer.from(token, 'base64url')
      if (bytes.length !== bodySize + macSize || bytes.toString('base64url') !== token) return undefined
      const body = bytes.subarray(0, bodySize)
      const expected = sign(purpose, body.toString('latin1', 0, 11), body)
      if (!expected || !timingSafeEqual(expected, bytes.subarray(bodySize))) return undefined
      return { tenant_id: bytesToUuid(body, 11), id: bytesToUuid(body, 27), generation: body.readUInt32BE(43) }
    }
  }
}
