import { appendFileSync, mkdirSync } from 'node:fs'
import http from 'node:http'
import { join, resolve } from 'node:path'
import type { FastifyInstance, InjectOptions, LightMyRequestResponse } from 'fastify'

/*
 * Records the requests of tests that succeed, for the WAF: what it must let through. `TEST_TRAFFIC=<folder> npm test` writes a file for
 * each process, and test/waf.test.ts replays them. Loaded as a module of its own, it records all of a server's process.
 */

/** A request that the product has answered with a status below 400. Long bodies are cut, because they are files. */
export type Recorded = { method: string; url: string; headers: Record<string, string>; body: string }

export const longestBody = 8192
const folder = process.env.TEST_TRAFFIC && resolve(process.env.TEST_TRAFFIC)

/** `inject` also takes headers that no client can put on a socket. */
function isSendable({ headers }: Recorded): boolean {
  try {
    for (const [name, value] of Object.entries(headers)) http.validateHeaderValue(name, value)
    return true
  } catch {
    return false
  }
}

function write(request: Recorded): void {
  if (!folder || !request.url.startsWith('/api/') || !isSendable(request)) return
  mkdirSync(folder, { recursive: true })
  appendFileSync(join(folder, `${process.pid}.jsonl`), `${JSON.stringify(request)}\n`)
}

/** Records what is sent to an application, by `inject` and over sockets. */
export function recordTraffic(app: FastifyInstance): void {
  if (!folder) return
  const inject = app.inject.bind(app) as (options: InjectOptions) => Promise<LightMyRequestResponse>
  const recording = async (options: InjectOptions | string) => {
    const request = typeof options === 'string' ? { url: options } : options
    const reply = await inject(request)
    if (reply.statusCode < 400) write(describe(request))
    return reply
  }
  Object.assign(app, { inject: recording })
  recordServer(app.server)
}

function describe({ method = 'GET', url = '/', headers = {}, payload, body = payload }: InjectOptions): Recorded {
  const address = typeof url === 'string' ? url : (url.pathname ?? '/')
  const isBytes = typeof body === 'string' || Buffer.isBuffer(body)
  const isStream = typeof (body as { pipe?: unknown } | undefined)?.pipe === 'function'
  const bytes = isBytes ? Buffer.from(body) : Buffer.from(body === undefined || isStream ? '' : JSON.stringify(body))
  const sent = Object.entries(headers).map(([name, value]) => [name.toLowerCase(), String(value)])
  const json = body !== undefined && !isBytes && !isStream ? { 'content-type': 'application/json' } : {}
  return {
    method,
    url: address,
    headers: { ...json, ...Object.fromEntries(sent) },
    body: bytes.subarray(0, longestBody).toString('base64')
  }
}

/** Records the requests of a server. Their bodies are seen as they are read, so that nothing flows faster. */
function recordServer(server: http.Server): void {
  server.prependListener('request', (request: http.IncomingMessage, reply: http.ServerResponse) => {
    const chunks: Buffer[] = []
    let length = 0
    const push = request.push.bind(request)
    request.push = (chunk: Buffer | null, encoding?: BufferEncoding) => {
      if (chunk && length < longestBody) chunks.push(Buffer.from(chunk))
      length += chunk?.length ?? 0
      return push(chunk, encoding)
    }
    // the product rewrites addresses
    const { url = '', method = 'GET', headers } = request
    reply.once('finish', () => {
      if (reply.statusCode >= 400) return
      const sent = Object.entries(headers).map(([name, value]) => [name, String(value)])
      const body = Buffer.concat(chunks).subarray(0, longestBody).toString('base64')
      write({ method, url, headers: Object.fromEntries(sent), body })
    })
  })
}

/** With these a server that a test starts as a process is recorded. */
export const recorder = !folder
  ? { args: [], env: {} }
  : { args: ['--import', import.meta.filename], env: { TEST_TRAFFIC: folder } }

if (folder && process.execArgv.includes(import.meta.filename)) {
  const listen = http.Server.prototype.listen
  http.Server.prototype.listen = function (this: http.Server, ...args: unknown[]) {
    recordServer(this)
    return (listen as (...args: unknown[]) => http.Server).apply(this, args)
  } as typeof listen
}
