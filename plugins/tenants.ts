import type { FastifyRequest } from 'fastify'
import fp from 'fastify-plugin'
import { LRUCache } from 'lru-cache'
import { findTenant, type TenantEntry } from '../db/directory.ts'
import { malformedRequest, type Problem, tenantNotFound, unknownHost } from '../src/errors.ts'
import { type HostName, parseHost } from '../src/hosts.ts'
import { slugPattern } from '../src/slugs.ts'

declare module 'fastify' {
  interface FastifyInstance {
    tenants: {
      /** The tenant with this slug, from memory where it is known. */
      find(slug: string): TenantEntry | undefined | Promise<TenantEntry | undefined>
      /** The same from memory alone. */
      peek(slug: string): TenantEntry | undefined
      /** Forgets what was, or was not, under this slug. */
      created(slug: string): void
      stats(): { known: number; unknown: number }
    }
  }
  interface FastifyRequest {
    /** The tenant of the host name, suspended or not; undefined on the general host. */
    tenant: TenantEntry | undefined
    /** Why this host is not served. Thrown by the guard of every route that does not answer on any host. */
    hostProblem: Problem | undefined
  }
}

const maxTenants = 50_000
const maxUnknown = 5_000
/** How long a slug that nobody has stays so for this process when another one registers it. */
const unknownForMs = 2_000

/** Resolves the tenant of a request from its Host header, and from nothing else. */
export default fp(
  async (app) => {
    const { baseDomain, nodeEnv } = app.config
    const names = new LRUCache<string, HostName>({ max: maxUnknown })
    const known = new LRUCache<string, TenantEntry>({ max: maxTenants })
    const unknown = new LRUCache<string, true>({ max: maxUnknown, ttl: unknownForMs })
    const lookups = new Map<string, Promise<TenantEntry | undefined>>()
    const valid = new RegExp(slugPattern)
    let changes = 0

    app.revocations.onTenantChange((tenantId) => {
      changes++
      if (tenantId === undefined) return known.clear()
      for (const [slug, tenant] of known) if (tenant.id === tenantId) known.delete(slug)
    })

    function find(slug: string): TenantEntry | undefined | Promise<TenantEntry | undefined> {
      const tenant = known.get(slug)
      if (tenant) return tenant
      if (!valid.test(slug) || unknown.has(slug)) return undefined
      const running = lookups.get(slug)
      if (running) return running
      const lookup = ask(slug).finally(() => lookups.delete(slug))
      lookups.set(slug, lookup)
      return lookup
    }

    async function ask(slug: string): Promise<TenantEntry | undefined> {
      const before = changes
      const [tenant] = await app.gate.query({ tenant_id: null, user_id: null, request: '' }, findTenant, { slug })
      // what changed while it was being read must be read again
      if (before === changes) {
        if (tenant) known.set(slug, tenant)
        else unknown.set(slug, true)
      }
      return tenant
    }

    app.decorate('tenants', {
      find,
      peek: (slug: string) => known.get(slug),
      created(slug: string) {
        changes++
        known.delete(slug)
        unknown.delete(slug)
      },
      stats: () => ({ known: known.size, unknown: unknown.size })
    })
    app.metrics.gauge(
      'aggios_tenant_cache_entries',
      'Host names that are remembered, by whether a tenant has them',
      () => [
        { labels: { kind: 'known' }, value: known.size },
        { labels: { kind: 'unknown' }, value: unknown.size }
      ]
    )
    app.decorateRequest('tenant', undefined)
    app.decorateRequest('hostProblem', undefined)

    app.addHook('onRequest', (request, _reply, done) => {
      const host = hostOf(request)
      if (host === undefined) return done(malformedRequest())
      let name = names.get(host)
      if (!name) {
        name = parseHost(host, baseDomain, nodeEnv === 'development')
        if (!name) return done(malformedRequest())
        names.set(host, name)
      }
      if (name.kind === 'general') return done()
      if (name.kind === 'unknown') {
        request.hostProblem = unknownHost()
        return done()
      }
      // for who asks too often nobody looks anything up
      const tenant = request.refused ? known.get(name.slug) : find(name.slug)
      if (!(tenant instanceof Promise)) {
        settle(request, tenant)
        return done()
      }
      tenant.then(
        (found) => {
          settle(request, found)
          done()
        },
        (err) => {
          // the routes that answer on any host do so without a database too
          request.hostProblem = err
          done()
        }
      )
    })
  },
  { name: 'tenants', dependencies: ['revocations', 'metrics'] }
)

function settle(request: FastifyRequest, tenant: TenantEntry | undefined): void {
  request.tenant = tenant
  if (!tenant) request.hostProblem = tenantNotFound()
}

/**
 * The one Host header, or undefined for a request that could be read in two ways: none or several of it, several
 * Authorization headers (Node would silently take the first), or a target in absolute form that names a host of its own.
 */
function hostOf(request: FastifyRequest): string | undefined {
  const { rawHeaders, url } = request.raw
  let hosts = 0
  let authorizations = 0
  for (let i = 0; i < rawHeaders.length; i += 2) {
    const name = rawHeaders[i] as string
    if (name.length === 4 && name.toLowerCase() === 'host') hosts++
    else if (name.length === 13 && name.toLowerCase() === 'authorization') authorizations++
  }
  if (hosts !== 1 || authorizations > 1 || url?.[0] !== '/') return undefined
  return request.headers.host
}
