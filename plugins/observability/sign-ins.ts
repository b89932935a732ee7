import type { RouteOptions } from 'fastify'
import fp from 'fastify-plugin'

/** The operations that open a session or renew it, and how a person proves there who they are. */
export const signInMethods: Readonly<Record<string, string>> = {
  register: 'register',
  login: 'password',
  completeSignIn: 'second_factor',
  enrollAtSignIn: 'second_factor',
  completeSignInWithNewPasskey: 'second_factor',
  signInWithPasskey: 'passkey',
  exchangeSignInCode: 'provider',
  acceptInvitation: 'invitation',
  switchTenant: 'switch',
  refresh: 'refresh'
}

/**
 * Counts how sign-ins end: `ok`, or the code of the problem. Only the routes of these operations have the hook, so that
 * no other request pays for it. Both labels come from the code, so a client can't add series.
 */
export default fp(
  async (app) => {
    const counts = new Map<string, { method: string; outcome: string; value: number }>()

    function count(method: string, outcome: string): void {
      const key = `${method} ${outcome}`
      const known = counts.get(key)
      if (known) known.value++
      else counts.set(key, { method, outcome, value: 1 })
    }

    app.addHook('onRoute', (route: RouteOptions) => {
      const method = signInMethods[(route.schema as { operationId?: string } | undefined)?.operationId ?? '']
      if (method === undefined) return
      // in onSend, because onResponse would miss clients that disconnect before they have read the reply
      route.onSend = [
        ...[route.onSend ?? []].flat(),
        async (request, reply) => count(method, reply.statusCode < 400 ? 'ok' : (request.problemCode ?? 'other'))
      ]
    })
    app.metrics.counter('aggios_sign_ins_total', 'Sign-ins and renewals of sessions, by how they ended', () =>
      [...counts.values()].map(({ method, outcome, value }) => ({ labels: { method, outcome }, value }))
    )
  },
  { name: 'sign-ins', dependencies: ['metrics'] }
)
