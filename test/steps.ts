import { setFlagsFromString } from 'node:v8'

/*
 * Counts the steps of a function that works on text, without a clock.
 *
 * JavaScript has no counter of steps, but what costs time on a text is done by built-ins: those of strings, arrays, buffers and
 * regular expressions. While a function is counted they are replaced by ones that add what they cost: the characters that they are
 * given, the square of a run of combining marks for `normalize` (which sorts them one by one), and for a regular expression the
 * characters that it passes. A step back of a regular expression can't be seen, but V8 runs a copy of it that gives up after a
 * number of them.
 */

setFlagsFromString('--allow-natives-syntax')
const limitedRegExp = new Function(
  'source, flags, backtracks',
  // the function takes small integers alone, which a number is not that was computed
  'return %NewRegExpWithBacktrackLimit(source, flags, backtracks | 0)'
) as (source: string, flags: string, backtracks: number) => RegExp

/** Steps back of a regular expression for each character, more than which is taken for endless. */
const backtracksPerCharacter = 64

/** Of what follows a place where a sticky expression begins so much is looked at. */
const stickyCharacters = 16

const limitedCopies = new Map<string, RegExp>()
const { exec } = RegExp.prototype
const { slice } = String.prototype

/**
 * A loop over one atom, as source: V8 goes back in it without counting, and does count in one over a group. The classes come first,
 * since whatever stands in one is no atom.
 */
const loopedAtom =
  /(\[(?:[^\]\\]|\\.)*\]|\\[pP]\{[^}]*\}|\\u[0-9a-fA-F]{4}|\\x[0-9a-fA-F]{2}|\\.|[^\\()[\]{}|^$*+?])(?=([*+{])?)/gs

const withGroups = ({ source, flags }: RegExp) =>
  // made here first: what is no expression V8 would end the process for
  new RegExp(
    source.replace(loopedAtom, (atom, _, looped) => (looped === undefined ? atom : `(${atom})`)),
    flags
  ).source

/** Whether a search goes back more than a few times for each character. */
function goesBackTooOften(regExp: RegExp, text: string): boolean {
  // of few characters it can't
  if (text.length < 16) return false
  const budget = backtracksPerCharacter * 2 ** Math.ceil(Math.log2(text.length + 64))
  const key = `${budget} ${regExp.flags} ${regExp.source}`
  let copy = limitedCopies.get(key)
  if (!copy) {
    // matches whatever there is, so that finding nothing means that it gave up; a sticky one looks at one place alone
    const source = withGroups(regExp)
    const found = regExp.sticky ? `(?:${source})` : `[^]*?(?:${source})`
    const flags = [...regExp.flags].filter((flag) => !'gyd'.includes(flag)).join('')
    copy = limitedRegExp(`^(?:${found}|[^]*)`, flags, budget)
    limitedCopies.set(key, copy)
  }
  return exec.call(copy, text) === null
}

/** What sorting the marks on one letter costs. */
function costOfNormalizing(text: string): number {
  const lengths = text.match(/\p{M}+/gu)?.map(({ length }) => length ** 2) ?? []
  return lengths.reduce((sum, each) => sum + each, text.length)
}

type Method = (this: unknown, ...given: unknown[]) => unknown
type Holder = Record<string | symbol, Method>

/** Looks at one character, or makes a view of a part. */
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

/** The steps of one call. One that would take more than `most` is ended by an error before it takes them. */
export function countSteps(work: () => unknown, most: number): number {
  let steps = 0
  const undo: (() => void)[] = []
  let counting = true

  function count(cost: () => number): void {
    counting = false
    steps += cost()
    counting = true
    if (steps > most) throw new RangeError('too many steps')
  }

  function replace(holder: object, name: string | symbol, cost: (self: unknown, given: unknown[]) => number): void {
    const descriptor = Object.getOwnPropertyDescriptor(holder, name)
    const original = descriptor?.value as Method | undefined
    if (typeof original !== 'function' || name === 'constructor') return
    ;(holder as Holder)[name] = function (this: unknown, ...given: unknown[]) {
      if (!counting) return original.apply(this, given)
      count(() => cost(this, given))
      return original.apply(this, given)
    }
    undo.push(() => Object.defineProperty(holder, name, descriptor as PropertyDescriptor))
  }

  for (const holder of [String.prototype, Array.prototype]) {
    for (const name of Reflect.ownKeys(holder)) {
      // a name with such a function of regular expressions behind it is counted there
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
    const from = this.global || this.sticky ? this.lastIndex : 0
    // a sticky one begins at one place alone, and splitting begins one at each
    const rest = slice.call(text, from, this.sticky ? from + stickyCharacters : text.length)
    count(() => (goesBackTooOften(this, rest) ? Number.POSITIVE_INFINITY : 1))
    const match = exec.call(this, text)
    count(() => (match ? match.index + (match[0] as string).length - from : this.sticky ? 1 : rest.length))
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
