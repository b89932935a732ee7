import { isIP } from 'node:net'

/** The meaning of a Host header. `unknown` is a host that this server does not serve. */
export type HostName = { kind: 'tenant'; slug: string } | { kind: 'general' } | { kind: 'unknown' }

const general: HostName = { kind: 'general' }
const unknown: HostName = { kind: 'unknown' }
const wellFormed = /^(?:\[[0-9a-f:.]{2,45}\]|[a-z0-9_](?:[a-z0-9._-]{0,251}[a-z0-9_])?\.?)(?::([0-9]{1,5}))?$/

/** Tells whether a host name, in lower case and without a port, is a general host outside the base domain. */
export type IsGeneral = (name: string) => boolean

/**
 * Returns a test for the names of EXTRA_HOSTS. `*.local` matches every name that ends with `.local`. Development
 * accepts IP addresses too.
 */
export function generalHosts(names: readonly string[], development: boolean): IsGeneral {
  const exact = new Set(names.filter((name) => !name.startsWith('*.')))
  const endings = names.flatMap((name) => (name.startsWith('*.') ? name.slice(1) : []))
  return (name) =>
    exact.has(name) ||
    endings.some((ending) => name.endsWith(ending)) ||
    (development && (name === 'localhost' || name.startsWith('[') || isIP(name) !== 0))
}

/**
 * Parses a Host header (RFC 9110, 7.2); undefined when it is malformed. Case, port and one trailing dot make no
 * difference. Names under the base domain win over general hosts.
 */
export function parseHost(header: string, baseDomain: string, isGeneral: IsGeneral): HostName | undefined {
  const match = wellFormed.exec(header.toLowerCase())
  if (!match || Number(match[1] ?? 0) > 65535) return undefined
  const portAt = match[1] === undefined ? header.length : header.length - match[1].length - 1
  let name = match[0].slice(0, portAt)
  if (name.endsWith('.')) name = name.slice(0, -1)

  if (name === baseDomain || name === `api.${baseDomain}`) return general
  if (name.endsWith(`.${baseDomain}`)) {
    const slug = name.slice(0, -baseDomain.length - 1)
    return slug.includes('.') ? unknown : { kind: 'tenant', slug }
  }
  return isGeneral(name) ? general : unknown
}
