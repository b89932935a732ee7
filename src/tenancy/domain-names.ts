import { isIP } from 'node:net'
import { domainToASCII } from 'node:url'
import { parse } from 'tldts'

/** The label in front of a domain under which its owner puts the proof. Nobody's host has an underscore in its name. */
const label = '_aggios-challenge'

/**
 * The longest domain. The name of its record must fit DNS, which carries 253 characters (RFC 1035, 2.3.4), and its own name a
 * path of this API, where a parameter has at most 200.
 */
export const maxDomainLength = 200

const pattern = /^(?:[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?\.)+[a-z](?:[a-z0-9-]{0,61}[a-z0-9])$/

/**
 * Returns the form in which a domain is stored and looked up: in lower case, in ASCII (IDNA), without the final dot.
 * Undefined for a text that is no name of a domain, such as an address or a single label.
 */
export function normalizeDomain(text: string): string | undefined {
  // it reads a text as the host of a URL, and would leave out what follows the host
  if (/[\s/\\?#@:%[\]]/.test(text)) return undefined
  const name = domainToASCII(text.replace(/\.$/, ''))
  return name.length <= maxDomainLength && pattern.test(name) && !isIP(name) ? name : undefined
}

/**
 * Says why no agency may prove a domain, or returns undefined. Under a public suffix, such as `com.br` or `github.io`,
 * people who have nothing to do with each other have names, so nobody speaks for all of them. The names under
 * `baseDomain` belong to the agencies' hosts, and the operator decides about them.
 */
export function domainFault(name: string, baseDomain: string): string | undefined {
  if (`.${name}`.endsWith(`.${baseDomain}`)) return 'belongs to this service'
  if (parse(name, { allowPrivateDomains: true }).domain === null) return 'is a public suffix: nobody can prove it'
  return undefined
}

/** The record of DNS that proves a domain. */
export function domainRecord(name: string, challenge: string) {
  return { type: 'TXT' as const, name: `${label}.${name}`, value: `aggios-domain=${challenge}` }
}
