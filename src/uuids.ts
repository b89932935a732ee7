/**
 * Ids that nobody has, before and behind all others: where a list begins. With one of them the first page is asked for like any
 * other, so that PostgreSQL has one plan for all, which begins where the page does. It has none for `is null or id > $1`, and
 * takes a `coalesce` for something that might tell what row security hides, and so not to the index.
 */
export const nilUuid = '00000000-0000-0000-0000-000000000000'
export const maxUuid = 'ffffffff-ffff-ffff-ffff-ffffffffffff'

/** The 16 bytes of a UUID, for tokens that carry one. */
export function uuidToBytes(uuid: string): Buffer {
  return Buffer.from(uuid.replaceAll('-', ''), 'hex')
}

/** The UUID that stands in `bytes` at `offset`. */
export function bytesToUuid(bytes: Buffer, offset: number): string {
  const hex = bytes.toString('hex', offset, offset + 16)
  return `${hex.slice(0, 8)}-${hex.slice(8, 12)}-${hex.slice(12, 16)}-${hex.slice(16, 20)}-${hex.slice(20)}`
}
