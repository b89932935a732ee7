import fp from 'fastify-plugin'

/**
 * Uses up the proofs that were read with tokens (DPoP), after the limits: the proof of a request that is over a limit is
 * neither remembered nor sent to Redis.
 */
export default fp(
  async (app) => {
    app.addHook('onRequest', (request, reply, done) => {
      const { bearer, unspentProof, overLimit, malformed } = request
      if (!unspentProof || !bearer || overLimit || malformed) return done()
      const spent = app.proofs.spend(request, reply)
      if (!(spent instanceof Promise)) {
        bearer.problem = spent
        return done()
      }
      spent.then((problem) => {
        bearer.problem = problem
        done()
      }, done)
    })
  },
  { name: 'spent-proofs', dependencies: ['proofs', 'rates', 'concurrency'] }
)
