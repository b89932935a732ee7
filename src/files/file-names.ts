import { truncateText } from '../text.ts'

const maxBytes = 255
/** Of a name so much is looked at, whatever a sender puts into a header; of a longer one the end is kept too, for its extension. */
const readCharacters = 1024
const extensionCharacters = 11
// what turns the direction of text around, so that a name reads as another one
const misleading = /[\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069]/g
// biome-ignore lint/suspicious/noControlCharactersInRegex: they are what it removes
const control = /[\u0000-\u001f\u007f-\u009f]/g

/**
 * A name to show and to download under: the last part of a path, one line, at most 255 bytes with its extension kept. It never
 * becomes part of a path or key.
 */
export function cleanFileName(given: string | undefined): string {
  const last = shorten(lastSegment(given ?? '')).toWellFormed()
  const name = last.normalize('NFC').replace(control, '').replace(misleading, '').trim()
  if (/^\.*$/.test(name)) return 'file'
  if (Buffer.byteLength(name) <= maxBytes) return name
  const extension = /\.[A-Za-z0-9]{1,10}$/.exec(name)?.[0] ?? ''
  return truncateText(name.slice(0, name.length - extension.length), maxBytes - extension.length) + extension
}

const lastSegment = (path: string) => path.slice(Math.max(path.lastIndexOf('/'), path.lastIndexOf('\\')) + 1)

const shorten = (name: string) =>
  name.length <= readCharacters
    ? name
    : name.slice(0, readCharacters - extensionCharacters) + name.slice(-extensionCharacters)

/** What follows the last dot; what systems drop at the end of a name, or nobody sees there, does not hide it. */
export function extensionOf(name: string): string {
  let end = name.length
  while (end > 0 && !isAlphanumeric(name.charCodeAt(end - 1))) end--
  let start = end
  while (start > 0 && (isAlphanumeric(name.charCodeAt(start - 1)) || name[start - 1] === '-')) start--
  return start > 0 && name[start - 1] === '.' ? name.slice(start, end).toLowerCase() : ''
}

/** Letters and digits of ASCII. */
function isAlphanumeric(code: number): boolean {
  return (code >= 0x30 && code <= 0x39) || (code >= 0x41 && code <= 0x5a) || (code >= 0x61 && code <= 0x7a)
}

/** For searching: without case and accents, and of a long text the beginning alone. */
export function foldText(text: string): string {
  // composing takes time that grows with the square of a run of accents
  return text.slice(0, readCharacters).normalize('NFKD').replace(/\p{M}/gu, '').toLowerCase()
}

/** RFC 6266: a name in ASCII for old clients, and the real one (RFC 8187). Always to be saved, never to be shown in place. */
export function attachment(name: string): string {
  const ascii = name.replace(/[^\x20-\x7e]|["\\%]/g, '_')
  const encoded = encodeURIComponent(name).replace(
    /['()*]/g,
    (each) => `%${each.charCodeAt(0).toString(16).toUpperCase()}`
  )
  return `attachment; filename="${ascii}"; filename*=UTF-8''${encoded}`
}
