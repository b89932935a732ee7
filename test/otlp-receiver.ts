import { createServer, type IncomingHttpHeaders } from 'node:http'
import type { AddressInfo } from 'node:net'
import { gunzipSync } from 'node:zlib'
import type { Owner } from './harness.ts'

export type ReceivedSpan = {
  traceId: string
  spanId: string
  parentSpanId: string | undefined
  name: string
  kind: number
  attributes: Record<string, unknown>
  failed: boolean
}

/** An event as Sentry gets it, with how it came. */
export type ReceivedEvent = {
  path: string
  auth: string
  item: string
  level: string
  exception: { values: { type: string; value: string; stacktrace: { frames: { in_app: boolean }[] } }[] }
  [member: string]: unknown
}

type Wire = {
  resourceSpans: {
    resource: { attributes: { key: string; value: Record<string, unknown> }[] }
    scopeSpans: {
      spans: (Omit<ReceivedSpan, 'attributes' | 'failed'> & {
        attributes: { key: string; value: Record<string, unknown> }[]
        status: { code?: number }
      })[]
    }[]
  }[]
}

export type OtlpReceiver = Awaited<ReturnType<typeof startOtlpReceiver>>

/**
 * A receiver of OTLP over HTTP, in JSON, as a collector is one, and of the events of Sentry. It can be told to refuse, or to
 * say nothing.
 */
export async function startOtlpReceiver(t: Owner) {
  const spans: ReceivedSpan[] = []
  const bodies: string[] = []
  const headers: IncomingHttpHeaders[] = []
  const paths: string[] = []
  const events: ReceivedEvent[] = []
  const resources: Record<string, unknown>[] = []
  let behaviour: 'takes' | 'refuses' | 'is silent' = 'takes'
  const valuesOf = (attributes: { key: string; value: Record<string, unknown> }[]) =>
    Object.fromEntries(attributes.map(({ key, value }) => [key, Object.values(value)[0]]))

  const server = createServer(async (request, reply) => {
    const chunks: Buffer[] = []
    for await (const chunk of request) chunks.push(chunk)
    if (behaviour === 'is silent') return
    if (behaviour === 'refuses') return void reply.writeHead(500).end()
    const bytes = Buffer.concat(chunks)
    const text = (request.headers['content-encoding'] === 'gzip' ? gunzipSync(bytes) : bytes).toString()
    if (request.url?.endsWith('/envelope/')) {
      const [, item, event] = text.split('\n').map((line) => (line === '' ? {} : JSON.parse(line)))
      events.push({ ...event, path: request.url, auth: String(request.headers['x-sentry-auth']), item: item.type })
      bodies.push(text)
      return void reply.writeHead(200).end('{}')
    }
    if (!request.url?.endsWith('/otlp/v1/traces')) return void reply.writeHead(404).end()
    bodies.push(text)
    headers.push(request.headers)
    paths.push(request.url)
    for (const { resource, scopeSpans } of (JSON.parse(text) as Wire).resourceSpans) {
      resources.push(valuesOf(resource.attributes))
      for (const span of scopeSpans.flatMap(({ spans }) => spans)) {
        spans.push({ ...span, attributes: valuesOf(span.attributes), failed: span.status.code === 2 })
      }
    }
    reply.writeHead(200, { 'content-type': 'application/json' }).end('{}')
  })
  await new Promise<void>((listening) => server.listen(0, '127.0.0.1', listening))
  t.teardown(() => {
    server.closeAllConnections()
    server.close()
  })
  return {
    url: `http://127.0.0.1:${(server.address() as AddressInfo).port}/otlp`,
    spans,
    bodies,
    headers,
    paths,
    events,
    resources,
    behave(how: typeof behaviour): void {
      behaviour = how
    }
  }
}
