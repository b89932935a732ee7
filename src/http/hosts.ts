import { isIP } from 'node:net'

/** What a Host header names. `unknown` is a host that this server does not serve; undefined stands for malformed. */
export type HostName = { kind: 'tenant'; slug: string } | { kind: 'general' } | { kind: 'unknown' }

const general: HostName = { kind: 'general' }
const unknown: HostName = { kind: 'unknown' }
const wellFormed = /^(?:\[[0-9a-f:.]{2,45}\]|[a-z0-9_](?:[a-z0-9._-]{0,251}[a-z0-9_])?\.?)(?::([0-9]{1,5}))?$/

/** Whether a name, in lower case and without its port, means the general host besides those that the base domain makes. */
export type IsGeneral = (name: string) => boolean

/** The names of EXTRA_HOSTS, of which `*.local` stands for every name that ends with `.local`; in development every address too. */
export function generalHosts(names: readonly string[], development: boolean): IsGeneral {
  const exact = new Set(names.filter((name) => !name.startsWith('*.')))
  const endings = names.flatMap((name) => (name.startsWith('*.') ? name.slice(1) : []))
  return (name) =>
    exact.has(name) ||
    endings.some((ending) => name.endsWith(ending)) ||
    (development && (name === 'localhost' || name.startsWith('[') || isIP(name) !== 0))
}

/** Reads a Host header (RFC 9110, 7.2): case, a port and one trailing dot make no difference. Names under the base domain come first. */
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
