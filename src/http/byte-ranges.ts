export type ByteRange = { start: number; end: number }

/**
 * Parses a Range header for an object of `size` bytes (RFC 9110, 14). Undefined means that the whole object is sent:
 * without a header, and for several ranges, other units and malformed headers, which a server may ignore.
 *
 * A suffix range (`bytes=-5`) of an empty object gives undefined as well. The range is satisfiable (14.1.2), but no
 * Content-Range can express it.
 */
export function parseRange(header: string | undefined, size: number): ByteRange | 'unsatisfiable' | undefined {
  const [, first = '', last = ''] = /^bytes=(\d{0,15})-(\d{0,15})$/i.exec(header ?? '') ?? []
  if (first === '' && last === '') return undefined
  if (first === '' && size === 0 && Number(last) > 0) return undefined
  const start = first === '' ? Math.max(0, size - Number(last)) : Number(first)
  const end = first === '' || last === '' ? size - 1 : Math.min(Number(last), size - 1)
  if (first !== '' && last !== '' && Number(last) < start) return undefined
  return start <= end ? { start, end } : 'unsatisfiable'
}
