import { retryAfter } from './problems.js'

/** What sends a request: `fetch` itself, or something around it. */
export type Send = (request: Request) => Promise<Response>

export type RetryOptions = {
  /** How often one request is repeated; 2 unless told. */
  times?: number
  /** How many seconds one request may wait in all; 10 unless told. A longer Retry-After is the caller's to wait for. */
  seconds?: number
}

/**
 * Repeats a request after the pause that the server asks for.
 *
 * A 429 was refused before it had any effect, so any method is repeated. A 503 may come after one, so only methods that
 * may be sent twice are.
 */
export function withRetries(send: Send, { times = 2, seconds = 10 }: RetryOptions = {}): Send {
  return async (request) => {
    let left = seconds
    for (let attempt = 0; ; attempt++) {
      // a body can be read once, so each attempt but the last sends a copy
      const last = attempt >= times
      const response = await send(last ? request : request.clone())
      const pause = mayRepeat(request, response) ? retryAfter(response) : undefined
      if (last || pause === undefined || pause > left) return response
      left -= pause
      await response.body?.cancel()
      await sleep(pause, request.signal)
    }
  }
}

const repeatable = new Set(['GET', 'HEAD', 'PUT', 'DELETE'])

function mayRepeat(request: Request, response: Response): boolean {
  return response.status === 429 || (response.status === 503 && repeatable.has(request.method))
}

/** Rejects with the signal's reason when the caller gives up meanwhile. */
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
