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

/** Whether a text is an address or a CIDR range. A range of all addresses is none. */
export function isRange(text: string): boolean {
  const [address = '', prefix, ...rest] = text.split('/')
  const family = isIP(address)
  if (family === 0 || address.includes('%') || rest.length > 0) return false
  if (prefix === undefined) return true
  return /^[1-9]\d{0,2}$/.test(prefix) && Number(prefix) <= (family === 4 ? 32 : 128)
}

/** Returns a test for whether an address, with or without a port, is in one of these addresses and CIDR ranges. */
export function createRangeTest(ranges: readonly string[]): (text: string) => boolean {
  const list = new BlockList()
  for (const range of ranges) {
    const [start = '', prefix] = range.split('/')
    const address = readAddress(start) as string
    const isMapped = start.includes(':') && !address.includes(':')
    const bits = address.includes(':') ? 128 : 32
    const given = prefix === undefined ? bits : Number(prefix) - (isMapped ? 96 : 0)
    list.addSubnet(address, given, bits === 128 ? 'ipv6' : 'ipv4')
  }
  return (text) => {
    const address = readAddress(text)
    return address !== undefined && list.check(address, address.includes(':') ? 'ipv6' : 'ipv4')
  }
}
