import { normalizeIP } from '@fastify/rate-limit'
import fp from 'fastify-plugin'
import { readAddress } from '../../src/http/addresses.ts'

declare module 'fastify' {
  interface FastifyRequest {
    /**
     * Of the client: what the proxies in front say of it, else of who is connected. Undefined: the connection is gone, and nobody
     * knows any more. Nothing else of a request says where it is from.
     */
    readonly address: string | undefined
    /** The same as it is counted: IPv6 by /64, within which a device moves as it likes. */
    readonly network: string
  }
}

/** Where requests are from. What a proxy passes on and is no address would be a new stranger each time: the proxy is meant then. */
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
