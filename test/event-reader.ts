import { once } from 'node:events'
import http from 'node:http'
import type { Owner } from './harness.ts'

/*
 * Reads the stream of events as a browser would: by the rules of the HTML standard (9.2.6), with a real socket.
 */

export type Message = { id: string; event: string; data: Record<string, unknown> }

export type Reader = {
  status: number
  headers: http.IncomingHttpHeaders
  /** Everything that has arrived. */
  text(): string
  /** The complete messages, without those that only set the id. */
  messages: Message[]
  /** What the reader resumes by. */
  lastId(): string
  /** Resolves when the stream has ended, by whichever side. */
  ended: Promise<void>
  isOpen(): boolean
  /** Takes no more bytes, or does again. */
  pause(): void
  resume(): void
  close(): void
}

export type Connection = {
  port: number
  host: string
  token: string
  lastId?: string
  path?: string
  agent?: http.Agent
}

/** Opens a stream. Resolves when the headers have arrived. */
export async function openEvents(
  t: Owner,
  { port, host, token, lastId, path = '/api/v1/events', agent }: Connection
): Promise<Reader> {
  const request = http.get({
    host: '127.0.0.1',
    port,
    path,
    agent: agent ?? false,
    headers: {
      host,
      accept: 'text/event-stream',
      authorization: `Bearer ${token}`,
      ...(lastId !== undefined && { 'last-event-id': lastId })
    }
  })
  request.on('error', () => {})
  t.teardown(() => request.destroy())
  const [reply] = (await once(request, 'response')) as [http.IncomingMessage]
  const parser = createParser()
  let text = ''
  let isOpen = true
  reply.setEncoding('utf8')
  reply.on('data', (chunk: string) => {
    text += chunk
    parser.take(chunk)
  })
  reply.on('error', () => {})
  const ended = new Promise<void>((resolve) => {
    reply.once('close', () => {
      isOpen = false
      resolve()
    })
  })
  return {
    ...{ status: reply.statusCode ?? 0, headers: reply.headers, text: () => text, ended, isOpen: () => isOpen },
    ...{ messages: parser.messages, lastId: parser.lastId },
    pause: () => void reply.pause(),
    resume: () => void reply.resume(),
    close: () => void request.destroy()
  }
}

/** Reads messages, however their bytes are cut. */
export function createParser() {
  const messages: Message[] = []
  let rest = ''
  let lastId = ''

  function readBlock(block: string): void {
    const fields: Record<string, string> = {}
    for (const line of block.split('\n')) {
      const colon = line.indexOf(':')
      if (colon > 0) fields[line.slice(0, colon)] = line.slice(colon + 1).replace(/^ /, '')
    }
    if (fields.id !== undefined) lastId = fields.id
    if (fields.data === undefined) return
    messages.push({ id: lastId, event: fields.event ?? 'message', data: JSON.parse(fields.data) })
  }

  return {
    messages,
    lastId: () => lastId,
    take(chunk: string): void {
      const blocks = (rest + chunk).split('\n\n')
      rest = blocks.pop() ?? ''
      for (const block of blocks) readBlock(block)
    }
  }
}
