import fp from 'fastify-plugin'
import { findSessionProvider } from '../../db/queries/sign-in/identities.ts'
import { forbidden, sessionRevoked } from '../../src/http/problems.ts'

declare module 'fastify' {
  interface FastifyContextConfig {
    /**
     * `person`: the route changes or shows what belongs to the person in all agencies. A session that was opened through
     * an agency's own provider may not call it, because the agency decides what its provider says.
     */
    reach?: 'person'
  }
}

export const staysInAgency =
  "this session was opened through the agency's own provider, and is good for this agency only: sign in with your password"

/**
 * Keeps sessions through an agency's own provider in their agency.
 *
 * Asks the database, and only on the routes that say so. A claim in the access token would spare the question, but an
 * older version, which knows no such claim, would leave it out when it refreshes the session.
 */
export default fp(
  async (app) => {
    app.addHook('onRoute', (route) => {
      if (route.config?.reach !== 'person') return
      const { preHandler } = route
      route.preHandler = [
        async (request) => {
          const { tenant_id, sid: session_id } = request.user
          const [session] = await request.tenantQuery(findSessionProvider, { tenant_id, session_id })
          if (session && session.provider_id === null) return
          throw session ? forbidden({ detail: staysInAgency }) : sessionRevoked()
        },
        ...[preHandler ?? []].flat()
      ]
    })
  },
  { name: 'session-reach', dependencies: ['database', 'guard'] }
)
