import type { Test } from 'tap'

/*
 * Compares how long replies take, to show that the time of a reply tells no kind of request from another.
 */

export const medianOf = (times: number[]) => times.toSorted((a, b) => a - b)[Math.floor(times.length / 2)] as number

/** The probability, by the rank-sum test of Mann and Whitney, that two samples of one distribution differ as much. */
export function rankSumProbability(one: number[], two: number[]): number {
  const all = [...one.map((time) => ({ time, mine: true })), ...two.map((time) => ({ time, mine: false }))]
  all.sort((a, b) => a.time - b.time)
  const ranks = all.reduce((sum, { mine }, index) => sum + (mine ? index + 1 : 0), 0)
  const u = ranks - (one.length * (one.length + 1)) / 2
  const mean = (one.length * two.length) / 2
  const deviation = Math.sqrt((one.length * two.length * (one.length + two.length + 1)) / 12)
  const z = Math.abs(u - mean) / deviation
  // the tail of the normal distribution (Abramowitz and Stegun, 26.2.17)
  const k = 1 / (1 + 0.2316419 * z)
  const density = Math.exp((-z * z) / 2) / Math.sqrt(2 * Math.PI)
  const terms = [0.31938153, -0.356563782, 1.781477937, -1.821255978, 1.330274429]
  return 2 * density * terms.reduce((sum, term, power) => sum + term * k ** (power + 1), 0)
}

/** The requests of a comparison. `i` counts from 1 through all of its rounds, so that each can be about somebody else. */
export type Kinds = Record<string, (i: number) => Promise<unknown>>
export type Comparison = { pair: [string, string]; difference: number; p: number }

const maxDifferenceMs = 5
const minProbability = 0.01

/** Whether nobody who has seen this would say that the two kinds differ. */
export const isSame = ({ difference, p }: Comparison) => difference < maxDifferenceMs && p > minProbability

const shuffled = <T>(values: T[]): T[] =>
  values
    .map((value) => ({ value, key: Math.random() }))
    .sort((a, b) => a.key - b.key)
    .map(({ value }) => value)

/** Sends requests of each kind, `n` rounds in random order, and compares every two kinds. */
export async function compare(kinds: Kinds, n: number, firstRound = 1): Promise<Comparison[]> {
  const names = Object.keys(kinds)
  const times = new Map(names.map((name) => [name, [] as number[]]))
  for (let i = firstRound; i < firstRound + n; i++) {
    for (const name of shuffled(names)) {
      const startedAt = performance.now()
      await kinds[name]?.(i)
      times.get(name)?.push(performance.now() - startedAt)
    }
  }
  return names.flatMap((one, index) =>
    names.slice(index + 1).map((other) => {
      const [first, second] = [times.get(one) as number[], times.get(other) as number[]]
      const difference = Math.abs(medianOf(first) - medianOf(second))
      return { pair: [one, other] as [string, string], difference, p: rankSumProbability(first, second) }
    })
  )
}

/** How often a pair that seems to differ is measured again: equal kinds seem to once in a hundred times. */
const repeats = 3
export const roundsOf = (n: number) => n * (1 + repeats)

/**
 * Asserts that no two kinds can be told apart by 400 requests of each. A pair that seems to differ is measured again, and
 * fails when it always does.
 */
export async function assertSame(t: Test, kinds: Kinds, n = 400): Promise<void> {
  for (let comparison of await compare(kinds, n)) {
    const [one, other] = comparison.pair
    const both = Object.fromEntries(comparison.pair.map((name) => [name, kinds[name]])) as Kinds
    for (let again = 1; again <= repeats && !isSame(comparison); again++) {
      comparison = (await compare(both, n, 1 + again * n))[0] as Comparison
    }
    const { difference, p } = comparison
    t.ok(isSame(comparison), `${one}, ${other}: medians differ by ${difference.toFixed(2)} ms, p = ${p.toFixed(3)}`)
  }
}
