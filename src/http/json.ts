/**
 * Whether some object in a JSON text names a member twice. Parsers keep one of the two, and not all the same one (RFC 8259, 4),
 * so what a proxy has checked may not be what is used here.
 *
 * Each member of a text has one colon outside of strings; a parsed value has as many members as have survived.
 */
export function hasDuplicateMembers(text: string, value: unknown): boolean {
  return countColons(text) !== countMembers(value)
}

/**
 * Whether a string or the name of a member holds half of a surrogate pair, which stands for no character (RFC 8259, 8.2). Without
 * recursion: a body may be nested deeper than the stack.
 */
export function hasUnpairedSurrogates(text: string, value: unknown): boolean {
  // UTF-8 can't hold one, so it can only be escaped
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

/** One text for a value, in whatever order its members came. */
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

/** Without recursion: a body may be nested deeper than the stack. */
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
