import { hostname } from 'node:os'
import type { Config } from '../config/config.ts'
import { type LoggedError, serializeError } from '../error-log.ts'
import { build } from './build.ts'
import { prettyStream } from './pretty-log.ts'

type LogStream = { write(line: string): void }
type Fields = Record<string, unknown>
type LogSettings = Pick<Config, 'logLevel' | 'logFormat' | 'nodeEnv'>
/** What Fastify asks to make the logger of a request. */
type Child = <Logger extends { child(members: Fields, options?: object): Logger }>(
  logger: Logger,
  members: Fields,
  options?: object
) => Logger

/** The names that other formats have for the members of a line of the log. All others get the prefix `aggios.`. */
type Names = Readonly<Record<string, string>>

const ecsNames: Names = {
  method: 'http.request.method',
  url: 'url.path',
  host: 'url.domain',
  ip: 'client.ip',
  status: 'http.response.status_code',
  code: 'event.reason',
  user_id: 'user.id',
  tenant_id: 'organization.id'
}

/** The semantic conventions of OpenTelemetry, and the attributes of the spans (plugins/observability/traces.ts). */
const otelNames: Names = {
  method: 'http.request.method',
  url: 'url.path',
  host: 'server.address',
  ip: 'client.address',
  status: 'http.response.status_code',
  code: 'aggios.problem',
  user_id: 'enduser.id'
}

/** The numbers of the log data model of OpenTelemetry for the levels. */
const severities: Record<string, number> = { trace: 1, debug: 5, info: 9, warn: 13, error: 17, fatal: 21 }

/** Elastic Common Schema: one flat object, which Elasticsearch reads as nested. */
const ecsVersion = '8.11.0'

/**
 * The options of Fastify with which an application logs: level, format, and how errors are written. `stream` is for what
 * does not log to the standard output.
 *
 * Lines are written in their format at once: none is read again, but by `pretty`, which is for people.
 */
export function logging({ logLevel, logFormat, nodeEnv }: LogSettings, stream?: LogStream) {
  const options = {
    level: logLevel,
    serializers: { err: (err: unknown) => serializeError(err), busboyOptions: () => undefined },
    ...(stream && { stream })
  }
  switch (logFormat) {
    case 'json':
      return { logger: options }
    case 'pretty':
      return { logger: { ...options, stream: prettyStream(stream ?? process.stdout) } }
    case 'ecs':
      return { logger: { ...options, ...ecs(nodeEnv) }, childLoggerFactory: ecsChild }
    case 'otel':
      return { logger: { ...options, ...otel(nodeEnv) }, childLoggerFactory: otelChild }
  }
}

const ecsChild: Child = (logger, { request_id }, options) => logger.child({ 'http.request.id': request_id }, options)

/** The members that join the lines of a request to its trace. */
export function traceMembers(
  format: Config['logFormat'],
  { traceId, spanId }: { traceId: string; spanId: string }
): Fields {
  switch (format) {
    case 'ecs':
      return { 'trace.id': traceId, 'span.id': spanId }
    case 'otel':
      return { TraceId: traceId, SpanId: spanId }
    default:
      return { trace_id: traceId, span_id: spanId }
  }
}

function ecs(nodeEnv: string) {
  return {
    messageKey: 'message',
    timestamp: () => `,"@timestamp":"${new Date().toISOString()}"`,
    base: {
      'ecs.version': ecsVersion,
      'service.name': 'aggios-api',
      'service.version': build.version,
      'service.environment': nodeEnv,
      'host.hostname': hostname(),
      'process.pid': process.pid
    },
    formatters: {
      level: (label: string) => ({ 'log.level': label }),
      log: ({ err, ms, ...others }: Fields) => ({
        ...renamed(others, ecsNames),
        ...(ms !== undefined && { 'event.duration': Math.round(Number(ms) * 1e6) }),
        ...(err !== undefined && errorMembers(err, 'error', 'stack_trace'))
      })
    }
  }
}

function otel(nodeEnv: string) {
  return {
    messageKey: 'Body',
    nestedKey: 'Attributes',
    timestamp: () => `,"Timestamp":"${Date.now()}000000"`,
    base: {
      Resource: {
        'service.name': 'aggios-api',
        'service.version': build.version,
        'deployment.environment.name': nodeEnv,
        'host.name': hostname(),
        'process.pid': process.pid
      }
    },
    mixin: (_members: object, _level: number, logger: object) => ({
      ...(logger as { [attribute]?: Fields })[attribute]
    }),
    formatters: {
      level: (label: string) => ({ SeverityText: label.toUpperCase(), SeverityNumber: severities[label] }),
      log: ({ err, ms, ...others }: Fields) => ({
        ...renamed(others, otelNames),
        ...(ms !== undefined && { 'aggios.duration_ms': ms }),
        ...(err !== undefined && errorMembers(err, 'exception', 'stacktrace'))
      })
    }
  }
}

/** What a child of the logger adds to `Attributes`: members that a child adds by itself stand beside them. */
const attribute = Symbol('attributes of the log')

const otelChild: Child = (logger, { request_id }, options) =>
  Object.assign(logger.child({}, options), { [attribute]: { request_id } })

/**
 * Members of lines of the framework, which have serializers under these names: `busboyOptions` has the headers of a form
 * with its token, and is left out.
 */
const frameworks = new Set(['req', 'res', 'busboyOptions'])

function renamed(members: Fields, names: Names): Fields {
  const others: Fields = {}
  for (const [name, value] of Object.entries(members)) {
    others[names[name] ?? (frameworks.has(name) ? name : `aggios.${name}`)] = value
  }
  return others
}

function errorMembers(err: unknown, prefix: string, stackName: string): Fields {
  const { type, message, stack, cause, errors, code, ...more } = serializeError(err)
  const causes = [cause, errors].flat().flatMap((each) => (each ? [(each as LoggedError).stack] : []))
  return {
    [`${prefix}.type`]: type,
    [`${prefix}.message`]: message,
    [`${prefix}.${stackName}`]: [stack, ...causes].join('\ncaused by: '),
    ...(code !== undefined && { [prefix === 'error' ? 'error.code' : 'error.type']: code }),
    ...(Object.keys(more).length > 0 && { 'aggios.error': more })
  }
}
