import { availableParallelism } from 'node:os'
import type { FastifyRequest } from 'fastify'
import fp from 'fastify-plugin'
import { peppersInUse } from '../../db/queries/directory.ts'
import { requireKeysInUse } from '../../db/queries/keys-in-use.ts'
import { argon2, failures } from '../../src/auth/argon2.ts'
import { createHasher, type Hasher } from '../../src/auth/hasher.ts'
import { createPasswords, type Passwords } from '../../src/auth/passwords.ts'
import { createKeyRing, type KeyRing } from '../../src/keys.ts'

declare module 'fastify' {
  interface FastifyInstance {
    passwords: Passwords
  }
  interface FastifyRequest {
    /** The key by which waiting jobs take turns: the tenant, or the client's network when no tenant is known. */
    readonly fairnessKey: string
  }
}

/**
 * Hashes passwords, in a subprocess if no hasher is given. Refuses to start when a stored password needs a pepper that is
 * not configured.
 */
export default fp<{ hasher?: Hasher }>(
  async (app, { hasher: given }) => {
    /** Rejects when a stored password needs a pepper that is not among these. */
    async function requirePeppers(values: readonly string[]): Promise<KeyRing> {
      const peppers = createKeyRing(values, 'pepper')
      await requireKeysInUse(app.gate, peppersInUse, (id) => peppers.byId.has(id), 'stored passwords')
      return peppers
    }
    function startHasher(concurrency: number): Hasher {
      const hasher = createHasher({ concurrency, log: app.log })
      app.addHook('onClose', async () => hasher.close())
      return hasher
    }
    for (const err of failures) {
      app.log.warn(
        { err },
        `a sign-in takes twice the CPU: passwords are hashed by ${argon2.name}, because no faster package loads`
      )
    }

    const peppers = await requirePeppers(app.config.passwordPepper)
    // the workers share the cores
    const concurrency = Math.max(1, Math.floor(availableParallelism() / app.config.webConcurrency))
    app.decorate('passwords', await createPasswords(peppers, given ?? startHasher(concurrency), concurrency))
    app.secrets.follow(['passwordPepper'], async ({ passwordPepper }) =>
      app.passwords.prepare(await requirePeppers(passwordPepper))
    )
    app.decorateRequest('fairnessKey', {
      getter(this: FastifyRequest) {
        return this.tenant?.id ?? this.user?.tenant_id ?? this.network
      }
    })
    const { stats } = app.passwords
    app.metrics.gauge('aggios_password_hashes_running', 'Password hashes under way', () => stats().running)
    app.metrics.gauge('aggios_password_hashes_waiting', 'Password hashes that wait', () => stats().waiting)
    app.metrics.gauge('aggios_password_hashing_info', 'Which package hashes passwords; the value is always 1', () => [
      { labels: { package: argon2.name }, value: 1 }
    ])
    app.metrics.counter('aggios_password_hashes_refused_total', 'Refused: too many waited', () => stats().refused)
  },
  { name: 'passwords', dependencies: ['addresses', 'database', 'metrics', 'tenants'] }
)
