/**
 * Tells whether any object in a JSON text has two members of one name. Parsers differ in which of the two they keep
 * (RFC 8259, 4), so a proxy could check one value while this server uses the other.
 *
 * A JSON text has one colon outside of strings per member. With duplicates, the parsed value has fewer members than
 * colons.
 */
export function hasDuplicateMembers(text: string, value: unknown): boolean {
  return countColons(text) !== countMembers(value)
}

/**
 * Tells whether a string or a member's name holds an unpaired surrogate, which is no character (RFC 8259, 8.2).
 *
 * Iterative, because a body may be nested deeper than the stack.
 */
export function hasUnpairedSurrogates(text: string, value: unknown): boolean {
  // UTF-8 can't encode a surrogate, so the text must hold it as an escape
  if (!/\\ud[89a-f]/i.test(text)) return false
  const open = [value]
  while (open.length > 0) {
    const next = open.pop()
    if (typeof next === 'string' && !next.isWellFormed()) return true
    if (next === null || typeof next !== 'object') continue
    for (const [name, child] of Object.entries(next)) open.push(name, child)
  }
  return false
}

/** Serializes a value with sorted members, so that equal values give equal texts. */
export function canonicalJson(value: unknown): string {
  return JSON.stringify(value, (_, part) =>
    part === null || typeof part !== 'object' || Array.isArray(part)
      ? part
      : Object.fromEntries(Object.entries(part).sort(([one], [two]) => (one < two ? -1 : 1)))
  )
}

function countColons(text: string): number {
  let colons = 0
  let inString = false
  for (let i = 0; i < text.length; i++) {
    const code = text.charCodeAt(i)
    if (code === 0x22) inString = !inString
    else if (inString && code === 0x5c) i++
    else if (!inString && code === 0x3a) colons++
  }
  return colons
}

/** Iterative, because a body may be nested deeper than the stack. */
function countMembers(value: unknown): number {
  let members = 0
  const open = [value]
  while (open.length > 0) {
    const next = open.pop()
    if (next === null || typeof next !== 'object') continue
    const children = Object.values(next)
    if (!Array.isArray(next)) members += children.length
    for (const child of children) open.push(child)
  }
  return members
}
