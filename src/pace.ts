import { requestTimeout } from './errors.ts'

/** Slower than any network that people still use: whoever is holds a place that others wait for. */
const slowest = { bytes_per_second: 1024, grace_ms: 60_000 }

/**
 * Passes a content on as long as it comes fast enough on average. Only the time in which the sender is waited for counts, and not
 * that in which the sender waits. Throws `request_timeout`.
 */
export async function* inPace(content: AsyncIterable<Buffer>, limits = slowest): AsyncGenerator<Buffer> {
  let waitedMs = 0
  let bytes = 0
  let waitingSince = performance.now()
  for await (const chunk of content) {
    waitedMs += performance.now() - waitingSince
    bytes += chunk.length
    if (waitedMs > limits.grace_ms && bytes < (waitedMs / 1000) * limits.bytes_per_second) throw requestTimeout()
    yield chunk
    waitingSince = performance.now()
  }
}
