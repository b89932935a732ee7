import type { FastifyRequest } from 'fastify'
import fp from 'fastify-plugin'
import { generalHosts, parseHost } from '../../src/http/host-header.ts'
import { malformedRequest, type Problem, unknownHost } from '../../src/http/problems.ts'
import type { TenantEntry } from './tenants.ts'

declare module 'fastify' {
  interface FastifyRequest {
    /** The problem when the request is ambiguous, for example by two Host headers. The guard refuses it. */
    malformed: Problem | undefined
    /**
     * The problem when the request's host is not served. The guard refuses it, except on routes that answer on any
     * host.
     */
    hostProblem: Problem | undefined
    /** The slug in a tenant's host name. Undefined on the general host. */
    slug: string | undefined
    /**
     * The tenant of the host name, also a suspended one. Undefined on the general host, and before `tenant-lookup` when
     * not cached.
     */
    tenant: TenantEntry | undefined
    /** The scheme and host under which the client has reached this server, for links to it. */
    readonly origin: string
  }
}

/**
 * Reads the Host header, and finds its tenant in the cache. The Host header is the only source of a request's tenant.
 * Refuses nothing: `src/auth/admission.ts` decides.
 */
export default fp(
  async (app) => {
    const { baseDomain, extraHosts, nodeEnv } = app.config
    const isGeneral = generalHosts(extraHosts, nodeEnv === 'development')
    app.decorateRequest('malformed', undefined)
    app.decorateRequest('hostProblem', undefined)
    app.decorateRequest('slug', undefined)
    app.decorateRequest('tenant', undefined)
    app.decorateRequest('origin', {
      // only from the Host header, because X-Forwarded-Host is not checked; X-Forwarded-Proto may have any text
      getter(this: FastifyRequest) {
        return `${this.protocol === 'https' ? 'https' : 'http'}://${this.headers.host}`
      }
    })

    app.addHook('onRequest', (request, _reply, done) => {
      const host = hostOf(request)
      // parsed each time, because a lookup among 100,000 names would take longer
      const name = host === undefined ? undefined : parseHost(host, baseDomain, isGeneral)
      if (!name) request.malformed = malformedRequest()
      else if (name.kind === 'unknown') request.hostProblem = unknownHost()
      else if (name.kind === 'tenant') {
        request.slug = name.slug
        request.tenant = app.tenants.peek(name.slug)
      }
      done()
    })
  },
  { name: 'hosts', dependencies: ['tenants'] }
)

/**
 * The Host header. Undefined for an ambiguous request: without exactly one Host header, with several Authorization
 * headers (Node would silently use the first), or with a target in absolute form, which names a host too.
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
