import fp from 'fastify-plugin'
import { LRUCache } from 'lru-cache'
import { systemScope } from '../../db/gate/gate-query.ts'
import { findTenant, readTenantEntry, type TenantRow } from '../../db/queries/directory.ts'
import type { PlanLimits } from '../../db/queries/plans.ts'
import { createSlugCache } from '../../src/tenancy/slug-cache.ts'
import { slugPattern } from '../../src/tenancy/slugs.ts'

/** The cached entry of a tenant. Entries with equal limits share one object, and entries without settings too. */
export type TenantEntry = Omit<TenantRow, keyof PlanLimits> & { limits: PlanLimits }

declare module 'fastify' {
  interface FastifyInstance {
    /** The storage quota of a tenant in bytes. */
    storageQuota(tenantId: string): Promise<number>
    tenants: {
      /**
       * Finds the tenant with this slug, in the cache or else in the database. Returns a promise only in the second
       * case.
       */
      find(slug: string): TenantEntry | undefined | Promise<TenantEntry | undefined>
      /** Finds the tenant with this id, in the cache or else in the database. */
      findById(tenantId: string): Promise<TenantEntry | undefined>
      /** Finds the tenant in the cache only. */
      peek(slug: string): TenantEntry | undefined
      /**
       * The limits of a tenant's plan, from the cache or else from the database. When the plan can't be read, the
       * settings apply.
       */
      limitsOf(tenantId: string): PlanLimits | Promise<PlanLimits>
      /** Drops the cached result for a slug under which a tenant was just created. */
      created(slug: string): void
      stats(): { known: number; unknown: number }
    }
  }
}

export const maxTenants = 150_000
export const maxUnknown = 5_000
/** A slug that another process has just registered stays unknown in this process for so long. */
const unknownSlugMs = 2_000

const bySettings: PlanLimits = { requests: null, window_seconds: null, storage_quota: null }
const noSettings = Object.freeze({})

/**
 * A cache of tenants. Each has one entry, which is found by id and by slug. A change of a tenant or of its plan is
 * known within a second.
 */
export default fp(
  async (app) => {
    const known = createSlugCache<TenantEntry>(maxTenants)
    const unknown = new LRUCache<string, true>({ max: maxUnknown, ttl: unknownSlugMs })
    /** The limits that entries share: one object per plan. All are dropped when a plan changes. */
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

    /**
     * Caches the result of a query, unless a tenant has changed since the query began. Then the next request reads
     * again.
     */
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

    const readById = (tenantId: string) =>
      remember(app.gate.query(systemScope, readTenantEntry, { tenant_id: tenantId }))

    async function readLimits(tenantId: string): Promise<PlanLimits> {
      try {
        const tenant = await readById(tenantId)
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
      findById: async (tenantId: string) => known.get(tenantId) ?? readById(tenantId),
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

/** Runs one query per key at a time. Callers that come meanwhile share its result. */
function once<T>(running: Map<string, Promise<T>>, key: string, start: () => Promise<T>): Promise<T> {
  const found = running.get(key)
  if (found) return found
  const started = start().finally(() => running.delete(key))
  running.set(key, started)
  return started
}
