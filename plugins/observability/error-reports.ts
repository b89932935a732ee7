import fp from 'fastify-plugin'
import { createErrorReports, type ErrorReports } from '../../src/observability/error-reports.ts'

declare module 'fastify' {
  interface FastifyInstance {
    /** Only there where errors are sent to a service. */
    errorReports?: ErrorReports
  }
}

/**
 * Sends what was answered with 500 `internal_error` to Sentry, with the route, the request id, the agency and the person.
 *
 * Registered only where SENTRY_DSN is set.
 */
export default fp(
  async (app) => {
    const { sentryDsn, nodeEnv } = app.config
    if (!sentryDsn) return
    const reports = createErrorReports(sentryDsn, nodeEnv)
    app.decorate('errorReports', reports)
    app.addHook('onClose', () => reports.stop())
    app.metrics.counter('aggios_error_reports_total', 'Errors that were sent to Sentry, and that it did not take', () =>
      Object.entries(reports.counts()).map(([result, value]) => ({ labels: { result }, value }))
    )
    app.addHook('onResponse', (request, _reply, done) => {
      if (request.fault !== undefined) {
        const { method, routeOptions, user, tenant, traced } = request
        reports.report(request.fault, 'error', {
          route: `${method} ${request.is404 ? 'unmatched' : (routeOptions.url ?? 'unmatched')}`,
          request_id: request.id,
          tenant_id: user?.tenant_id ?? tenant?.id,
          user_id: user?.user_id,
          trace: traced?.span.spanContext()
        })
      }
      done()
    })
  },
  { name: 'error-reports', dependencies: ['config', 'metrics', 'errors'] }
)
