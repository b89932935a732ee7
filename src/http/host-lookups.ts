import { type LookupAddress, lookup } from 'node:dns'
import { Resolver } from 'node:dns/promises'
import { readFile } from 'node:fs/promises'
import { setTimeout as sleep } from 'node:timers/promises'

/** Finds the addresses of a host, at least one. Rejects with an error that has a `code` of DNS. */
export type HostLookup = (hostname: string) => Promise<LookupAddress[]>

/** All attempts together. It is less than a request may take. */
export const hostLookupTimeoutMs = 4000
/** Each server is asked so often, and waited for this long the first time. */
const attempt = { tries: 2, timeout: 1500 }
/** Once one family of addresses is known, the other one is waited for only this long: some servers never answer for it. */
const otherFamilyMs = 250
/** Look-ups by the system that run at once. Each holds one of the threads (libuv) that files and hashing need too. */
const maxSystemLookups = 2

const isLocal = (name: string) => name === 'localhost' || name.endsWith('.localhost')
const local: LookupAddress[] = [
  { address: '127.0.0.1', family: 4 },
  { address: '::1', family: 6 }
]

/**
 * Makes a look-up for names that somebody else has chosen. It waits for name servers without a thread, so that those that never
 * answer hold up nothing else, and ends in bounded time.
 *
 * `localhost` and the names below it are this machine (RFC 6761). The hosts file comes before DNS, which is asked at `servers`, or
 * else at the servers of the machine.
 */
export function createHostLookup({
  servers,
  hostsFile = '/etc/hosts'
}: {
  servers: readonly string[]
  hostsFile?: string
}): HostLookup {
  return async (hostname) => {
    const name = hostname.toLowerCase().replace(/\.$/, '')
    if (isLocal(name)) return local
    const written = await findInHostsFile(hostsFile, name)
    return written.length > 0 ? written : askNameServers(servers, name)
  }
}

async function findInHostsFile(file: string, name: string): Promise<LookupAddress[]> {
  const text = await readFile(file, 'utf8').catch(() => '')
  return text.split('\n').flatMap((line) => {
    const [address = '', ...names] = (line.split('#', 1)[0] as string).trim().split(/\s+/)
    if (!names.some((each) => each.toLowerCase() === name)) return []
    return [{ address, family: address.includes(':') ? 6 : 4 }]
  })
}

async function askNameServers(servers: readonly string[], name: string): Promise<LookupAddress[]> {
  // one for each look-up: cancelling ends all queries of a resolver, and a resolver remembers answers
  const resolver = new Resolver(attempt)
  if (servers.length > 0) resolver.setServers(servers)
  const timer = setTimeout(() => resolver.cancel(), hostLookupTimeoutMs)
  try {
    const found: LookupAddress[][] = [[], []]
    const families = [resolver.resolve4(name), resolver.resolve6(name)].map(async (query, index) => {
      found[index] = (await query).map((address) => ({ address, family: index === 0 ? 4 : 6 }))
    })
    const all = Promise.allSettled(families)
    await Promise.any(families)
    await Promise.race([all, sleep(otherFamilyMs)])
    return found.flat()
  } catch (err) {
    // both have failed: what the name server says of IPv4 addresses counts
    throw err instanceof AggregateError ? err.errors[0] : err
  } finally {
    clearTimeout(timer)
    resolver.cancel()
  }
}

/**
 * Makes a look-up by the system, for the hosts of the operator: it knows what the machine is configured for, such as search domains
 * and other sources than DNS. At most two run at once, and one of each name; others wait.
 */
export function createSystemLookup(resolve: typeof lookup.__promisify__ | undefined = undefined): HostLookup {
  const under = new Map<string, Promise<LookupAddress[]>>()
  const waiting: (() => void)[] = []
  let running = 0
  const ask = (name: string): Promise<LookupAddress[]> =>
    resolve
      ? resolve(name, { all: true })
      : new Promise((fulfil, reject) => {
          lookup(name, { all: true }, (err, addresses) => (err ? reject(err) : fulfil(addresses)))
        })

  async function run(name: string): Promise<LookupAddress[]> {
    if (running >= maxSystemLookups) await new Promise<void>((go) => waiting.push(go))
    else running++
    try {
      return await ask(name)
    } finally {
      under.delete(name)
      const next = waiting.shift()
      if (next) next()
      else running--
    }
  }

  return (name) => {
    const known = under.get(name)
    if (known) return known
    const asked = run(name)
    under.set(name, asked)
    return asked
  }
}
