import { BlockList, isIP, SocketAddress } from 'node:net'

/** Longer than an address with brackets, zone and port can be. */
const maxLength = 100

/**
 * The address in what a socket or a proxy says of a peer, always spelled the same; undefined: there is none in it. Brackets, port
 * and zone are left out, and IPv4 within IPv6 is IPv4.
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

/** Whether a hop is one of the proxies in these addresses and ranges, with whatever port it is written. */
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
