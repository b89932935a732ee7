import { BlockList, isIP, SocketAddress } from 'node:net'

/** An upper bound for an address with brackets, zone and port. */
const maxLength = 100

/**
 * Reads the IP address of a peer from a socket or a proxy's header, and returns it in one canonical spelling. Brackets,
 * port and zone are dropped, and an IPv4-mapped IPv6 address becomes IPv4. Undefined when the text holds no address.
 */
export function readAddress(text: string | undefined): string | undefined {
  if (text === undefined || text.length > maxLength) return undefined
  const [, bracketed, dotted] = /^(?:\[([^\]]*)\]|([\d.]+))(?::\d{1,5})?$/.exec(text) ?? []
  const [bare = ''] = (bracketed ?? dotted ?? text).split('%', 1)
  const family = isIP(bare)
  if (family === 0) return undefined
  if (family === 4) return bare
  const { address } = new SocketAddress({ address: bare, family: 'ipv6' })
  return /^::ffff:([\d.]+)$/.exec(address)?.[1] ?? address
}

/** Returns a test for whether a hop, with or without a port, is in one of these addresses and CIDR ranges. */
export function createProxyTrust(ranges: readonly string[]): (hop: string) => boolean {
  const proxies = new BlockList()
  for (const range of ranges) {
    const [text = '', prefix] = range.split('/')
    const address = readAddress(text) as string
    const isMapped = text.includes(':') && !address.includes(':')
    const bits = address.includes(':') ? 128 : 32
    const given = prefix === undefined ? bits : Number(prefix) - (isMapped ? 96 : 0)
    proxies.addSubnet(address, given, bits === 128 ? 'ipv6' : 'ipv4')
  }
  return (hop) => {
    const address = readAddress(hop)
    return address !== undefined && proxies.check(address, address.includes(':') ? 'ipv6' : 'ipv4')
  }
}
