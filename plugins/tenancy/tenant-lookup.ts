import fp from 'fastify-plugin'
import { tenantNotFound } from '../../src/http/problems.ts'

/**
 * Reads the tenant of the host from the database when it is not cached. Runs after the limits: a sender over the limit
 * causes no query, also not by a different invented name in each request.
 */
export default fp(
  async (app) => {
    app.addHook('onRequest', (request, _reply, done) => {
      const { slug } = request
      if (slug === undefined || request.tenant) return done()
      const found = request.overLimit ? undefined : app.tenants.find(slug)
      if (!(found instanceof Promise)) {
        request.tenant = found
        if (!found) request.hostProblem = tenantNotFound()
        return done()
      }
      found.then(
        (tenant) => {
          request.tenant = tenant
          if (!tenant) request.hostProblem = tenantNotFound()
          done()
        },
        (err) => {
          // routes that answer on any host ignore this problem
          request.hostProblem = err
          done()
        }
      )
    })
  },
  { name: 'tenant-lookup', dependencies: ['hosts', 'rates', 'concurrency'] }
)
