import { ExpectedError } from '../expected-error.ts'

/** Thrown instead of trying what has failed again and again a moment ago. */
export class CircuitOpen extends ExpectedError {}

/**
 * Stops asking somebody who does not answer. After `failures` in a row nothing is tried for `restMs`; then one goes ahead, and
 * the others are refused until it is known how it fared.
 */
export function createCircuitBreaker({ failures, restMs }: { failures: number; restMs: number }) {
  let failed = 0
  let restsUntil = 0

  async function run<T>(work: () => Promise<T>): Promise<T> {
    if (failed >= failures) {
      const now = performance.now()
      if (now < restsUntil) throw new CircuitOpen('nothing is tried for a moment')
      restsUntil = now + restMs
    }
    try {
      const result = await work()
      failed = 0
      return result
    } catch (err) {
      failed++
      restsUntil = performance.now() + restMs
      throw err
    }
  }

  return { run, isOpen: () => failed >= failures }
}
