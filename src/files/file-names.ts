import { truncateText } from '../text.ts'

const maxBytes = 255
/**
 * The number of characters of a name that are processed, since a header may hold more. Of a longer name the end is kept
 * too, for its extension.
 */
const readCharacters = 1024
const extensionCharacters = 11
// characters that change the direction of text and so make a name look like another one
const bidiControl = /[\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069]/g
// biome-ignore lint/suspicious/noControlCharactersInRegex: they are what it removes
const control = /[\u0000-\u001f\u007f-\u009f]/g

/**
 * Cleans the name of a file, for showing it and for downloads: the last segment of a path, one line, at most 255 bytes,
 * with its extension. The result never becomes part of a path or key.
 */
export function cleanFileName(given: string | undefined): string {
  const last = shorten(lastSegment(given ?? '')).toWellFormed()
  const name = last.normalize('NFC').replace(control, '').replace(bidiControl, '').trim()
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

/**
 * Returns the extension in lower case. Characters behind it that systems drop or nobody sees, such as spaces and dots,
 * are ignored.
 */
export function extensionOf(name: string): string {
  let end = name.length
  while (end > 0 && !isAlphanumeric(name.charCodeAt(end - 1))) end--
  let start = end
  while (start > 0 && (isAlphanumeric(name.charCodeAt(start - 1)) || name[start - 1] === '-')) start--
  return start > 0 && name[start - 1] === '.' ? name.slice(start, end).toLowerCase() : ''
}

/** Whether a character code is a letter or digit of ASCII. */
function isAlphanumeric(code: number): boolean {
  return (code >= 0x30 && code <= 0x39) || (code >= 0x41 && code <= 0x5a) || (code >= 0x61 && code <= 0x7a)
}

/** Folds a text for searching: without case and accents, and only its first 1024 characters. */
export function foldText(text: string): string {
  // only the first characters, because the time of normalizing is quadratic in the length of a run of accents
  return text.slice(0, readCharacters).normalize('NFKD').replace(/\p{M}/gu, '').toLowerCase()
}

/**
 * Returns the Content-Disposition of a download (RFC 6266): the name in ASCII for old clients, and the real name (RFC
 * 8187). With `attachment` a browser saves the file and does not show it.
 */
export function attachment(name: string): string {
  const ascii = name.replace(/[^\x20-\x7e]|["\\%]/g, '_')
  const encoded = encodeURIComponent(name).replace(
    /['()*]/g,
    (each) => `%${each.charCodeAt(0).toString(16).toUpperCase()}`
  )
  return `attachment; filename="${ascii}"; filename*=UTF-8''${encoded}`
}
