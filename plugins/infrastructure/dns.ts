import { Resolver } from 'node:dns/promises'
import fp from 'fastify-plugin'

/**
 * The TXT records of a name, or why there are none. `no_name` and `no_record` are facts about the domain. With
 * `server_failure` and `timeout` nothing is known about it.
 */
export type TextLookup = { outcome: 'found'; texts: string[] } | { outcome: LookupFailure }
export type LookupFailure = 'no_name' | 'no_record' | 'server_failure' | 'timeout'

declare module 'fastify' {
  interface FastifyInstance {
    dns: {
      /** Looks the TXT records of a name up. Resolves within five seconds, and never rejects. */
      findTexts(name: string): Promise<TextLookup>
    }
  }
}

const timeoutMs = 5000
/** Each server is asked so often, and waited for this long the first time. */
const attempt = { tries: 2, timeout: 1500 }
/** More records than anybody has under a name that exists for the proof. The others are not looked at. */
const maxTexts = 50

const outcomes: Partial<Record<string, LookupFailure>> = {
  ENOTFOUND: 'no_name',
  ENODATA: 'no_record',
  ECANCELLED: 'timeout',
  ETIMEOUT: 'timeout'
}

/**
 * Asks DNS for text records, at the servers of DNS_SERVERS or else those of the machine. An answer is not remembered
 * here: whoever has just added a record asks again.
 */
export default fp(
  async (app) => {
    const { dnsServers } = app.config

    app.decorate('dns', {
      async findTexts(name: string): Promise<TextLookup> {
        // one for each look-up: cancelling ends all queries of a resolver, and a resolver remembers answers
        const resolver = new Resolver(attempt)
        if (dnsServers.length > 0) resolver.setServers(dnsServers)
        const timer = setTimeout(() => resolver.cancel(), timeoutMs)
        try {
          const records = await resolver.resolveTxt(name)
          // a record of more than 255 bytes comes in several strings, which belong together (RFC 7208, 3.3)
          return { outcome: 'found', texts: records.slice(0, maxTexts).map((strings) => strings.join('')) }
        } catch (err) {
          const outcome = outcomes[(err as NodeJS.ErrnoException).code ?? ''] ?? 'server_failure'
          if (outcome === 'server_failure') app.log.info({ err, name }, 'a name could not be looked up in DNS')
          return { outcome }
        } finally {
          clearTimeout(timer)
        }
      }
    })
  },
  { name: 'dns', dependencies: ['config'] }
)
