import { execFile } from 'node:child_process'
import { writeFileSync } from 'node:fs'
import { join } from 'node:path'
import { promisify } from 'node:util'
import autocannon from 'autocannon'
import { adopt, scratch } from './children.ts'
import { findProgram } from './servers.ts'

export type HttpRequest = {
  method: 'GET' | 'POST' | 'PATCH'
  path: string
  headers: Record<string, string>
  /** In the body of a load, `counterMark` becomes a number that is another one in each request of a run. */
  body?: string
}

export const counterMark = '########'

/** A load: requests, connections and duration. */
export type Drive = { port: number; requests: HttpRequest[]; connections: number; seconds: number }

/** The results of a load. Latencies in milliseconds. */
export type Driven = { replies: number; refused: number; perSecond: number; p50: number; p99: number }

export type LoadGenerator = {
  name: string
  /**
   * Sends the requests in turn, beginning with the first. Each connection sends its next request when it has the reply.
   */
  drive(drive: Drive): Promise<Driven>
}

/** Chooses wrk where it is installed, else autocannon. A run uses one load generator for all measurements. */
export function chooseLoadGenerator(): LoadGenerator {
  const wrk = findProgram('wrk')
  return wrk ? { name: 'wrk', drive: (drive) => driveWrk(wrk, drive) } : { name: 'autocannon', drive: driveAutocannon }
}

const script = (requests: HttpRequest[]) => `
local requests = {
${requests.map((request) => `  ${luaText(asText(request))}`).join(',\n')}
}
local turn = 0
local count = ${nextCount()}
function request()
  turn = turn % #requests + 1
  local text = requests[turn]
  if not text:find('${counterMark}', 1, true) then return text end
  count = count + 1
  return (text:gsub('${counterMark}', string.format('%08d', count)))
end
function done(summary, latency, requests)
  local refused = summary.errors.status + summary.errors.connect + summary.errors.read + summary.errors.write +
    summary.errors.timeout
  io.write(string.format('\\nmeasured %d %d %f %f %f\\n', summary.requests, refused,
    summary.requests / summary.duration * 1e6, latency:percentile(50) / 1e3, latency:percentile(99) / 1e3))
end
`

/** Each load counts in its own range. */
let loads = 0
const nextCount = () => (loads++ % 1_000) * 100_000

function asText({ method, path, headers, body = '' }: HttpRequest): string {
  const length = body === '' ? {} : { 'content-length': String(Buffer.byteLength(body)) }
  const lines = Object.entries({ ...headers, ...length }).map(([name, value]) => `${name}: ${value}`)
  return `${method} ${path} HTTP/1.1\r\n${lines.join('\r\n')}\r\n\r\n${body}`
}

/** Quotes a text for Lua. Bytes other than printable ASCII become decimal escapes. */
function luaText(text: string): string {
  const escaped = [...Buffer.from(text)].map((byte) =>
    byte < 32 || byte > 126 || byte === 34 || byte === 92
      ? `\\${String(byte).padStart(3, '0')}`
      : String.fromCharCode(byte)
  )
  return `"${escaped.join('')}"`
}

async function driveWrk(wrk: string, { port, requests, connections, seconds }: Drive): Promise<Driven> {
  const file = join(scratch, 'requests.lua')
  writeFileSync(file, script(requests))
  const args = ['-t1', `-c${connections}`, `-d${seconds}s`, '-s', file, `http://127.0.0.1:${port}`]
  const running = promisify(execFile)(wrk, args)
  adopt(running.child)
  const { stdout } = await running
  const figures = /^measured (.+)$/m.exec(stdout)?.[1]?.split(' ').map(Number)
  if (!figures) throw new Error(`wrk said:\n${stdout}`)
  const [replies = 0, refused = 0, perSecond = 0, p50 = 0, p99 = 0] = figures
  return { replies, refused, perSecond, p50, p99 }
}

async function driveAutocannon({ port, requests, connections, seconds }: Drive): Promise<Driven> {
  let opened = 0
  let count = nextCount()
  const counted = (request: HttpRequest) => {
    if (!request.body?.includes(counterMark)) return request
    const setupRequest = (outgoing: object) => {
      const number = String(++count).padStart(counterMark.length, '0')
      return { ...outgoing, body: request.body?.replace(counterMark, number) }
    }
    return { ...request, setupRequest }
  }
  const result = await autocannon({
    url: `http://127.0.0.1:${port}`,
    connections,
    duration: seconds,
    // by default each connection sends the whole list, so that all connections send the same request at the same time
    setupClient(client) {
      const first = opened++ % Math.min(connections, requests.length)
      client.setRequests(requests.filter((_, index) => index % connections === first).map(counted))
    }
  })
  return {
    replies: result.requests.total,
    // 304 is a success; `errors` includes timeouts
    refused: result['4xx'] + result['5xx'] + result.errors,
    perSecond: result.requests.average,
    p50: result.latency.p50,
    p99: result.latency.p99
  }
}
