import fp from 'fastify-plugin'
import { LRUCache } from 'lru-cache'
import { type PlanLimits, tenantLimits } from '../db/plans.ts'

declare module 'fastify' {
  interface FastifyInstance {
    /** Bytes that a tenant may keep. */
    storageQuota(tenantId: string): Promise<number>
    plans: {
      /** What a tenant's plan allows, from memory where it is known; what the settings say where it can't be read. */
      find(tenantId: string): PlanLimits | Promise<PlanLimits>
    }
  }
}

const maxTenants = 50_000
const bySettings: PlanLimits = { requests: null, window_seconds: null, storage_quota: null }

/** Knows the limits of each tenant. A change of a plan, or to another one, is known within a second. */
export default fp(
  async (app) => {
    const known = new LRUCache<string, PlanLimits>({ max: maxTenants })
    const lookups = new Map<string, Promise<PlanLimits>>()
    let changes = 0

    app.revocations.onTenantChange((tenantId) => {
      changes++
      if (tenantId === undefined) known.clear()
      else known.delete(tenantId)
    })

    async function ask(tenantId: string): Promise<PlanLimits> {
      const before = changes
      const nobody = { tenant_id: null, user_id: null, request: '' }
      const [limits = bySettings] = await app.gate.query(nobody, tenantLimits, { tenant_id: tenantId })
      // what changed while it was being read must be read again
      if (before === changes) known.set(tenantId, limits)
      return limits
    }

    app.decorate('storageQuota', async (tenantId: string) => {
      const { storage_quota } = await app.plans.find(tenantId)
      return storage_quota ?? app.config.storageQuota
    })
    app.decorate('plans', {
      find(tenantId: string) {
        const found = known.get(tenantId) ?? lookups.get(tenantId)
        if (found) return found
        const lookup = ask(tenantId)
          .catch((err) => {
            app.log.warn({ err }, 'the plan of a tenant could not be read')
            return bySettings
          })
          .finally(() => lookups.delete(tenantId))
        lookups.set(tenantId, lookup)
        return lookup
      }
    })
  },
  { name: 'plans', dependencies: ['revocations'] }
)
