import type { FastifyRequest } from 'fastify'
import fp from 'fastify-plugin'
import { generalHosts, parseHost } from '../../src/http/hosts.ts'
import { malformedRequest, type Problem, unknownHost } from '../../src/http/problems.ts'
import type { TenantEntry } from './tenants.ts'

declare module 'fastify' {
  interface FastifyRequest {
    /** The request could be read in two ways. The guard refuses it. */
    malformed: Problem | undefined
    /** Why the request's host is not served. The guard refuses it, but on routes that answer on any host. */
    hostProblem: Problem | undefined
    /** The slug in the host name of a tenant; undefined on the general host. */
    slug: string | undefined
    /** The tenant of the host name, suspended or not; undefined on the general host, and until `tenant-lookup` where memory lacks it. */
    tenant: TenantEntry | undefined
    /** Scheme and host under which the client has reached this server, for links back to it. */
    readonly origin: string
  }
}

/**
 * Reads the Host header, and finds its tenant in memory. The tenant of a request comes from there and from nothing else. States
 * facts and refuses nothing.
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
      // the Host header alone: no X-Forwarded-Host is ever checked, and what stands in X-Forwarded-Proto may be any scheme
      getter(this: FastifyRequest) {
        return `${this.protocol === 'https' ? 'https' : 'http'}://${this.headers.host}`
      }
    })

    app.addHook('onRequest', (request, _reply, done) => {
      const host = hostOf(request)
      // parsed each time: among 100,000 names it would take longer to find one in memory
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
