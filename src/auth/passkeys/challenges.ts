import { createHmac, timingSafeEqual } from 'node:crypto'
import { v7 as uuidv7 } from 'uuid'
import { deriveKey, type KeyRing } from '../../keys.ts'
import { bytesToUuid, nilUuid, uuidToBytes } from '../../uuids.ts'

/** What an authenticator is asked to sign for. */
export type ChallengePurpose = 'registration' | 'sign_in' | 'second_factor' | 'proof'

/**
 * Whom a challenge is for, and where it can be used.
 *
 * - `registration` and `proof` (of somebody who is signed in): the person and their session. A registration that completes a
 *   sign-in has the id of the `mfa_token` in place of the session, and as its own.
 * - `sign_in`: nobody yet. The page that is signed for says which tenant it is for.
 * - `second_factor`: the person and the tenant of the sign-in. It has the id of the `mfa_token`, so that both are used up
 *   together.
 */
export type ChallengeSubject = { user_id: string | null; context: string | null; id?: string }
export type Challenge = { purpose: ChallengePurpose; id: string; user_id: string | null; context: string | null }

export type PasskeyChallenges = {
  /** Creates a challenge in base64url, as options and client data spell it. */
  issue(purpose: ChallengePurpose, subject: ChallengeSubject): string
  /** Returns the content of a challenge of this server that has not expired, else undefined. */
  verify(challenge: string): Challenge | undefined
}

/** As long as a person may take to find the device and unlock it. */
export const challengeSeconds = 300

const purposes: readonly ChallengePurpose[] = ['registration', 'sign_in', 'second_factor', 'proof']
// key id, purpose, challenge id, person, context, end
const sizes = { keyId: 11, purpose: 1, uuid: 16, number: 4, mac: 32 }
const bodySize = sizes.keyId + sizes.purpose + 3 * sizes.uuid + sizes.number
const tokenSize = bodySize + sizes.mac

/**
 * Issues and verifies the challenges that passkeys sign. They are not stored: an HMAC with a key of its own covers all of
 * their content, so any process can verify what another one has issued. Nobody can guess the HMAC, which is all that
 * WebAuthn asks of a challenge (13.4.3).
 *
 * This module only says whether a challenge is genuine and fresh. The database says whether it was used.
 */
export function createPasskeyChallenges(ring: KeyRing): PasskeyChallenges {
  const macKeys = new Map([...ring.byId.values()].map((key) => [key.id, deriveKey(key.secret, 'passkey challenge')]))

  function sign(keyId: string, body: Buffer): Buffer | undefined {
    const key = macKeys.get(keyId)
    return key && createHmac('sha256', key).update(body).digest()
  }

  return {
    issue(purpose, { user_id, context, id = uuidv7() }) {
      const body = Buffer.alloc(bodySize)
      let at = body.write(ring.first.id, 0, 'latin1')
      at = body.writeUInt8(purposes.indexOf(purpose), at)
      for (const uuid of [id, user_id ?? nilUuid, context ?? nilUuid]) at += uuidToBytes(uuid).copy(body, at)
      body.writeUInt32BE(Math.floor(Date.now() / 1000) + challengeSeconds, at)
      return Buffer.concat([body, sign(ring.first.id, body) as Buffer]).toString('base64url')
    },
    verify(challenge) {
      const bytes = Buffer.from(challenge, 'base64url')
      // reject other base64 spellings of the same bytes
      if (bytes.length !== tokenSize || bytes.toString('base64url') !== challenge) return undefined
      const body = bytes.subarray(0, bodySize)
      const expected = sign(body.toString('latin1', 0, sizes.keyId), body)
      if (!expected || !timingSafeEqual(expected, bytes.subarray(bodySize))) return undefined
      const ids = sizes.keyId + sizes.purpose
      if (body.readUInt32BE(ids + 3 * sizes.uuid) * 1000 <= Date.now()) return undefined
      const [id, user_id, context] = [0, 1, 2].map((index) => bytesToUuid(body, ids + index * sizes.uuid)) as [
        ...[string, string, string]
      ]
      const orNull = (uuid: string) => (uuid === nilUuid ? null : uuid)
      return {
        purpose: purposes[body.readUInt8(sizes.keyId)] as ChallengePurpose,
        id,
        user_id: orNull(user_id),
        context: orNull(context)
      }
    }
  }
}
