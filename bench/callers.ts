import { Agent, request as send } from 'node:http'
import { setTimeout as sleep } from 'node:timers/promises'
import type { HttpRequest } from './load.ts'
import type { Server } from './servers.ts'
import { quantile } from './statistics.ts'

/*
 * HTTP clients whose next request depends on the last reply, which wrk does not support. Each caller sends its next
 * request when it has the reply.
 */

export type Reply = { status: number; body: string }

/** Makes a caller's next request from its last reply, which is undefined at first. Throws when the reply is wrong. */
export type NextRequest = (last: Reply | undefined) => HttpRequest

/** The results of all callers together. Latencies in milliseconds. */
export type Called = { replies: number; perSecond: number; p50: number; p99: number }

/** Runs the callers for a time. Each waits `pauseMs` between a reply and its next request. */
export async function runCallers(
  server: Server,
  callers: NextRequest[],
  seconds: number,
  pauseMs = 0
): Promise<Called> {
  const agent = new Agent({ keepAlive: true, maxSockets: callers.length })
  const latencies: number[] = []
  const startedAt = performance.now()
  const deadline = startedAt + seconds * 1000

  async function run(next: NextRequest): Promise<void> {
    let last: Reply | undefined
    do {
      const request = next(last)
      const sentAt = performance.now()
      last = await exchange(server, agent, request)
      latencies.push(performance.now() - sentAt)
      if (pauseMs > 0) await sleep(pauseMs)
    } while (performance.now() < deadline)
    // checks the last reply too
    next(last)
  }

  await Promise.all(callers.map(run))
  const elapsed = (performance.now() - startedAt) / 1000
  agent.destroy()
  return {
    replies: latencies.length,
    perSecond: latencies.length / elapsed,
    p50: quantile(latencies, 0.5),
    p99: quantile(latencies, 0.99)
  }
}

function exchange({ port }: Server, agent: Agent, { method, path, headers, body }: HttpRequest): Promise<Reply> {
  return new Promise((resolve, reject) => {
    const outgoing = send({ host: '127.0.0.1', port, method, path, headers, agent }, (incoming) => {
      let text = ''
      incoming.setEncoding('utf8').on('data', (chunk: string) => {
        text += chunk
      })
      incoming.on('end', () => resolve({ status: incoming.statusCode ?? 0, body: text }))
    })
    outgoing.on('error', reject)
    outgoing.end(body)
  })
}

export function postJson(path: string, host: string, content: object): HttpRequest {
  const body = JSON.stringify(content)
  const headers = { host, 'content-type': 'application/json', 'content-length': String(Buffer.byteLength(body)) }
  return { method: 'POST', path, headers, body }
}

/** Throws unless the reply is a 200. */
export function requireOk(reply: Reply): void {
  if (reply.status !== 200) throw new Error(`answered ${reply.status}: ${reply.body}`)
}
