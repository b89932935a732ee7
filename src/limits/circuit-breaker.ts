import { ExpectedError } from '../expected-error.ts'

/** Thrown instead of a call while the circuit is open. */
export class CircuitOpen extends ExpectedError {}

/**
 * A circuit breaker for a service that does not answer. After `failures` failed calls in a row the circuit is open:
 * calls fail with CircuitOpen for `cooldownMs`. Then one trial call goes through, and the others keep failing until the
 * trial has settled.
 */
export function createCircuitBreaker({ failures, cooldownMs }: { failures: number; cooldownMs: number }) {
  let failed = 0
  let openUntil = 0

  async function run<T>(work: () => Promise<T>): Promise<T> {
    if (failed >= failures) {
      const now = performance.now()
      if (now < openUntil) throw new CircuitOpen('nothing is tried for a moment')
      openUntil = now + cooldownMs
    }
    try {
      const result = await work()
      failed = 0
      return result
    } catch (err) {
      failed++
      openUntil = performance.now() + cooldownMs
      throw err
    }
  }

  return { run, isOpen: () => failed >= failures }
}
