import { normalizeIP } from '@fastify/rate-limit'
import fp from 'fastify-plugin'
import { readAddress } from '../../src/http/addresses.ts'

declare module 'fastify' {
  interface FastifyRequest {
    /**
     * The client's IP address: from the trusted proxies, or else of the connection. Undefined when the connection is
     * gone. This is the only source of a request's address.
     */
    readonly address: string | undefined
    /**
     * The client's network for limits: the IPv4 address, or the /64 of the IPv6 address, within which a device may
     * change its own.
     */
    readonly network: string
  }
}

/**
 * The addresses of clients. When a proxy passes on a value that is no address, the proxy's own address counts.
 * Otherwise each such value would get a limit of its own.
 */
export default fp(
  async (app) => {
    app.decorateRequest('address', {
      getter() {
        return readAddress(this.ip) ?? readAddress(this.raw.socket?.remoteAddress)
      }
    })
    app.decorateRequest('network', {
      getter() {
        return normalizeIP(this.address ?? '', 64)
      }
    })
  },
  { name: 'addresses' }
)
