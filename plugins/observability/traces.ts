import { subscribe, unsubscribe } from 'node:diagnostics_channel'
import type { ClientRequest, IncomingMessage } from 'node:http'
import type { FastifyInstance } from 'fastify'
import fp from 'fastify-plugin'
import type { LogEvent } from 'kysely'
import { traceMembers } from '../../src/observability/log-format.ts'
import { errorType, startTracing, type Tracing, traceParentOf } from '../../src/observability/tracing.ts'

const postgresql = { 'db.system.name': 'postgresql' }

type Span = NonNullable<ReturnType<Tracing['beginRequest']>>

declare module 'fastify' {
  interface FastifyInstance {
    /** Makes a span of a statement of a transaction that has ended. Only there when traces are on. */
    traceStatement?: (event: LogEvent) => void
  }
  interface FastifyRequest {
    /** The span of a request that is traced. Only there when traces are on. */
    traced?: Span | undefined
  }
}

/**
 * Traces requests, and in them statements, Redis, requests to the store and to providers, password hashes and mails. A span
 * has routes, names of statements, the agency, the person and the request id. It never has a path, a value, a body or an
 * address.
 *
 * Registered only where OTEL_EXPORTER_OTLP_ENDPOINT or SENTRY_DSN is set: everything else of the product does not know about it.
 */
export default fp(
  async (app) => {
    const tracing = await startTracing(app.config)
    app.addHook('onClose', () => tracing.stop())
    app.metrics.counter(
      'aggios_spans_total',
      'Spans of traces that were sent, and that the endpoint did not take',
      () => Object.entries(tracing.counts()).map(([result, value]) => ({ labels: { result }, value }))
    )
    traceRequests(app, tracing)
    traceStatements(app, tracing)
    traceOutbound(app, tracing)
    // registered before all that it puts spans around, so that a request is traced from its first hook
    app.addHook('onReady', async () => traceWork(app, tracing))
  },
  { name: 'traces', dependencies: ['config', 'metrics'] }
)

function traceRequests(app: FastifyInstance, tracing: Tracing): void {
  app.decorateRequest('traced', undefined)
  app.addHook('onRequest', (request, _reply, done) => {
    const { traceparent } = request.headers
    const span = tracing.beginRequest(typeof traceparent === 'string' ? traceparent : undefined)
    if (!span) return done()
    request.traced = span
    request.log = request.log.child(traceMembers(app.config.logFormat, span.span.spanContext()))
    tracing.within(span, done)
  })
  // the body arrives in events of the connection, which belong to no request
  app.addHook('preValidation', (request, _reply, done) => {
    if (request.traced) tracing.within(request.traced, done)
    else done()
  })
  app.addHook('onResponse', (request, reply, done) => {
    const { traced } = request
    if (traced) {
      const route = request.is404 ? 'unmatched' : (request.routeOptions.url ?? 'unmatched')
      const tenant = request.user?.tenant_id ?? request.tenant?.id
      traced.span.updateName(`${request.method} ${route}`)
      traced.span.setAttributes({
        'http.request.method': request.method,
        'http.route': route,
        'http.response.status_code': reply.statusCode,
        'aggios.request_id': request.id,
        ...(tenant !== undefined && { 'aggios.tenant_id': tenant }),
        ...(request.user && { 'enduser.id': request.user.user_id }),
        ...(request.problemCode !== undefined && { 'aggios.problem': request.problemCode })
      })
      tracing.end(traced, reply.statusCode >= 500 ? { type: request.problemCode ?? 'other' } : undefined)
    }
    done()
  })
}

/** A span for each statement of a transaction, named by what it does and to which table. Its text and values stay here. */
function traceStatements(app: FastifyInstance, tracing: Tracing): void {
  app.decorate('traceStatement', (event: LogEvent) => {
    if (!tracing.active()) return
    const { sql } = event.query
    const [operation = 'statement'] = /[a-z]+/i.exec(sql) ?? []
    const [, table] = /\b(?:from|into|update)\s+(?:only\s+)?"?([a-z_]+)"?/i.exec(sql) ?? []
    const verb = operation.toLowerCase()
    const attributes = {
      ...postgresql,
      'db.operation.name': verb,
      ...(table !== undefined && { 'db.collection.name': table })
    }
    const failure = event.level === 'error' ? { type: errorType(event.error) } : undefined
    tracing.record(table === undefined ? verb : `${verb} ${table}`, attributes, event.queryDurationMillis, failure)
  })
}

/** Puts a span around what the rest of the product calls: the gate, Redis, hashes and mails. */
function traceWork({ gate, passwords, mail, redis }: FastifyInstance, tracing: Tracing): void {
  const { query, transaction } = gate
  gate.query = (settings, statement, values) =>
    tracing.active()
      ? tracing.span(statement.name, { ...postgresql, 'db.operation.name': statement.name }, () =>
          query(settings, statement, values)
        )
      : query(settings, statement, values)
  gate.transaction = (settings, work) =>
    tracing.active()
      ? tracing.span('transaction', { ...postgresql, 'db.operation.name': 'transaction' }, () =>
          transaction(settings, work)
        )
      : transaction(settings, work)

  const { hash, verify } = passwords
  passwords.hash = (...given) => tracing.span('hash password', {}, () => hash(...given))
  passwords.verify = (...given) => tracing.span('verify password', {}, () => verify(...given))

  const { attempt } = mail
  mail.attempt = (compose, facts) => {
    const about = { ...(facts.tenant_id && { 'aggios.tenant_id': facts.tenant_id }), 'aggios.attempt': facts.attempts }
    return tracing.span('send mail', about, () => attempt(compose, facts), { root: true })
  }

  if (!redis) return
  const { sendCommand } = redis
  redis.sendCommand = (command, stream) =>
    tracing.active()
      ? tracing.span(`redis ${command.name}`, { 'db.system.name': 'redis', 'db.operation.name': command.name }, () =>
          Promise.resolve(sendCommand.call(redis, command, stream))
        )
      : sendCommand.call(redis, command, stream)
}

/**
 * Traces requests to the store of files, identity providers and the like. They carry `traceparent`, which names the trace
 * and nothing else.
 */
function traceOutbound(app: FastifyInstance, tracing: Tracing): void {
  const spans = new WeakMap<ClientRequest, Span>()
  type Message = { request: ClientRequest; response?: IncomingMessage; error?: Error }
  const listeners: Record<string, (message: Message) => void> = {
    'http.client.request.created'({ request }) {
      const attributes = { 'http.request.method': request.method, 'server.address': request.host }
      const span = tracing.beginChild(request.method, attributes)
      if (!span) return
      spans.set(request, span)
      if (!request.headersSent) request.setHeader('traceparent', traceParentOf(span))
    },
    'http.client.response.finish'({ request, response }) {
      const span = spans.get(request)
      const status = response?.statusCode ?? 0
      span?.span.setAttribute('http.response.status_code', status)
      if (span) tracing.end(span, status >= 500 ? { type: String(status) } : undefined)
    },
    'http.client.request.error'({ request, error }) {
      const span = spans.get(request)
      if (span) tracing.end(span, { type: errorType(error) })
    }
  }
  for (const [name, listener] of Object.entries(listeners)) subscribe(name, listener as (message: unknown) => void)
  app.addHook('onClose', async () => {
    for (const [name, listener] of Object.entries(listeners)) unsubscribe(name, listener as (message: unknown) => void)
  })
}
