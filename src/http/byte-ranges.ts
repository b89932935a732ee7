export type ByteRange = { start: number; end: number }

/**
 * What a Range header asks of an object (RFC 9110, 14). Several ranges, other units and what can't be read are ignored, as a
 * server may: undefined, and the whole is sent. So is an empty object to who asks for its last bytes: that can be satisfied (14.1.2)
 * but no Content-Range can say so.
 */
export function findRange(header: string | undefined, size: number): ByteRange | 'unsatisfiable' | undefined {
  const [, first = '', last = ''] = /^bytes=(\d{0,15})-(\d{0,15})$/i.exec(header ?? '') ?? []
  if (first === '' && last === '') return undefined
  if (first === '' && size === 0 && Number(last) > 0) return undefined
  const start = first === '' ? Math.max(0, size - Number(last)) : Number(first)
  const end = first === '' || last === '' ? size - 1 : Math.min(Number(last), size - 1)
  if (first !== '' && last !== '' && Number(last) < start) return undefined
  return start <= end ? { start, end } : 'unsatisfiable'
}
