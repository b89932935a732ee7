/** Cuts a text to at most `maxBytes` bytes of UTF-8, and never in the middle of a character. */
export function truncateText(text: string, maxBytes: number): string {
  let end = 0
  let bytes = 0
  // each code unit takes at least one byte, so the first maxBytes code units are enough
  for (const character of text.slice(0, maxBytes)) {
    bytes += Buffer.byteLength(character)
    if (bytes > maxBytes) break
    end += character.length
  }
  return text.slice(0, end)
}

const utf8 = new TextDecoder('utf-8', { fatal: true })

/**
 * Decodes UTF-8, without its byte order mark. Returns undefined for invalid bytes. Replacing them instead would turn
 * different bytes into the same text, so that several passwords would be one.
 */
export function readUtf8(bytes: Uint8Array): string | undefined {
  try {
    return utf8.decode(bytes)
  } catch {
    return undefined
  }
}

/** Whether the charset of a Content-Type is UTF-8 or US-ASCII, or is not given. */
export function isUtf8(contentType: string): boolean {
  const [, charset] = /;\s*charset\s*=\s*"?([^\s";]*)/i.exec(contentType) ?? []
  return charset === undefined || /^(utf-?8|us-ascii)$/i.test(charset)
}
