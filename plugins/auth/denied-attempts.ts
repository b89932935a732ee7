import type { FastifyRequest } from 'fastify'
import fp from 'fastify-plugin'
import { recordDenial } from '../../db/queries/audit.ts'
import type { AccessClaims } from '../../src/auth/claims.ts'

declare module 'fastify' {
  interface FastifyRequest {
    /** The caller with a valid token whose request was refused for lack of permission. */
    denied: AccessClaims | undefined
  }
}

/** Records refusals for lack of permission in the audit log of the caller's tenant (`authz.denied`). */
export default fp(
  async (app) => {
    async function record(request: FastifyRequest, caller: AccessClaims): Promise<void> {
      // a key has no session
      const session_id = caller.key ? null : caller.sid
      const attempt = { session_id, method: request.method, route: request.routeOptions.url ?? '' }
      try {
        await request.tenantQuery(recordDenial, attempt, caller)
      } catch (err) {
        request.log.warn({ err }, 'a denied attempt could not be recorded')
      }
    }

    app.decorateRequest('denied', undefined)
    // not with a disguise: no audit log of another tenant may show that the tenant of the host exists
    // in onSend, because onResponse would miss clients that disconnect before they have read the reply
    app.addHook('onSend', (request, reply, _payload, done) => {
      const caller = request.denied ?? (reply.statusCode === 403 ? request.user : undefined)
      if (caller && !request.disguise) record(request, caller)
      done()
    })
  },
  { name: 'denied-attempts', dependencies: ['database'] }
)
