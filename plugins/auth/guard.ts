import type { FastifyRequest, RouteOptions } from 'fastify'
import fp from 'fastify-plugin'
import { decide, type Entrance } from '../../src/auth/admission.ts'
import type { Permission } from '../../src/auth/api-keys/permissions.ts'
import { type Access, type Role, roles } from '../../src/auth/roles.ts'
import type { Problem } from '../../src/http/problems.ts'

declare module 'fastify' {
  interface FastifyRequest {
    /** The problem as which every refusal of this request is shown. Undefined when refusals are shown as they are. */
    disguise: Problem | undefined
  }
  interface FastifyContextConfig {
    /** The lowest role that may call the route. The guard, and `security` and `x-authz` of OpenAPI, derive from it. */
    access?: Access
    /** What an API key needs to call the route. `never`: no key may. Routes whose access is a role say one of both. */
    permission?: Permission | 'never'
    /**
     * The route also answers on hosts where other routes answer 404 or 421: on `any` host, or on the host of a
     * `suspended` tenant.
     */
    host?: 'any' | 'suspended'
  }
}

/**
 * Puts a guard before every route. The guard refuses a request, or sets its caller (`request.user`). It runs after the
 * hooks that collect the facts, and `src/auth/admission.ts` decides by them. A route without `access` stops the start,
 * and so does a route for a role that does not say which permission an API key needs.
 */
export default fp(
  async (app) => {
    app.decorateRequest('disguise', undefined)

    const routes: { name: string; config: NonNullable<RouteOptions['config']> }[] = []
    app.addHook('onRoute', (route) => {
      route.config ??= {}
      const { config } = route
      routes.push({ name: `${route.method} ${route.url}`, config })
      const guard = (request: FastifyRequest, _reply: unknown, done: (err?: Error) => void) =>
        done(findRefusal(request, config as Entrance))
      route.onRequest = [guard, ...[route.onRequest ?? []].flat()]
    })
    app.addHook('onReady', async () => {
      const undeclared = routes.filter(({ config }) => !config.access).map(({ name }) => name)
      if (undeclared.length > 0) throw new Error(`who may call ${undeclared.join(', ')}? config.access is missing`)
      const silent = routes.filter(({ config }) => isRole(config.access) && !config.permission).map(({ name }) => name)
      if (silent.length > 0)
        throw new Error(`which API keys may call ${silent.join(', ')}? config.permission is missing`)
    })
  },
  { name: 'guard', dependencies: ['bearer', 'denied-attempts', 'hosts', 'rates', 'concurrency', 'key-uses'] }
)

const isRole = (access: Access | undefined) => roles.includes(access as Role)

function findRefusal(request: FastifyRequest, entrance: Entrance): Problem | undefined {
  const { refusal, caller, attempt, disguise } = decide(entrance, request)
  if (caller) {
    request.user = caller
    if (caller.key) request.server.keyUses.note(caller)
  }
  if (attempt) request.denied = attempt
  if (disguise) request.disguise = disguise
  return refusal
}
