import type { FastifyRequest } from 'fastify'
import fp from 'fastify-plugin'
import { recordDenial } from '../../db/queries/audit.ts'
import type { AccessClaims } from '../../src/auth/claims.ts'

declare module 'fastify' {
  interface FastifyRequest {
    /** Somebody whose token is good and who asked for what is not theirs. */
    denied: AccessClaims | undefined
  }
}

/** Records in the audit log of a person's tenant that they were refused what they may not do (`authz.denied`). */
export default fp(
  async (app) => {
    async function record(request: FastifyRequest, caller: AccessClaims): Promise<void> {
      const attempt = { session_id: caller.sid, method: request.method, route: request.routeOptions.url ?? '' }
      try {
        await request.tenantQuery(recordDenial, attempt, caller)
      } catch (err) {
        request.log.warn({ err }, 'a denied attempt could not be recorded')
      }
    }

    app.decorateRequest('denied', undefined)
    // Not behind a disguise: that the tenant of the host exists must not show in anybody's audit log.
    // On sending and not when the reply has been read: a client that goes away before must leave a trace too
    app.addHook('onSend', (request, reply, _payload, done) => {
      const caller = request.denied ?? (reply.statusCode === 403 ? request.user : undefined)
      if (caller && !request.disguise) record(request, caller)
      done()
    })
  },
  { name: 'denied-attempts', dependencies: ['database'] }
)
