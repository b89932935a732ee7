const maxBytes = 255
// what turns the direction of text around, so that a name reads as another one
const misleading = /[\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069]/g
// biome-ignore lint/suspicious/noControlCharactersInRegex: they are what it removes
const control = /[\u0000-\u001f\u007f-\u009f]/g

/**
 * A name to show and to download under: the last part of a path, one line, at most 255 bytes with its extension kept. It never
 * becomes part of a path or key.
 */
export function cleanFileName(given: string | undefined): string {
  const last = (given ?? '').toWellFormed().split(/[/\\]/).at(-1) ?? ''
  const name = last.normalize('NFC').replace(control, '').replace(misleading, '').trim()
  if (/^\.*$/.test(name)) return 'file'
  if (Buffer.byteLength(name) <= maxBytes) return name
  const extension = /\.[A-Za-z0-9]{1,10}$/.exec(name)?.[0] ?? ''
  let stem = name.slice(0, name.length - extension.length)
  while (Buffer.byteLength(stem + extension) > maxBytes) stem = [...stem].slice(0, -1).join('')
  return stem + extension
}

/** What follows the last dot; what systems drop at the end of a name, or nobody sees there, does not hide it. */
export const extensionOf = (name: string) =>
  /\.([A-Za-z0-9]+(?:-[A-Za-z0-9]+)*)[^A-Za-z0-9]*$/.exec(name)?.[1]?.toLowerCase() ?? ''

/** For searching: without case and accents. */
export function foldText(text: string): string {
  return text.normalize('NFKD').replace(/\p{M}/gu, '').toLowerCase()
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
