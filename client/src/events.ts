import { ProblemError } from './problems.js'
import type { Send } from './retries.js'
import type { paths, StreamedEvent } from './schema.js'

export type EventsOptions = {
  /** Goes on behind this message. Without it the stream begins now. */
  after?: string
  /** Ends the stream. The iterator then ends, too. */
  signal?: AbortSignal
}

/** `reset`: events may have been missed, so read everything that you show anew. What follows comes behind that. */
export type EventMessage = { id: string } & ({ type: 'event'; event: StreamedEvent } | { type: 'reset' })

export type EventReader = {
  /**
   * Yields what happens in the agency, for as long as the session lives. Connects again by itself and goes on where it was.
   * Throws a `ProblemError` when the server refuses, as after the end of the session.
   *
   * @example
   * for await (const message of client.events({ signal })) {
   *   if (message.type === 'reset') await readEverything()
   *   else show(message.event)
   * }
   */
  events(options?: EventsOptions): AsyncGenerator<EventMessage, void, void>
}

const path = '/api/v1/events' satisfies keyof paths
/** The server sends something every 15 seconds. A phone may not notice that its connection is gone. */
const silenceMs = 45_000
const longestPauseMs = 30_000

export function createEventReader(baseUrl: string, send: Send): EventReader {
  async function* events({ after = '', signal }: EventsOptions = {}): AsyncGenerator<EventMessage, void, void> {
    let lastId = after
    let retryMs = 1000
    for (let failures = 0; !signal?.aborted; failures++) {
      const connection = new AbortController()
      const give = () => connection.abort()
      signal?.addEventListener('abort', give, { once: true })
      try {
        const headers = { accept: 'text/event-stream', ...(lastId && { 'last-event-id': lastId }) }
        const response = await send(
          new Request(baseUrl + path, { headers, signal: connection.signal, cache: 'no-store' })
        )
        if (!response.ok) throw new ProblemError(response, await response.json().catch(() => undefined))
        for await (const { id, event, data, retry } of readMessages(response, give)) {
          failures = 0
          lastId = id ?? lastId
          retryMs = retry ?? retryMs
          if (event === 'reset') yield { id: lastId, type: 'reset' }
          else if (data !== undefined) yield { id: lastId, type: 'event', event: JSON.parse(data) }
        }
      } catch (err) {
        if (err instanceof ProblemError && err.status !== 429 && err.status < 500) throw err
      } finally {
        signal?.removeEventListener('abort', give)
        // the caller may have left the loop
        give()
      }
      await pause(Math.min(retryMs * 2 ** Math.min(failures, 5), longestPauseMs), signal)
    }
  }
  return { events }
}

type Message = { id?: string; event?: string; data?: string; retry?: number }

/** Reads messages (WHATWG HTML, 9.2.6) until the stream ends. Calls `onSilence` when nothing comes for too long. */
async function* readMessages({ body }: Response, onSilence: () => void): AsyncGenerator<Message> {
  if (!body) return
  const reader = body.pipeThrough(new TextDecoderStream()).getReader()
  let rest = ''
  for (;;) {
    const timer = setTimeout(onSilence, silenceMs)
    const { done, value } = await reader.read().finally(() => clearTimeout(timer))
    if (done) return
    const blocks = (rest + value).split('\n\n')
    rest = blocks.pop() ?? ''
    for (const block of blocks) yield readMessage(block)
  }
}

/** The server sends each field once. Lines that begin with a colon are heartbeats. */
function readMessage(block: string): Message {
  const fields = new Map(
    block.split('\n').map((line) => {
      const colon = line.indexOf(':')
      return [line.slice(0, colon), line.slice(colon + 1).replace(/^ /, '')]
    })
  )
  const [id, event, data, retry] = ['id', 'event', 'data', 'retry'].map((name) => fields.get(name))
  return {
    ...(id !== undefined && { id }),
    ...(event !== undefined && { event }),
    ...(data !== undefined && { data }),
    ...(retry !== undefined && { retry: Number(retry) })
  }
}

/** Waits, and resolves early when the caller ends the stream. */
function pause(ms: number, signal: AbortSignal | undefined): Promise<void> {
  return new Promise((resolve) => {
    if (signal?.aborted) return resolve()
    const end = () => {
      clearTimeout(timer)
      signal?.removeEventListener('abort', end)
      resolve()
    }
    const timer = setTimeout(end, ms)
    signal?.addEventListener('abort', end, { once: true })
  })
}
