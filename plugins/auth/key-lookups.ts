import fp from 'fastify-plugin'

/**
 * Looks up API keys that this process does not know. Runs after the limits: until a key is known, its requests count for their
 * address, and one over the limit causes no query. So a flood of invented keys costs no more than any other.
 *
 * Public routes ignore a key, so it is not looked up there.
 */
export default fp(
  async (app) => {
    app.addHook('onRequest', (request, _reply, done) => {
      const { unknownKey, malformed, overLimit, hostProblem, routeOptions } = request
      if (unknownKey === undefined || malformed || overLimit || hostProblem) return done()
      if (routeOptions.config?.access === 'public') return done()
      app.apiKeys.lookUp(unknownKey).then((bearer) => {
        request.bearer = { scheme: 'Bearer', ...bearer }
        done()
      }, done)
    })
  },
  { name: 'key-lookups', dependencies: ['bearer', 'api-keys', 'tenant-lookup'] }
)
