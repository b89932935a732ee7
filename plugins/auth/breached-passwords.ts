import fp from 'fastify-plugin'
import { isBreached } from '../../src/auth/breached-passwords.ts'
import { invalidMembers } from '../../src/http/field-errors.ts'
import { createCircuitBreaker } from '../../src/limits/circuit-breaker.ts'

declare module 'fastify' {
  interface FastifyInstance {
    /**
     * Throws `validation_failed` at `path` when a new password is known from breaches. Does nothing without
     * BREACH_LIST_URL, and when the service does not answer: it must not decide whether people can sign up.
     */
    refuseBreached(password: string, path: string): Promise<void>
  }
}

export const maxFailures = 3
export const cooldownMs = 30_000

/**
 * Refuses new passwords that a service knows from breaches. After three failed look-ups in a row the service is not
 * asked for half a minute, so that a sign-up does not wait for its time-out each time.
 */
export default fp(
  async (app) => {
    const { breachListUrl: url } = app.config
    if (url === undefined) {
      app.decorate('refuseBreached', async () => {})
      return
    }
    const counts = { breached: 0, unknown: 0, failed: 0 }
    const breaker = createCircuitBreaker({ failures: maxFailures, cooldownMs })

    app.decorate('refuseBreached', async (password: string, path: string) => {
      let breached: boolean
      try {
        breached = await breaker.run(() => isBreached(url, password))
      } catch (err) {
        counts.failed++
        app.log.warn({ err }, 'a new password could not be looked up in the list of breached ones, and is accepted')
        return
      }
      counts[breached ? 'breached' : 'unknown']++
      if (breached) throw invalidMembers([{ path, message: 'is known from a breach: take another one' }])
    })
    app.metrics.counter('aggios_breached_password_lookups_total', 'Look-ups of new passwords, by outcome', () =>
      Object.entries(counts).map(([outcome, value]) => ({ labels: { outcome }, value }))
    )
  },
  { name: 'breached-passwords', dependencies: ['config', 'metrics'] }
)
