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

/** The bits in front of an IPv4 address that is written as an IPv6 one (RFC 4291, 2.5.5.2). */
const mappedBits = 96
const isMapped = (start: string, address: string) => start.includes(':') && !address.includes(':')

/**
 * Whether a text is an address or a CIDR range. A range of all addresses is none, nor is one of IPv4-mapped addresses that
 * holds all of them, or others as well.
 */
export function isRange(text: string): boolean {
  const [start = '', prefix, ...rest] = text.split('/')
  const family = isIP(start)
  if (family === 0 || start.includes('%') || rest.length > 0) return false
  if (prefix === undefined) return true
  const least = isMapped(start, readAddress(start) as string) ? mappedBits + 1 : 1
  const bits = Number(prefix)
  return /^[1-9]\d{0,2}$/.test(prefix) && bits >= least && bits <= (family === 4 ? 32 : 128)
}

const familyOf = (address: string) => (address.includes(':') ? 'ipv6' : 'ipv4')

/** Returns a test for whether an address, with or without a port, is in one of these addresses and CIDR ranges. */
export function createRangeTest(ranges: readonly string[]): (text: string) => boolean {
  // one for each family: a range of IPv6 that holds the mapped addresses would hold those of IPv4 as well
  const lists = { ipv4: new BlockList(), ipv6: new BlockList() }
  for (const range of ranges) {
    const [start = '', prefix] = range.split('/')
    const address = readAddress(start) as string
    const given =
      prefix === undefined
        ? address.includes(':')
          ? 128
          : 32
        : Number(prefix) - (isMapped(start, address) ? mappedBits : 0)
    const family = familyOf(address)
    lists[family].addSubnet(address, given, family)
  }
  return (text) => {
    const address = readAddress(text)
    if (address === undefined) return false
    const family = familyOf(address)
    return lists[family].check(address, family)
  }
}
