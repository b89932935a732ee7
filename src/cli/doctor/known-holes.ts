import { readFileSync } from 'node:fs'

/** A hole of a product, by the versions in which it is closed. */
export type Hole = {
  product: string
  id: string
  /** How many numbers at the front of a version name its branch: 16 of 16.14, 7.4 of 7.4.9. */
  branch: number
  /** The first version of each branch without the hole. */
  fixed: readonly string[]
  source: string
}

const list = JSON.parse(readFileSync(new URL('known-holes.json', import.meta.url), 'utf8')) as {
  as_of: string
  holes: Hole[]
}

/** The day on which the list was last compared with the advisories of the products. */
export const knownHolesAsOf = list.as_of
export const knownHoles: readonly Hole[] = list.holes

const numbersOf = (version: string) => (version.match(/\d+/g) ?? []).map(Number)

function compare(one: readonly number[], other: readonly number[]): number {
  const length = Math.max(one.length, other.length)
  for (let i = 0; i < length; i++) {
    const difference = (one[i] ?? 0) - (other[i] ?? 0)
    if (difference !== 0) return difference
  }
  return 0
}

/**
 * Says whether a version has a hole. `unknown`: nobody fixed the hole in the branch of this version under the product's
 * own version numbers; a distribution may have done so without a new number.
 */
export function judge(version: string, { branch, fixed }: Hole): 'open' | 'closed' | 'unknown' {
  const numbers = numbersOf(version)
  const fixes = fixed.map(numbersOf)
  const own = fixes.find((fix) => compare(fix.slice(0, branch), numbers.slice(0, branch)) === 0)
  if (own) return compare(numbers, own) < 0 ? 'open' : 'closed'
  return fixes.every((fix) => compare(numbers, fix) > 0) ? 'closed' : 'unknown'
}

/** The open holes of a version, as text for a report, and those of which nothing is known. */
export function findHoles(
  holes: readonly Hole[],
  product: string,
  version: string
): { open: string | undefined; unknown: string | undefined } {
  const judged = holes
    .filter((hole) => hole.product === product)
    .map((hole) => ({ hole, verdict: judge(version, hole) }))
  const open = judged.filter(({ verdict }) => verdict === 'open').map(({ hole }) => hole)
  const unknown = judged.filter(({ verdict }) => verdict === 'unknown').map(({ hole }) => hole)
  const describe = ({ id, fixed, source }: Hole) => `${id} (closed in ${fixed.join(', ')}; ${source})`
  return {
    open: open.length > 0 ? `${product} ${version} has ${open.map(describe).join(', ')}` : undefined,
    unknown:
      unknown.length > 0
        ? `${product} ${version} is of a branch for which only distributions fix ${unknown.map(({ id }) => id).join(', ')}: see the advisories of yours`
        : undefined
  }
}
