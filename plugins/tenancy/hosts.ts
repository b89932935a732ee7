import type { FastifyRequest } from 'fastify'
import fp from 'fastify-plugin'
import { generalHosts, parseHost } from '../../src/http/hosts.ts'
import { malformedRequest, type Problem, tenantNotFound, unknownHost } from '../../src/http/problems.ts'
import type { TenantEntry } from './tenants.ts'

declare module 'fastify' {
  interface FastifyRequest {
    /** The tenant of the host name, suspended or not; undefined on the general host. */
    tenant: TenantEntry | undefined
    /** Why this host is not served. Thrown by the guard of every route that does not answer on any host. */
    hostProblem: Problem | undefined
    /** Scheme and host under which the client has reached this server, for links back to it. */
    readonly origin: string
  }
}

/** Resolves the tenant of a request from its Host header, and from nothing else. */
export default fp(
  async (app) => {
    const { baseDomain, extraHosts, nodeEnv } = app.config
    const isGeneral = generalHosts(extraHosts, nodeEnv === 'development')
    app.decorateRequest('tenant', undefined)
    app.decorateRequest('hostProblem', undefined)
    app.decorateRequest('origin', {
      // the Host header alone: no X-Forwarded-Host is ever checked, and what stands in X-Forwarded-Proto may be any scheme
      getter(this: FastifyRequest) {
        return `${this.protocol === 'https' ? 'https' : 'http'}://${this.headers.host}`
      }
    })

    app.addHook('onRequest', (request, _reply, done) => {
      const host = hostOf(request)
      if (host === undefined) return done(malformedRequest())
      // not remembered: among 100,000 names it would take longer to find than to parse
      const name = parseHost(host, baseDomain, isGeneral)
      if (!name) return done(malformedRequest())
      if (name.kind === 'general') return done()
      if (name.kind === 'unknown') {
        request.hostProblem = unknownHost()
        return done()
      }
      // for who asks too often nobody looks anything up
      const tenant = request.refused ? app.tenants.peek(name.slug) : app.tenants.find(name.slug)
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
  { name: 'hosts', dependencies: ['tenants', 'limits'] }
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
