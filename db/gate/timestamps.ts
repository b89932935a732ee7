import pg from 'pg'

const { builtins, getTypeParser } = pg.types
const parseAny = getTypeParser(builtins.TIMESTAMPTZ) as (text: string) => Date
/** PostgreSQL's text form of a time in UTC, with up to six digits after the decimal point. */
const shortest = '2026-01-02 03:04:05+00'.length
const longest = shortest + '.123456'.length
const zero = '0'.charCodeAt(0)

/**
 * Parses a timestamptz to the millisecond. The digits of a time in UTC are read at their fixed positions, in a fraction of
 * the time that pg's own parser takes; pg's parser reads all other forms.
 */
export function readTimestamp(text: string): Date {
  const end = text.length - '+00'.length
  const inUtc = text.length >= shortest && text.length <= longest && text.endsWith('+00') && text[10] === ' '
  if (!inUtc || (end > 19 && text[19] !== '.')) return parseAny(text)
  const digit = (at: number) => (at < end ? text.charCodeAt(at) - zero : 0)
  const pair = (at: number) => digit(at) * 10 + digit(at + 1)
  const year = pair(0) * 100 + pair(2)
  const ms = digit(20) * 100 + pair(21)
  // Date.UTC reads the years 0 to 99 as 1900 to 1999
  if (year < 100) return parseAny(text)
  return new Date(Date.UTC(year, pair(5) - 1, pair(8), pair(11), pair(14), pair(17), ms))
}
