import { createHmac, timingSafeEqual } from 'node:crypto'
import { v7 as uuidv7 } from 'uuid'
import { deriveKey, type KeyRing } from '../keys.ts'
import { bytesToUuid, nilUuid, uuidToBytes } from '../uuids.ts'

/**
 * What the token is for: to complete a sign-in (`sign_in`), or to enroll a factor and complete it then (`enrollment`).
 */
export type MfaPurpose = 'sign_in' | 'enrollment'

/**
 * The sign-in that waits for a factor. `password_version` is that of the password that was proved. `id` is that of the code
 * of a provider, by which the token was got, else one of its own. Only the key with `key_thumbprint` may go on, if there is
 * one.
 */
export type MfaSubject = {
  tenant_id: string
  user_id: string
  password_version: number
} & Partial<FirstFactor & BoundKey & { id: string }>
/**
 * What was proved instead of the password: `by` is the provider that said who it is. `provider_id` is set for an own one
 * of the tenant.
 */
export type FirstFactor = { by: string | null; provider_id: string | null }
type BoundKey = { key_thumbprint: string | null }
export type MfaToken = MfaSubject & FirstFactor & BoundKey & { purpose: MfaPurpose; id: string }

export type MfaTokens = {
  issue(purpose: MfaPurpose, subject: MfaSubject): string
  /** Returns the content of a token of this server that has not expired, else undefined. */
  verify(token: string): MfaToken | undefined
}

/** Enrolling takes longer: somebody may have to install an app first. */
export const mfaTokenSeconds: Record<MfaPurpose, number> = { sign_in: 300, enrollment: 900 }

const purposes: readonly MfaPurpose[] = ['sign_in', 'enrollment']
// key id, purpose, token id, tenant, person, version of the password, end
const sizes = { keyId: 11, purpose: 1, uuid: 16, number: 4, mac: 32 }
const bodySize = sizes.keyId + sizes.purpose + 3 * sizes.uuid + 2 * sizes.number
/** Of a sign-in through a provider: which one. An older version, which knows no providers, refuses the longer token. */
const providerSize = 1 + sizes.uuid
/** Of a sign-in that began with the proof of a key. An older version refuses this token too. */
const thumbprintSize = 32
const globalProviders = ['google', 'github']
const ownProvider = 255

/**
 * Issues and verifies the tokens that stand between a password and a session. An HMAC with a key of its own covers all
 * of their content, so no other token can be taken for one, and they are not stored.
 *
 * This module only says whether a token is genuine and fresh. The database says whether it was used.
 */
export function createMfaTokens(ring: KeyRing): MfaTokens {
  const macKeys = new Map([...ring.byId.values()].map((key) => [key.id, deriveKey(key.secret, 'mfa token')]))

  function sign(keyId: string, body: Buffer): Buffer | undefined {
    const key = macKeys.get(keyId)
    return key && createHmac('sha256', key).update(body).digest()
  }

  return {
    issue(purpose, subject) {
      const { id = uuidv7(), tenant_id, user_id, password_version } = subject
      const { key_thumbprint = null, by = null, provider_id = null } = subject
      const body = Buffer.alloc(sizeOf({ by, key_thumbprint }))
      let at = body.write(ring.first.id, 0, 'latin1')
      at = body.writeUInt8(purposes.indexOf(purpose), at)
      for (const uuid of [id, tenant_id, user_id]) at += uuidToBytes(uuid).copy(body, at)
      at = body.writeUInt32BE(password_version, at)
      at = body.writeUInt32BE(Math.floor(Date.now() / 1000) + mfaTokenSeconds[purpose], at)
      if (by !== null) {
        at = body.writeUInt8(provider_id === null ? globalProviders.indexOf(by) : ownProvider, at)
        at += uuidToBytes(provider_id ?? nilUuid).copy(body, at)
      }
      if (key_thumbprint !== null) body.write(key_thumbprint, at, 'base64url')
      return Buffer.concat([body, sign(ring.first.id, body) as Buffer]).toString('base64url')
    },
    verify(token) {
      const bytes = Buffer.from(token, 'base64url')
      // reject other base64 spellings of the same bytes
      const size = bytes.length - sizes.mac
      if (!validSizes.has(size) || bytes.toString('base64url') !== token) return undefined
      const body = bytes.subarray(0, size)
      const expected = sign(body.toString('latin1', 0, sizes.keyId), body)
      if (!expected || !timingSafeEqual(expected, bytes.subarray(size))) return undefined
      const ids = sizes.keyId + sizes.purpose
      const numbers = ids + 3 * sizes.uuid
      if (body.readUInt32BE(numbers + sizes.number) * 1000 <= Date.now()) return undefined
      return {
        purpose: purposes[body.readUInt8(sizes.keyId)] as MfaPurpose,
        id: bytesToUuid(body, ids),
        tenant_id: bytesToUuid(body, ids + sizes.uuid),
        user_id: bytesToUuid(body, ids + 2 * sizes.uuid),
        password_version: body.readUInt32BE(numbers),
        ...firstFactorIn(body),
        key_thumbprint: thumbprintIn(body)
      }
    }
  }
}

function sizeOf({ by, key_thumbprint }: { by: string | null; key_thumbprint: string | null }): number {
  return bodySize + (by === null ? 0 : providerSize) + (key_thumbprint === null ? 0 : thumbprintSize)
}

const validSizes: ReadonlySet<number> = new Set(
  [0, providerSize].flatMap((size) => [bodySize + size, bodySize + size + thumbprintSize])
)
const hasProvider = (body: Buffer) =>
  body.length === bodySize + providerSize || body.length === bodySize + providerSize + thumbprintSize
const hasThumbprint = (body: Buffer) => body.length >= bodySize + thumbprintSize

function thumbprintIn(body: Buffer): string | null {
  return hasThumbprint(body) ? body.toString('base64url', body.length - thumbprintSize) : null
}

function firstFactorIn(body: Buffer): FirstFactor {
  if (!hasProvider(body)) return { by: null, provider_id: null }
  const kind = body.readUInt8(bodySize)
  if (kind !== ownProvider) return { by: globalProviders[kind] ?? null, provider_id: null }
  const provider_id = bytesToUuid(body, bodySize + 1)
  return { by: provider_id, provider_id }
}
