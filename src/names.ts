/** Invisible characters: spaces, controls, direction marks, joiners, fillers, tags, variation selectors. */
const invisible =
  '\\p{White_Space}\\p{Z}\\p{Cc}\\p{Cs}\\p{Default_Ignorable_Code_Point}\\p{Bidi_Control}\\ufff9-\\ufffb\\u2800'
const visible = new RegExp(`[^${invisible}]`, 'u')
const invisibleRun = new RegExp(`[${invisible}]+`, 'gu')
/** Invisible characters that are part of the visible one before them, for example in an emoji or a flag. */
const attached = /\u200c|\u200d|\p{Variation_Selector}|[\u{e0020}-\u{e007f}]/u

/**
 * Removes the invisible characters before the first and behind the last visible character of a name. Returns an empty
 * text when no character is visible. The time is linear in the length of the text.
 */
export function trimName(name: string): string {
  const start = name.search(visible)
  if (start === -1) return ''
  let end = name.length
  let at = end
  for (;;) {
    const character = lastCharacter(name, at)
    if (visible.test(character)) break
    at -= character.length
    if (!attached.test(character)) end = at
  }
  return name.slice(start, end)
}

function lastCharacter(text: string, end: number): string {
  const low = text.charCodeAt(end - 1)
  const isPair = low >= 0xdc00 && low <= 0xdfff && (text.codePointAt(end - 2) ?? 0) > 0xffff
  return text.slice(end - (isPair ? 2 : 1), end)
}

/** Characters that programs may read as the dot of a host name. */
const dots = '.\u2024\u3002\ufe52\uff0e\uff61'
/** The end of a URL scheme such as `https:` or `mailto:`, when text follows the colon. */
const scheme = /(\p{L}\s?[:\uff1a])(?=[^\s])/gu
const dotted = new RegExp(`([${dots}])(?=[^\\s${dots}])`, 'gu')

/**
 * Makes a name safe for the text of a mail: one line of visible characters that no mail program turns into a link, an
 * address or an encoded word (`=?utf-8?q?…?=`).
 *
 * A space after each dot and colon breaks links, and keeps the name readable.
 */
export function nameInMail(name: string, maxLength = 100): string {
  // comes first: a program that ignores invisible characters would still see a link around one
  const withoutInvisible = name.replaceAll(invisibleRun, (run) => (/[\p{White_Space}\p{Z}]/u.test(run) ? ' ' : ''))
  const line = withoutInvisible
    .replaceAll(/[=\uff1d](?=[?\uff1f])|[?\uff1f](?=[=\uff1d])/g, '$& ')
    .replaceAll(scheme, '$1 ')
    .replaceAll(dotted, '$1 ')
    .replaceAll(/ +/g, ' ')
    .trim()
  const characters = [...line]
  return characters.length > maxLength ? `${characters.slice(0, maxLength - 1).join('')}…` : line
}

/** Makes a name safe for the subject of a mail: as above, without markup, and too short for a message of its own. */
export function nameInSubject(name: string): string {
  return nameInMail(name.replaceAll(/<[^<>]*>|[<>]/g, ''), 60)
}
