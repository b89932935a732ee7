/** The beginning of a text that has at most so many bytes in UTF-8; no character is cut in two. */
export function truncateText(text: string, maxBytes: number): string {
  let end = 0
  let bytes = 0
  // no more is looked at than may be kept
  for (const character of text.slice(0, maxBytes)) {
    bytes += Buffer.byteLength(character)
    if (bytes > maxBytes) break
    end += character.length
  }
  return text.slice(0, end)
}

const utf8 = new TextDecoder('utf-8', { fatal: true })

/**
 * The text that bytes stand for, without a byte order mark; undefined where they are not UTF-8. Decoding what is not would make
 * the same text of different bytes, and one password of several.
 */
export function readUtf8(bytes: Uint8Array): string | undefined {
  try {
    return utf8.decode(bytes)
  } catch {
    return undefined
  }
}

/** Whether a Content-Type names UTF-8, or no charset at all. */
export function isUtf8(contentType: string): boolean {
  const [, charset] = /;\s*charset\s*=\s*"?([^\s";]*)/i.exec(contentType) ?? []
  return charset === undefined || /^(utf-?8|us-ascii)$/i.test(charset)
}
