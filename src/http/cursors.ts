import { createHmac, type KeyObject, timingSafeEqual } from 'node:crypto'
import { deriveKey, type KeyRing } from '../keys.ts'
import { invalidCursor } from './problems.ts'

export type Cursors = {
  /** Makes a cursor that is valid for one `scope` only: the list with its tenant, user and filters. */
  issue(scope: string, position: readonly string[]): string
  /**
   * Returns the position in a cursor of this scope; empty without a cursor. Throws `invalid_cursor` for any other
   * cursor.
   */
  require(scope: string, cursor: string | undefined): string[]
  /**
   * Makes a page of at most `limit` rows. The caller reads `limit + 1` rows: the extra row shows that there is a next
   * page.
   */
  page<Row>(
    scope: string,
    rows: readonly Row[],
    limit: number,
    positionOf: (row: Row) => string[]
  ): { data: Row[]; next_cursor: string | null }
}

const macSize = 16

/**
 * Makes opaque keyset cursors with an HMAC, so that a client can neither forge a position nor use a cursor for another
 * list.
 */
export function createCursors(ring: KeyRing): Cursors {
  const macKeys = [...ring.byId.values()].map((key) => deriveKey(key.secret, 'cursor'))
  const sign = (key: KeyObject, scope: string, position: Buffer) =>
    createHmac('sha256', key).update(`${scope}\0`).update(position).digest().subarray(0, macSize)

  function issue(scope: string, position: readonly string[]): string {
    const text = Buffer.from(JSON.stringify(position))
    return Buffer.concat([sign(macKeys[0] as KeyObject, scope, text), text]).toString('base64url')
  }

  return {
    issue,
    page(scope, rows, limit, positionOf) {
      const data = rows.slice(0, limit)
      const last = data.at(-1)
      return { data, next_cursor: rows.length > limit && last ? issue(scope, positionOf(last)) : null }
    },
    require(scope, cursor) {
      if (cursor === undefined) return []
      const bytes = Buffer.from(cursor, 'base64url')
      const mac = bytes.subarray(0, macSize)
      const text = bytes.subarray(macSize)
      const genuine =
        bytes.toString('base64url') === cursor &&
        mac.length === macSize &&
        macKeys.some((key) => timingSafeEqual(sign(key, scope, text), mac))
      if (!genuine) throw invalidCursor()
      return JSON.parse(text.toString()) as string[]
    }
  }
}
