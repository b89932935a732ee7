import { retryAfter } from './problems.js'

/** Sends a request: `fetch`, or a wrapper around it. */
export type Send = (request: Request) => Promise<Response>

export type RetryOptions = {
  /** The number of retries of one request; the default is 2. */
  times?: number
  /** The total wait of one request in seconds; the default is 10. A longer Retry-After is left to the caller. */
  seconds?: number
}

/**
 * Retries a request after the pause in Retry-After.
 *
 * A request with a 429 had no effect, so it is retried for every method. A request with a 503 may have had an
 * effect, so only idempotent methods are retried.
 */
export function withRetries(send: Send, { times = 2, seconds = 10 }: RetryOptions = {}): Send {
  return async (request) => {
    let left = seconds
    for (let attempt = 0; ; attempt++) {
      // a body can be sent only once, so each attempt but the last sends a copy
      const last = attempt >= times
      const response = await send(last ? request : request.clone())
      const pause = mayRetry(request, response) ? retryAfter(response) : undefined
      if (last || pause === undefined || pause > left) return response
      left -= pause
      await response.body?.cancel()
      await sleep(pause, request.signal)
    }
  }
}

const idempotent = new Set(['GET', 'HEAD', 'PUT', 'DELETE'])

function mayRetry(request: Request, response: Response): boolean {
  return response.status === 429 || (response.status === 503 && idempotent.has(request.method))
}

/** Waits. Rejects with the signal's reason when the caller aborts. */
function sleep(seconds: number, signal: AbortSignal): Promise<void> {
  return new Promise((resolve, reject) => {
    signal.throwIfAborted()
    const giveUp = () => {
      clearTimeout(timer)
      reject(signal.reason)
    }
    const timer = setTimeout(() => {
      signal.removeEventListener('abort', giveUp)
      resolve()
    }, seconds * 1000)
    signal.addEventListener('abort', giveUp, { once: true })
  })
}
