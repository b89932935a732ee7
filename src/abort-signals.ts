/** Resolves and rejects with the promise, or rejects with the signal's reason when the signal is aborted first. */
export function rejectOnAbort<T>(signal: AbortSignal | undefined, promise: Promise<T>): Promise<T> {
  if (!signal) return promise
  return new Promise((resolve, reject) => {
    const abort = () => reject(signal.reason)
    if (signal.aborted) abort()
    signal.addEventListener('abort', abort, { once: true })
    promise.then(resolve, reject).finally(() => signal.removeEventListener('abort', abort))
  })
}

/**
 * Yields the chunks of `content` until the signal is aborted, and then throws the signal's reason. An abort also
 * interrupts the wait for the next chunk.
 */
export async function* throwOnAbort(
  signal: AbortSignal | undefined,
  content: AsyncIterable<Buffer>
): AsyncGenerator<Buffer> {
  const source = content[Symbol.asyncIterator]()
  let isReading = false
  try {
    for (;;) {
      isReading = true
      const next = await rejectOnAbort(signal, source.next())
      isReading = false
      if (next.done) return
      yield next.value
    }
  } finally {
    // return() would wait for a pending next(), which may never settle
    if (!isReading) await source.return?.()
  }
}
