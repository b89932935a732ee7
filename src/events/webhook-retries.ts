/*
 * When a delivery that failed is tried again, and how long its endpoint is left alone.
 */

const minute = 60
const hour = 60 * minute

/** Seconds from a failed attempt to the next one, as Standard Webhooks suggests: ten attempts in three days and four hours. */
const delays = [5, 5 * minute, 30 * minute, 2 * hour, 5 * hour, 10 * hour, 14 * hour, 20 * hour, 24 * hour]
export const maxWebhookAttempts = delays.length + 1
/** A delay is longer by up to a tenth, so that deliveries that failed together are not all tried at once. */
const jitter = 0.1
const maxRetryAfterSeconds = 24 * hour

/** An endpoint is left alone for a second after a failure, and twice as long after each further one, up to a minute. */
const maxPauseSeconds = minute
/** For how long an endpoint may ask to be left alone altogether. */
const maxAskedPauseSeconds = hour

/** An endpoint is switched off when it has only failed for so long. */
export const failingDays = 3

/**
 * Seconds until the next attempt after the `attempts`-th one, or undefined when it was the last. `retryAfter`: the seconds that
 * the endpoint asks for. It makes the delay longer, to a day at most, and never shorter.
 */
export function retryDelay(
  attempts: number,
  retryAfter: number | undefined,
  random: () => number = Math.random
): number | undefined {
  const delay = delays[attempts - 1]
  if (delay === undefined) return undefined
  return Math.max(delay * (1 + jitter * random()), Math.min(retryAfter ?? 0, maxRetryAfterSeconds))
}

/** Seconds in which nothing is sent to an endpoint after its `failures`-th failure in a row. */
export function endpointPause(failures: number, retryAfter: number | undefined): number {
  const pause = Math.min(2 ** (failures - 1), maxPauseSeconds)
  return Math.max(pause, Math.min(retryAfter ?? 0, maxAskedPauseSeconds))
}

/** The seconds of a `Retry-After` header, which is a number or a date. Undefined for anything else. */
export function readRetryAfter(value: string | undefined, now: number = Date.now()): number | undefined {
  if (value === undefined) return undefined
  if (/^\d{1,10}$/.test(value)) return Number(value)
  const at = Date.parse(value)
  return Number.isNaN(at) || !/[a-z]/i.test(value) ? undefined : Math.max(0, Math.ceil((at - now) / 1000))
}
