import type { FastifyRequest, RouteOptions } from 'fastify'
import fp from 'fastify-plugin'
import { decide, type Entrance } from '../../src/auth/admission.ts'
import type { Access } from '../../src/auth/roles.ts'
import type { Problem } from '../../src/http/problems.ts'

declare module 'fastify' {
  interface FastifyRequest {
    /** What a refusal of this request is shown as; undefined: as what it is. */
    disguise: Problem | undefined
  }
  interface FastifyContextConfig {
    /** Who may call the route. Guard, OpenAPI `security` and `x-authz` derive from this one word. */
    access?: Access
    /** The route answers also where others say 404 or 421: on `any` host, or on that of a `suspended` tenant. */
    host?: 'any' | 'suspended'
  }
}

/**
 * Puts a guard before every route, which refuses a request or states who is calling (`request.user`). It runs when all facts are
 * known, and `src/auth/admission.ts` decides from them. A route that does not say who may call it stops the boot.
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
    })
  },
  { name: 'guard', dependencies: ['bearer', 'denied-attempts', 'hosts', 'rates', 'concurrency'] }
)

/** Why a request may not reach its handler, or undefined. What was decided besides is stated on the request. */
function findRefusal(request: FastifyRequest, entrance: Entrance): Problem | undefined {
  const { refusal, caller, attempt, disguise } = decide(entrance, request)
  if (caller) request.user = caller
  if (attempt) request.denied = attempt
  if (disguise) request.disguise = disguise
  return refusal
}
