import { setTimeout as sleep } from 'node:timers/promises'
import { ConnectFailure } from './failures.ts'

/** How long a starting process waits for its database. */
export const startTimeoutMs = 30_000
const firstPauseMs = 100
const longestPauseMs = 2000

/** PostgreSQL is starting, stopping or in recovery, or has no free connection: a later attempt may succeed. */
const transientStates = /^(?:08|57P0[123]|53300)/
const transientMessages = /^(?:Connection terminated|timeout exceeded when trying to connect|timeout expired)/

/**
 * Connects as soon as the database is reachable. Containers and machines start in any order, so attempts are repeated with
 * growing pauses for `timeoutMs`. `onWait` is called once, with the first error.
 *
 * Rejects at once when waiting would not help: a wrong password, a missing database or role, a bad certificate.
 */
export async function connectWhenUp<T>(
  connect: () => Promise<T>,
  onWait: (err: unknown) => void,
  timeoutMs = startTimeoutMs
): Promise<T> {
  const deadline = Date.now() + timeoutMs
  for (let pauseMs = firstPauseMs, waited = false; ; pauseMs = Math.min(pauseMs * 2, longestPauseMs)) {
    try {
      return await connect()
    } catch (err) {
      if (!isTransient(err) || Date.now() + pauseMs > deadline) throw err
      if (!waited) onWait(err)
      waited = true
    }
    await sleep(pauseMs)
  }
}

function isTransient(err: unknown): boolean {
  if (err instanceof ConnectFailure) return isTransient(err.cause)
  // a host name with several addresses gives one error for each
  if (err instanceof AggregateError) return err.errors.some(isTransient)
  const { code = '', syscall, message } = err as { code?: string; syscall?: string; message: string }
  return syscall !== undefined || transientStates.test(code) || transientMessages.test(message)
}
