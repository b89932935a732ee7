import pg from 'pg'

const { builtins, getTypeParser } = pg.types
const parseAny = getTypeParser(builtins.TIMESTAMPTZ) as (text: string) => Date
/** As PostgreSQL writes a time in UTC, with up to six digits behind the point. */
const shortest = '2026-01-02 03:04:05+00'.length
const longest = shortest + '.123456'.length
const zero = '0'.charCodeAt(0)

/**
 * A timestamptz, to the millisecond. Of a time in UTC the digits are read where they stand, in a fraction of the time that pg's
 * own parser takes; all others are left to that.
 */
export function readTimestamp(text: string): Date {
  const end = text.length - '+00'.length
  const inUtc = text.length >= shortest && text.length <= longest && text.endsWith('+00') && text[10] === ' '
  if (!inUtc || (end > 19 && text[19] !== '.')) return parseAny(text)
  const digit = (at: number) => (at < end ? text.charCodeAt(at) - zero : 0)
  const pair = (at: number) => digit(at) * 10 + digit(at + 1)
  const year = pair(0) * 100 + pair(2)
  const ms = digit(20) * 100 + pair(21)
  // Date.UTC takes the first hundred years for others
  if (year < 100) return parseAny(text)
  return new Date(Date.UTC(year, pair(5) - 1, pair(8), pair(11), pair(14), pair(17), ms))
}
