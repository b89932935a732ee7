/**
 * The nil and the max UUID of RFC 9562, which sort before and behind all real ids. They are the start position of the
 * first page of a list, so that all pages have the same condition, such as `id > $1`, and one plan, which starts in the
 * index at the page's first row.
 *
 * PostgreSQL finds no such plan for `$1 is null or id > $1`. It does not use the index for a `coalesce` either, because
 * under row security that function might leak hidden rows.
 */
export const nilUuid = '00000000-0000-0000-0000-000000000000'
export const maxUuid = 'ffffffff-ffff-ffff-ffff-ffffffffffff'

/** Matches a UUID in lower case, as the product writes ids. */
export const uuidPattern = '^[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}$'
const uuid = new RegExp(uuidPattern)

/** Tells whether a text is a UUID in lower case. */
export const isUuid = (text: string): boolean => uuid.test(text)

/** Returns the 16 bytes of a UUID, for tokens that contain one. */
export function uuidToBytes(uuid: string): Buffer {
  return Buffer.from(uuid.replaceAll('-', ''), 'hex')
}

/** Reads the UUID at `offset` of `bytes`. */
export function bytesToUuid(bytes: Buffer, offset: number): string {
  const hex = bytes.toString('hex', offset, offset + 16)
  return `${hex.slice(0, 8)}-${hex.slice(8, 12)}-${hex.slice(12, 16)}-${hex.slice(16, 20)}-${hex.slice(20)}`
}
