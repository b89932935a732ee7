import fp from 'fastify-plugin'
import { tenantNotFound } from '../../src/http/problems.ts'

/**
 * Reads the tenant of the host from the database where memory lacks it. Comes after the limits: nothing is read for a sender who
 * is over theirs, or anybody could have the database asked for one invented name after the other.
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
          // the routes that answer on any host do so without a database too
          request.hostProblem = err
          done()
        }
      )
    })
  },
  { name: 'tenant-lookup', dependencies: ['hosts', 'rates', 'concurrency'] }
)
