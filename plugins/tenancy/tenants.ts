import fp from 'fastify-plugin'
import { LRUCache } from 'lru-cache'
import { systemScope } from '../../db/gate/gate-query.ts'
import { findTenant, readTenantEntry, type TenantRow } from '../../db/queries/directory.ts'
import type { PlanLimits } from '../../db/queries/plans.ts'
import { createSlugCache } from '../../src/tenancy/slug-cache.ts'
import { slugPattern } from '../../src/tenancy/slugs.ts'

/** What is remembered of a tenant. Equal limits, and settings that say nothing, are one object for all. */
export type TenantEntry = Omit<TenantRow, keyof PlanLimits> & { limits: PlanLimits }

declare module 'fastify' {
  interface FastifyInstance {
    /** Bytes that a tenant may keep. */
    storageQuota(tenantId: string): Promise<number>
    tenants: {
      /** The tenant with this slug, from memory where it is known. */
      find(slug: string): TenantEntry | undefined | Promise<TenantEntry | undefined>
      /** The same from memory alone. */
      peek(slug: string): TenantEntry | undefined
      /** What a tenant's plan allows, from memory where it is known; what the settings say where it can't be read. */
      limitsOf(tenantId: string): PlanLimits | Promise<PlanLimits>
      /** Forgets what was, or was not, under this slug. */
      created(slug: string): void
      stats(): { known: number; unknown: number }
    }
  }
}

export const maxTenants = 150_000
export const maxUnknown = 5_000
/** How long a slug that nobody has stays so for this process when another one registers it. */
const unknownForMs = 2_000

const bySettings: PlanLimits = { requests: null, window_seconds: null, storage_quota: null }
const noSettings = Object.freeze({})

/**
 * Remembers tenants: one entry for each, by id and by slug, so that whichever a request brings first finds it for both. A
 * change of a tenant, of its plan, or to another one, is known within a second.
 */
export default fp(
  async (app) => {
    const known = createSlugCache<TenantEntry>(maxTenants)
    const unknown = new LRUCache<string, true>({ max: maxUnknown, ttl: unknownForMs })
    /** As many as there are plans: all are forgotten when one of them changes. */
    const limits = new Map<string, PlanLimits>()
    const lookups = new Map<string, Promise<TenantEntry | undefined>>()
    const limitLookups = new Map<string, Promise<PlanLimits>>()
    const valid = new RegExp(slugPattern)
    let changes = 0

    app.revocations.onTenantChange((tenantId) => {
      changes++
      if (tenantId !== undefined) return known.forget(tenantId)
      known.clear()
      limits.clear()
    })

    function entryOf({ id, slug, status, settings, requests, window_seconds, storage_quota }: TenantRow): TenantEntry {
      const plan = `${requests} ${window_seconds} ${storage_quota}`
      const shared = limits.get(plan) ?? { requests, window_seconds, storage_quota }
      limits.set(plan, shared)
      return { id, slug, status, settings: Object.keys(settings).length > 0 ? settings : noSettings, limits: shared }
    }

    /** Remembers an answer, unless something has changed since it was asked for: that must be read again. */
    async function remember(asked: Promise<TenantRow[]>, slug?: string): Promise<TenantEntry | undefined> {
      const before = changes
      const [row] = await asked
      if (!row) {
        if (before === changes && slug !== undefined) unknown.set(slug, true)
        return undefined
      }
      const tenant = entryOf(row)
      if (before === changes) known.keep(tenant)
      return tenant
    }

    async function readLimits(tenantId: string): Promise<PlanLimits> {
      try {
        const tenant = await remember(app.gate.query(systemScope, readTenantEntry, { tenant_id: tenantId }))
        return tenant?.limits ?? bySettings
      } catch (err) {
        app.log.warn({ err }, 'the plan of a tenant could not be read')
        return bySettings
      }
    }

    app.decorate('tenants', {
      find(slug: string) {
        const tenant = known.find(slug)
        if (tenant) return tenant
        if (!valid.test(slug) || unknown.has(slug)) return undefined
        return once(lookups, slug, () => remember(app.gate.query(systemScope, findTenant, { slug }), slug))
      },
      peek: known.find,
      limitsOf(tenantId: string) {
        const tenant = known.get(tenantId)
        return tenant ? tenant.limits : once(limitLookups, tenantId, () => readLimits(tenantId))
      },
      created(slug: string) {
        changes++
        known.forgetSlug(slug)
        unknown.delete(slug)
      },
      stats: () => ({ known: known.size(), unknown: unknown.size })
    })
    app.decorate('storageQuota', async (tenantId: string) => {
      const { storage_quota } = await app.tenants.limitsOf(tenantId)
      return storage_quota ?? app.config.storageQuota
    })
    app.metrics.gauge('aggios_tenant_cache_entries', 'Tenants that are remembered, and slugs that nobody has', () => [
      { labels: { kind: 'known' }, value: known.size() },
      { labels: { kind: 'unknown' }, value: unknown.size }
    ])
  },
  { name: 'tenants', dependencies: ['revocations', 'metrics'] }
)

/** Who comes while it is being done shares what comes of it. */
function once<T>(running: Map<string, Promise<T>>, key: string, start: () => Promise<T>): Promise<T> {
  const found = running.get(key)
  if (found) return found
  const started = start().finally(() => running.delete(key))
  running.set(key, started)
  return started
}
