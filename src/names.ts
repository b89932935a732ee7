/** Characters that leave no mark: spaces, controls, marks of direction, joiners, fillers, tags, variation selectors. */
const hidden =
  '\\p{White_Space}\\p{Z}\\p{Cc}\\p{Cs}\\p{Default_Ignorable_Code_Point}\\p{Bidi_Control}\\ufff9-\\ufffb\\u2800'
const shown = new RegExp(`[^${hidden}]`, 'u')
const hiddenRun = new RegExp(`[${hidden}]+`, 'gu')
/** Belongs to the character before it, as in an emoji or a flag. */
const attached = /\u200c|\u200d|\p{Variation_Selector}|[\u{e0020}-\u{e007f}]/u

/**
 * A name without what does not show before its first and after its last visible character; empty when there is none.
 *
 * Steps through each end once, so its time grows with the length of the text and not faster.
 */
export function trimName(name: string): string {
  const start = name.search(shown)
  if (start === -1) return ''
  let end = name.length
  let at = end
  for (;;) {
    const character = lastCharacter(name, at)
    if (shown.test(character)) break
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

/** What a program that reads a host name may take for a dot. */
const dots = '.\u2024\u3002\ufe52\uff0e\uff61'
/** A scheme such as `https:` or `mailto:`, with a colon that is followed by something. */
const scheme = /(\p{L}\s?[:\uff1a])(?=[^\s])/gu
const dotted = new RegExp(`([${dots}])(?=[^\\s${dots}])`, 'gu')

/**
 * A name as it may stand in a mail: one line of visible characters, nothing of which a mail program makes a link, an address or an
 * encoded word (`=?utf-8?q?…?=`).
 *
 * A space after each dot and colon is what takes a link apart; whoever reads the name still reads the same.
 */
export function nameInMail(name: string, maxLength = 100): string {
  // first, so that nothing hidden stands between two characters that belong together for a program that ignores it
  const visible = name.replaceAll(hiddenRun, (run) => (/[\p{White_Space}\p{Z}]/u.test(run) ? ' ' : ''))
  const line = visible
    .replaceAll(/[=\uff1d](?=[?\uff1f])|[?\uff1f](?=[=\uff1d])/g, '$& ')
    .replaceAll(scheme, '$1 ')
    .replaceAll(dotted, '$1 ')
    .replaceAll(/ +/g, ' ')
    .trim()
  const characters = [...line]
  return characters.length > maxLength ? `${characters.slice(0, maxLength - 1).join('')}…` : line
}

/** In a subject, besides: without markup, and short, so that it is no message of its own. */
export function nameInSubject(name: string): string {
  return nameInMail(name.replaceAll(/<[^<>]*>|[<>]/g, ''), 60)
}
