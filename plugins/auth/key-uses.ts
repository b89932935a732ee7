import fp from 'fastify-plugin'
import { systemScope } from '../../db/gate/gate-query.ts'
import { noteKeyUses } from '../../db/queries/sign-in/api-keys.ts'
import type { AccessClaims } from '../../src/auth/claims.ts'

declare module 'fastify' {
  interface FastifyInstance {
    keyUses: {
      /** Remembers that a key was used now, until the next run. No I/O. */
      note(key: Pick<AccessClaims, 'tenant_id' | 'user_id'>): void
      /** Writes the uses now. Otherwise they are written once a minute. */
      run(): Promise<void>
    }
  }
}

export const intervalMs = 60_000
const batch = 1000

/** Writes when API keys were last used: once a minute for a key and process at most, and not in the request. */
export default fp(
  async (app) => {
    const uses = new Map<string, { tenant_id: string; at: number }>()

    async function write(): Promise<void> {
      const noted = [...uses]
      for (let from = 0; from < noted.length; from += batch) {
        const part = noted.slice(from, from + batch)
        await app.gate.query(systemScope, noteKeyUses, {
          tenants: part.map(([, { tenant_id }]) => tenant_id),
          keys: part.map(([id]) => id),
          used: part.map(([, { at }]) => new Date(at))
        })
        // only now, so that a write that fails loses none; a use since then has another entry
        for (const [id, use] of part) if (uses.get(id) === use) uses.delete(id)
      }
    }

    app.addHook('onClose', () =>
      write().catch((err) => app.log.warn({ err }, 'when API keys were last used could not be written'))
    )
    const job = app.jobs.define({ name: 'key_uses', intervalMs, tasks: { key_uses: write } })
    app.decorate('keyUses', {
      note({ tenant_id, user_id }: Pick<AccessClaims, 'tenant_id' | 'user_id'>) {
        uses.set(user_id, { tenant_id, at: Date.now() })
      },
      run: async () => void (await job.run())
    })
  },
  { name: 'key-uses', dependencies: ['database', 'jobs'] }
)
