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
