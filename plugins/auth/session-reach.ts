import fp from 'fastify-plugin'
import { findSessionReach } from '../../db/queries/sign-in/identities.ts'
import { forbidden, sessionRevoked } from '../../src/http/problems.ts'

declare module 'fastify' {
  interface FastifyContextConfig {
    /**
     * What a route changes or shows that belongs to the person in all agencies. A session that was opened through an agency's
     * own provider may not call it, because the agency decides what its provider says.
     *
     * - `person`: never.
     * - `profile`: it may when the person is in no other agency, which would see the change too.
     */
    reach?: 'person' | 'profile'
  }
}

const staysInAgency =
  "this session was opened through the agency's own provider, and is good for this agency only: sign in with your password"

const sharedWithOthers =
  "this session was opened through the agency's own provider, and other agencies see this too: sign in with your password"

/**
 * Keeps sessions through an agency's own provider in their agency.
 *
 * Asks the database, and only on the routes that say so. A claim in the access token would spare the question, but an
 * older version, which knows no such claim, would leave it out when it refreshes the session.
 */
export default fp(
  async (app) => {
    app.addHook('onRoute', (route) => {
      const { reach } = route.config ?? {}
      if (!reach) return
      const { preHandler } = route
      route.preHandler = [
        async (request) => {
          const { tenant_id, sid: session_id } = request.user
          const [session] = await request.tenantQuery(findSessionReach, { tenant_id, session_id })
          if (!session) throw sessionRevoked()
          if (session.provider_id === null) return
          if (reach === 'person') throw forbidden({ detail: staysInAgency })
          if (session.elsewhere) throw forbidden({ detail: sharedWithOthers })
        },
        ...[preHandler ?? []].flat()
      ]
    })
  },
  { name: 'session-reach', dependencies: ['database', 'guard'] }
)
