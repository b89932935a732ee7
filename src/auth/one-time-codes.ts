import { createHash, randomBytes, timingSafeEqual } from 'node:crypto'
import { Secret, TOTP } from 'otpauth'

/*
 * The two kinds of codes that prove a second factor: codes of an authenticator app (TOTP, RFC 6238), and recovery codes
 * for the day on which the app is lost.
 */

/** What all authenticator apps understand. */
const parameters = { algorithm: 'SHA1', digits: 6, period: 30 }
/** RFC 4226, 4: at least 128 bits, 160 recommended. */
const secretBytes = 20
/** Codes of the step before and of the next one are accepted, for clocks that differ. */
const stepsAside = 1

export const createFactorSecret = (): Buffer => randomBytes(secretBytes)

const secretOf = (bytes: Uint8Array) => new Secret({ buffer: new Uint8Array(bytes).buffer })

/** The secret in base32, to be typed, and the `otpauth:` URI that an app reads from a QR code. */
export function presentSecret(bytes: Uint8Array, email: string): { secret: string; uri: string } {
  const secret = secretOf(bytes)
  return { secret: secret.base32, uri: new TOTP({ issuer: 'Aggios', label: email, secret, ...parameters }).toString() }
}

/** The time step whose code this is, or undefined. */
export function findStep(bytes: Uint8Array, code: string, timestamp = Date.now()): number | undefined {
  const delta = TOTP.validate({ token: code, secret: secretOf(bytes), timestamp, window: stepsAside, ...parameters })
  return delta === null ? undefined : TOTP.counter({ period: parameters.period, timestamp }) + delta
}

/** A code without the blanks with which apps show it. */
export const withoutBlanks = (code: string): string => code.replaceAll(/\s/g, '')

/** Codes of an app have six digits. Everything else is taken for a recovery code. */
export const isTimeCode = (code: string): boolean => /^\d{6}$/.test(code)

export const recoveryCodeCount = 10
/** Without 0, 1, 8 and 9, which look like other characters, and with 32 characters: five bits each. */
const alphabet = 'abcdefghijklmnopqrstuvwxyz234567'
const recoveryLength = 16

/** Creates the recovery codes of a person. Each has 80 random bits. */
export function createRecoveryCodes(): string[] {
  return Array.from({ length: recoveryCodeCount }, () => {
    const characters = [...randomBytes(recoveryLength)].map((byte) => alphabet[byte % alphabet.length])
    return characters.join('').replaceAll(/(.{4})(?!$)/g, '$1-')
  })
}

/**
 * The digest under which a recovery code is stored. A fast hash is enough: nobody tries 2^80 codes. Case, blanks and
 * hyphens don't count.
 */
export function recoveryDigest(userId: string, code: string): Buffer {
  const plain = code.toLowerCase().replaceAll(/[\s-]/g, '')
  return createHash('sha256').update(`aggios recovery code\0${userId}\0${plain}`).digest()
}

/** Compares with all of the digests, so that the time does not depend on which one it is. */
export function hasDigest(digests: readonly Buffer[], digest: Buffer): boolean {
  let found = false
  for (const each of digests) if (each.length === digest.length && timingSafeEqual(each, digest)) found = true
  return found
}
