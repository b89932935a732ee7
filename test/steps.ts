import { setFlagsFromString } from 'node:v8'

/*
 * Counts the steps of a function that works on text, without a clock.
 *
 * JavaScript has no counter of steps. But work on a text is done by built-in functions: those of strings, arrays,
 * buffers and regular expressions. While a function is measured, these built-ins are replaced by wrappers that add
 * their cost. The cost is the number of characters that they get. For `normalize`, which sorts combining marks one by
 * one, it is the square of a run of marks. For a regular expression it is the number of characters that it passes.
 * Backtracking can't be counted, but V8 can run a copy of the expression that gives up after a number of backtracks.
 */

setFlagsFromString('--allow-natives-syntax')
const limitedRegExp = new Function(
  'source, flags, backtracks',
  // V8 wants a small integer here, and a computed number may be a double
  'return %NewRegExpWithBacktrackLimit(source, flags, backtracks | 0)'
) as (source: string, flags: string, backtracks: number) => RegExp

/** More backtracks per character than this count as endless. */
const backtracksPerCharacter = 64

/** How many characters after its start a sticky expression is tried on. */
const stickyCharacters = 16

const limitedCopies = new Map<string, RegExp>()
/** The copies of an expression by their budget: to ask it for its source costs more than to search with it. */
const copiesOf = new WeakMap<RegExp, Map<number, RegExp>>()
const { exec } = RegExp.prototype
const { slice } = String.prototype

/**
 * Finds the atoms in the source of an expression, and whether each is repeated. V8 does not count backtracks in a loop
 * over a single atom, but it does in a loop over a group. Character classes come first in the pattern, because their
 * content is no atom.
 */
const loopedAtom =
  /(\[(?:[^\]\\]|\\.)*\]|\\[pP]\{[^}]*\}|\\u[0-9a-fA-F]{4}|\\x[0-9a-fA-F]{2}|\\.|[^\\()[\]{}|^$*+?])(?=([*+{])?)/gs

const withGroups = ({ source, flags }: RegExp) =>
  // compiled here first: given an invalid expression, V8's function ends the process
  new RegExp(
    source.replace(loopedAtom, (atom, _, looped) => (looped === undefined ? atom : `(${atom})`)),
    flags
  ).source

/** Whether a search needs more backtracks per character than are allowed. */
function goesBackTooOften(regExp: RegExp, text: string): boolean {
  // a short text can't cause many
  if (text.length < 16) return false
  const budget = backtracksPerCharacter * 2 ** Math.ceil(Math.log2(text.length + 64))
  const copies = copiesOf.get(regExp) ?? new Map<number, RegExp>()
  const copy = copies.get(budget) ?? limitedCopy(regExp, budget)
  if (copies.size === 0) copiesOf.set(regExp, copies)
  copies.set(budget, copy)
  return exec.call(copy, text) === null
}

/** A copy that matches every text, so no match means that it gave up. A sticky expression is tried at one place only. */
function limitedCopy(regExp: RegExp, budget: number): RegExp {
  const key = `${budget} ${regExp.flags} ${regExp.source}`
  const known = limitedCopies.get(key)
  if (known) return known
  const source = withGroups(regExp)
  const found = regExp.sticky ? `(?:${source})` : `[^]*?(?:${source})`
  const flags = [...regExp.flags].filter((flag) => !'gyd'.includes(flag)).join('')
  const copy = limitedRegExp(`^(?:${found}|[^]*)`, flags, budget)
  limitedCopies.set(key, copy)
  return copy
}

/** The cost of `normalize`: the length, and the square of each run of combining marks. */
function costOfNormalizing(text: string): number {
  const lengths = text.match(/\p{M}+/gu)?.map(({ length }) => length ** 2) ?? []
  return lengths.reduce((sum, each) => sum + each, text.length)
}

type Method = (this: unknown, ...given: unknown[]) => unknown
type Holder = Record<string | symbol, Method>

/** Methods that cost one step: they look at one character, or return a view. */
const single = new Set<string | symbol>([
  'charCodeAt',
  'codePointAt',
  'charAt',
  'at',
  'toString',
  'valueOf',
  'slice',
  'push',
  'pop'
])
const lengthOf = (value: unknown) => Number((value as { length?: number } | undefined)?.length ?? 1)
const ofReceiver = (self: unknown) => lengthOf(self)
const ofArgument = (_self: unknown, [first]: unknown[]) => lengthOf(first)

/** Counts the steps of one call. A call that would take more than `most` steps throws before it takes them. */
export function countSteps(work: () => unknown, most: number): number {
  let steps = 0
  const undo: (() => void)[] = []
  let counting = true

  /** Adds a cost, which was found out while nothing was counted. */
  function add(cost: number): void {
    steps += cost
    counting = true
    if (steps > most) throw new RangeError('too many steps')
  }

  function replace(holder: object, name: string | symbol, cost: (self: unknown, given: unknown[]) => number): void {
    const descriptor = Object.getOwnPropertyDescriptor(holder, name)
    const original = descriptor?.value as Method | undefined
    if (typeof original !== 'function' || name === 'constructor') return
    ;(holder as Holder)[name] = function (this: unknown, ...given: unknown[]) {
      if (!counting) return original.apply(this, given)
      counting = false
      add(cost(this, given))
      return original.apply(this, given)
    }
    undo.push(() => Object.defineProperty(holder, name, descriptor as PropertyDescriptor))
  }

  for (const holder of [String.prototype, Array.prototype]) {
    for (const name of Reflect.ownKeys(holder)) {
      // these are counted below, because regular expressions do the work
      if (['replace', 'replaceAll', 'match', 'matchAll', 'search'].includes(String(name))) continue
      replace(
        holder,
        name,
        single.has(name) ? () => 1 : name === 'normalize' ? (self) => costOfNormalizing(String(self)) : ofReceiver
      )
    }
  }
  for (const name of ['replace', 'replaceAll', 'match', 'matchAll', 'search'])
    replace(String.prototype, name, (self, [what]) => (what instanceof RegExp ? 1 : lengthOf(self)))
  for (const name of ['from', 'byteLength']) replace(Buffer, name, ofArgument)
  for (const name of ['encodeURIComponent', 'decodeURIComponent']) replace(globalThis, name, ofArgument)
  replace(JSON, 'parse', ofArgument)

  RegExp.prototype.exec = function (this: RegExp, text: string) {
    if (!counting) return exec.call(this, text)
    counting = false
    const { sticky } = this
    const from = sticky || this.global ? this.lastIndex : 0
    // a sticky expression starts at one place only, and `split` starts one at each place
    const rest = slice.call(text, from, sticky ? from + stickyCharacters : text.length)
    if (goesBackTooOften(this, rest)) add(Number.POSITIVE_INFINITY)
    const match = exec.call(this, text)
    add(1 + (match ? match.index + (match[0] as string).length - from : sticky ? 1 : rest.length))
    return match
  }
  undo.push(() => {
    RegExp.prototype.exec = exec
  })

  try {
    work()
  } finally {
    counting = false
    for (const each of undo.reverse()) each()
  }
  return steps
}
