import { setTimeout as sleep } from 'node:timers/promises'
import { ConnectFailure } from './failures.ts'

/** For how long a process that starts waits for its database. */
export const startTimeoutMs = 30_000
const firstPauseMs = 100
const longestPauseMs = 2000

/** PostgreSQL is starting, stopping or in recovery, or has no connection left: the next attempt may get one. */
const transientStates = /^(?:08|57P0[123]|53300)/
const transientMessages = /^(?:Connection terminated|timeout exceeded when trying to connect|timeout expired)/

/**
 * Connects as soon as the database can be reached. Containers and machines start in any order, so a database that is not there
 * yet is waited for, half a minute at most and with growing pauses; `onWait` hears once why.
 *
 * Rejects at once for what waiting does not mend: a wrong password, a database or role that is not there, a certificate.
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
  // where a name has several addresses, each has an error of its own
  if (err instanceof AggregateError) return err.errors.some(isTransient)
  const { code = '', syscall, message } = err as { code?: string; syscall?: string; message: string }
  return syscall !== undefined || transientStates.test(code) || transientMessages.test(message)
}
