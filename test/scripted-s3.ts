import { createHash, randomUUID } from 'node:crypto'
import { once } from 'node:events'
import http, { type IncomingMessage, type ServerResponse } from 'node:http'
import { buffer } from 'node:stream/consumers'
import type { Test } from 'tap'
import type { Environment } from '../src/config/environment.ts'
import type { S3Settings } from '../src/files/store/s3.ts'

/*
 * An S3 server for tests. It keeps objects in memory, checks no signature, and fails on demand.
 */

/**
 * A request. `what` is one of `PUT object`, `GET object`, `HEAD object`, `POST uploads`, `PUT part`, `POST complete`,
 * `GET list` …
 */
export type Call = { what: string; key: string; request: IncomingMessage; reply: ServerResponse; obey(): Promise<void> }
/** Handles a request in place of the server. It may call `obey` for the ordinary answer, or never answer. */
export type Fault = (call: Call) => unknown

export type ScriptedS3 = {
  environment: Environment
  settings: S3Settings
  objects: Map<string, { content: Buffer; modified_at: Date }>
  uploads: Map<string, Map<number, Buffer>>
  /** The `what` of every request, in order. */
  calls: string[]
  /** From now on `fault` handles every request whose `what` begins with this text. */
  fail(what: string, fault: Fault): void
  heal(): void
}

export const refusal =
  (status: number, code: string): Fault =>
  async ({ request, reply }) => {
    request.resume()
    reply.writeHead(status, { 'content-type': 'application/xml' })
    reply.end(`<?xml version="1.0"?><Error><Code>${code}</Code><Message>as told</Message></Error>`)
  }
/** Resets the connection after it has received so many bytes. */
export const reset =
  (afterBytes = 0): Fault =>
  async ({ request }) => {
    let read = 0
    if (afterBytes > 0) {
      for await (const chunk of request) {
        read += chunk.length
        if (read >= afterBytes) break
      }
    }
    request.socket.resetAndDestroy()
  }
/** Carries out the request, and resets the connection instead of answering. */
export const lostReply: Fault = async ({ obey, reply, request }) => {
  Object.assign(reply, { end: () => request.socket.resetAndDestroy(), writeHead: () => reply })
  await obey()
}
export const silence: Fault = () => {}

export async function startScriptedS3(t: Test): Promise<ScriptedS3> {
  const bucket = 'aggios'
  const faults = new Map<string, Fault>()
  const objects: ScriptedS3['objects'] = new Map()
  const uploads: ScriptedS3['uploads'] = new Map()
  const calls: string[] = []
  const tagOf = (content: Buffer) => `"${createHash('md5').update(content).digest('hex')}"`

  async function obey(
    what: string,
    key: string,
    query: URLSearchParams,
    request: IncomingMessage,
    reply: ServerResponse
  ) {
    const say = (text = '', status = 200, headers = {}) => void reply.writeHead(status, headers).end(text)
    const missing = (code: string) => refusal(404, code)({ what, key, request, reply, obey: async () => {} })
    const upload = uploads.get(query.get('uploadId') ?? '')
    const object = objects.get(key)
    switch (what) {
      case 'HEAD bucket':
        return say()
      case 'GET list': {
        const after = query.get('start-after') ?? ''
        const keys = [...objects.keys()].sort().filter((each) => each > after)
        const shown = keys.slice(0, Number(query.get('max-keys'))).map((each) => {
          const { content, modified_at } = objects.get(each) as { content: Buffer; modified_at: Date }
          const facts = `<Size>${content.length}</Size><LastModified>${modified_at.toISOString()}</LastModified>`
          return `<Contents><Key>${encodeURIComponent(each)}</Key>${facts}<ETag>x</ETag></Contents>`
        })
        const truncated = shown.length < keys.length
        return say(`<ListBucketResult><IsTruncated>${truncated}</IsTruncated>${shown.join('')}</ListBucketResult>`)
      }
      case 'PUT object': {
        const content = await buffer(request)
        objects.set(key, { content, modified_at: new Date() })
        return say('', 200, { etag: tagOf(content) })
      }
      case 'GET object':
      case 'HEAD object': {
        if (!object) return what === 'HEAD object' ? say('', 404) : missing('NoSuchKey')
        const [, start, end] = /bytes=(\d+)-(\d+)/.exec(request.headers.range ?? '') ?? []
        const part = start === undefined ? object.content : object.content.subarray(Number(start), Number(end) + 1)
        const status = start === undefined ? 200 : 206
        reply.writeHead(status, { 'content-length': part.length, 'last-modified': object.modified_at.toUTCString() })
        return void reply.end(what === 'GET object' ? part : undefined)
      }
      case 'DELETE object':
        objects.delete(key)
        return say('', 204)
      case 'POST uploads': {
        const id = randomUUID()
        uploads.set(id, new Map())
        return say(`<InitiateMultipartUploadResult><UploadId>${id}</UploadId></InitiateMultipartUploadResult>`)
      }
      case 'PUT part': {
        const content = await buffer(request)
        if (!upload) return missing('NoSuchUpload')
        upload.set(Number(query.get('partNumber')), content)
        return say('', 200, { etag: tagOf(content) })
      }
      case 'POST complete': {
        const wanted = String(await buffer(request)).match(/<ETag>[^<]*/g) ?? []
        if (!upload) return missing('NoSuchUpload')
        const parts = [...upload].sort(([a], [b]) => a - b).map(([, content]) => content)
        const same = wanted.every((tag, index) => tagOf(parts[index] as Buffer).includes(tag.slice('<ETag>'.length)))
        if (!same) return refusal(400, 'InvalidPart')({ what, key, request, reply, obey: async () => {} })
        objects.set(key, { content: Buffer.concat(parts), modified_at: new Date() })
        uploads.delete(query.get('uploadId') as string)
        const made = `<Location>x</Location><Bucket>${bucket}</Bucket><Key>${key}</Key><ETag>x</ETag>`
        return say(`<CompleteMultipartUploadResult>${made}</CompleteMultipartUploadResult>`)
      }
      case 'DELETE upload':
        if (!uploads.delete(query.get('uploadId') as string)) return missing('NoSuchUpload')
        return say('', 204)
      default:
        return say('', 501)
    }
  }

  const server = http.createServer(async (request, reply) => {
    const { pathname, searchParams } = new URL(request.url ?? '', 'http://localhost')
    const key = decodeURIComponent(pathname.split('/').slice(2).join('/'))
    const noun = nounOf(request.method as string, key, searchParams)
    const what = `${request.method} ${noun}`
    calls.push(what)
    request.on('error', () => {})
    const [, fault] = [...faults].find(([begin]) => what.startsWith(begin)) ?? []
    const obeyed = () => obey(what, key, searchParams, request, reply) as Promise<void>
    const answered = fault ? fault({ what, key, request, reply, obey: obeyed }) : obeyed()
    await Promise.resolve(answered).catch(() => reply.destroy())
  })
  server.listen(0, '127.0.0.1')
  await once(server, 'listening')
  t.teardown(() => {
    server.close()
    server.closeAllConnections()
  })
  const { port } = server.address() as { port: number }
  const endpoint = `http://127.0.0.1:${port}`
  const settings = { endpoint, public_endpoint: undefined, region: 'us-east-1', bucket }
  return {
    environment: { S3_ENDPOINT: endpoint, S3_BUCKET: bucket, S3_ACCESS_KEY: 'key', S3_SECRET_KEY: 'secret' },
    settings: { ...settings, access_key: 'key', secret_key: 'secret' },
    objects,
    uploads,
    calls,
    fail: (what, fault) => void faults.set(what, fault),
    heal: () => faults.clear()
  }
}

function nounOf(method: string, key: string, query: URLSearchParams): string {
  if (key === '') return method === 'GET' ? 'list' : 'bucket'
  if (query.has('uploads')) return 'uploads'
  if (!query.has('uploadId')) return 'object'
  return { PUT: 'part', POST: 'complete' }[method] ?? 'upload'
}
