import { AsyncLocalStorage } from 'node:async_hooks'
import { hostname } from 'node:os'
import {
  type Attributes,
  type Context,
  ROOT_CONTEXT,
  type Span,
  SpanKind,
  SpanStatusCode,
  TraceFlags,
  trace
} from '@opentelemetry/api'
import type { Config } from '../config/config.ts'
import { build } from './build.ts'

/** A span that is under way, and what its children need. */
type Scope = { span: Span; context: Context; ended: boolean }

export type Tracing = Awaited<ReturnType<typeof startTracing>>

/** What may wait to be sent: the newest spans are dropped beyond it. A span takes about a kilobyte. */
const maxQueueSize = 2048
const exportTimeoutMillis = 5000
const scheduledDelayMillis = 2000
const shutdownTimeoutMs = 1000

const traceParent = /^00-([0-9a-f]{32})-([0-9a-f]{16})-([0-9a-f]{2})$/

/**
 * Starts tracing by OpenTelemetry: spans are sent by OTLP over HTTP, in batches. The packages are loaded here and nowhere
 * else, so a process without an endpoint never reads them.
 *
 * One request in so many is traced. The others cost one random number. When the endpoint is slow or away, spans are
 * dropped and counted, and nothing waits for it.
 */
export async function startTracing({ otlpEndpoint, otlpHeaders, sentryDsn, tracesSampled, nodeEnv }: Config) {
  const [{ BatchSpanProcessor, TracerProvider }, { OTLPTraceExporter }, { resourceFromAttributes }] = await Promise.all(
    [
      import('@opentelemetry/sdk-trace'),
      import('@opentelemetry/exporter-trace-otlp-http'),
      import('@opentelemetry/resources')
    ]
  )
  const exporter = new OTLPTraceExporter({
    url: `${otlpEndpoint ?? sentryDsn?.endpoint}/v1/traces`,
    headers: (otlpEndpoint === undefined ? sentryDsn?.headers : otlpHeaders) ?? {},
    timeoutMillis: exportTimeoutMillis,
    concurrencyLimit: 1
  })
  const counts = { sent: 0, lost: 0 }
  const { export: send } = exporter
  exporter.export = (spans, done) =>
    send.call(exporter, spans, (result) => {
      counts[result.code === 0 ? 'sent' : 'lost'] += spans.length
      done(result)
    })
  const provider = new TracerProvider({
    resource: resourceFromAttributes({
      'service.name': 'aggios-api',
      'service.version': build.version,
      'service.instance.id': `${hostname()}:${process.pid}`,
      'deployment.environment.name': nodeEnv
    }),
    spanProcessors: [
      new BatchSpanProcessor({
        exporter,
        maxQueueSize,
        exportTimeoutMillis,
        scheduledDelayMillis,
        maxExportBatchSize: 256
      })
    ]
  })
  const tracer = provider.getTracer('aggios-api', build.version)
  const current = new AsyncLocalStorage<Scope | undefined>()

  function begin(name: string, kind: SpanKind, attributes: Attributes, parent: Context, startTime?: number): Scope {
    const span = tracer.startSpan(name, { kind, attributes, ...(startTime !== undefined && { startTime }) }, parent)
    return { span, context: trace.setSpan(parent, span), ended: false }
  }

  function end(scope: Scope, failure?: { type: string }): void {
    if (scope.ended) return
    scope.ended = true
    if (failure) scope.span.setAttribute('error.type', failure.type).setStatus({ code: SpanStatusCode.ERROR })
    // outside of the scope, because the timer that sends spans must not belong to a request
    current.run(undefined, () => scope.span.end())
  }

  /** The span under way. Undefined where nothing is traced, and after the end of the request. */
  function active(): Scope | undefined {
    const scope = current.getStore()
    return scope?.ended === false ? scope : undefined
  }

  return {
    /**
     * Begins the span of a request, or resolves to undefined for one that is not traced. A client's `traceparent` joins
     * the client's trace, and may say that nothing is recorded. It can't make the server record more than its share.
     */
    beginRequest(header: string | undefined): Scope | undefined {
      if (Math.random() >= tracesSampled) return undefined
      const [, traceId = '', spanId = '', flags = '01'] = traceParent.exec(header ?? '') ?? []
      if ((Number.parseInt(flags, 16) & TraceFlags.SAMPLED) === 0) return undefined
      const remote = { traceId, spanId, traceFlags: TraceFlags.SAMPLED, isRemote: true }
      const parent = traceId === '' ? ROOT_CONTEXT : trace.setSpanContext(ROOT_CONTEXT, remote)
      return begin('request', SpanKind.SERVER, {}, parent)
    },
    end,
    /** Runs `work` so that what it begins are children of this span. */
    within: <T>(scope: Scope, work: () => T): T => current.run(scope, work),
    active,
    /** Begins a child of the span under way. Undefined where there is none. */
    beginChild(name: string, attributes: Attributes): Scope | undefined {
      const parent = active()
      return parent && begin(name, SpanKind.CLIENT, attributes, parent.context)
    },
    /** Adds a child to the span under way, for work that has just ended. */
    record(name: string, attributes: Attributes, durationMs: number, failure?: { type: string }): void {
      const parent = active()
      if (!parent) return
      const startTime = performance.timeOrigin + performance.now() - durationMs
      end(begin(name, SpanKind.CLIENT, attributes, parent.context, startTime), failure)
    },
    /** Runs `work` in a child of the span under way. With `root` it may become a trace of its own instead. */
    async span<T>(name: string, attributes: Attributes, work: () => Promise<T>, { root = false } = {}): Promise<T> {
      const parent = root ? undefined : active()
      if (!parent && !(root && Math.random() < tracesSampled)) return work()
      const scope = begin(name, SpanKind.CLIENT, attributes, parent?.context ?? ROOT_CONTEXT)
      try {
        const result = await current.run(scope, work)
        end(scope)
        return result
      } catch (err) {
        end(scope, { type: errorType(err) })
        throw err
      }
    },
    counts: () => ({ ...counts }),
    /** Sends what waits, as far as that takes a second at most. */
    async stop(): Promise<void> {
      let timer: NodeJS.Timeout | undefined
      const late = new Promise<void>((resolve) => {
        timer = setTimeout(resolve, shutdownTimeoutMs)
      })
      await Promise.race([provider.shutdown().catch(() => {}), late])
      clearTimeout(timer)
    }
  }
}

/** The `traceparent` header for a request that belongs to this span. */
export function traceParentOf({ span }: Scope): string {
  const { traceId, spanId } = span.spanContext()
  return `00-${traceId}-${spanId}-01`
}

/** A name for an error, without its message, which may have values in it. */
export function errorType(err: unknown): string {
  const { code, kind } = (err ?? {}) as { code?: unknown; kind?: { code?: unknown } }
  if (typeof kind?.code === 'string') return kind.code
  if (typeof code === 'string' && /^\w{1,40}$/.test(code)) return code
  return err instanceof Error ? err.name : 'unknown'
}
