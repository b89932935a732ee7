import { createHash, randomBytes } from 'node:crypto'
import { crc32 } from 'node:zlib'
import { bytesToUuid, uuidToBytes } from '../../uuids.ts'

/**
 * API keys as text: `agg_`, one number of fixed width in base62 (16 bytes of the agency's id, 16 of the key's, 24 of the
 * secret), and a checksum.
 *
 * The ids are in the key, so nothing has to be searched before the agency is known. The checksum tells a mistyped key without a
 * look-up, and lets scanners of source code recognise a key by the pattern.
 */
export type KeyParts = { tenant_id: string; id: string; secret: Buffer }

const prefix = 'agg_'
const digits = '0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz'
const base = BigInt(digits.length)
const secretBytes = 24
const bytes = 16 + 16 + secretBytes
/** The digits of a number of 56 bytes, and of a CRC-32. */
const [bodyLength, checksumLength] = [76, 6]

export const keyPattern = `^${prefix}[0-9A-Za-z]{${bodyLength + checksumLength}}$`
const shape = new RegExp(keyPattern)
/** In any case, as RFC 9110 wants it of schemes. */
const presented = /^[Bb][Ee][Aa][Rr][Ee][Rr] (\S+)$/

/** The API key in an Authorization header. Undefined for every other token: none begins like a key. */
export function keyIn(authorization: string): string | undefined {
  return authorization.startsWith(prefix, 'Bearer '.length) ? presented.exec(authorization)?.[1] : undefined
}

export const createSecret = (): Buffer => randomBytes(secretBytes)

/** The digest under which a secret is stored. The secret has 192 random bits, so neither salt nor cost is needed. */
export const digestOf = (secret: Buffer): Buffer => createHash('sha256').update(secret).digest()

export function formatKey({ tenant_id, id, secret }: KeyParts): string {
  const content = Buffer.concat([uuidToBytes(tenant_id), uuidToBytes(id), secret])
  const text = prefix + toDigits(BigInt(`0x${content.toString('hex')}`), bodyLength)
  return text + checksumOf(text)
}

/** Reads a key. Undefined for a text that this server can not have made. */
export function parseKey(text: string): KeyParts | undefined {
  if (!shape.test(text) || checksumOf(text.slice(0, -checksumLength)) !== text.slice(-checksumLength)) return undefined
  let number = 0n
  for (const digit of text.slice(prefix.length, -checksumLength)) number = number * base + BigInt(digits.indexOf(digit))
  const hex = number.toString(16).padStart(bytes * 2, '0')
  // a number of fixed width can name more than fits into the bytes
  if (hex.length > bytes * 2) return undefined
  const content = Buffer.from(hex, 'hex')
  return { tenant_id: bytesToUuid(content, 0), id: bytesToUuid(content, 16), secret: content.subarray(32) }
}

const checksumOf = (text: string) => toDigits(BigInt(crc32(text)), checksumLength)

function toDigits(number: bigint, length: number): string {
  let text = ''
  for (let rest = number; rest > 0n; rest /= base) text = digits[Number(rest % base)] + text
  return text.padStart(length, '0')
}
