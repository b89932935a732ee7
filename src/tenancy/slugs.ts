import { slugTaken } from '../http/problems.ts'

/** The pattern of a slug, which is a label of the tenant's host name. */
export const slugPattern = '^[a-z][a-z0-9-]{1,38}[a-z0-9]$'

/** Returns the stored form of a slug. Case does not matter, as in a host name. */
export const normalizeSlug = (given: string) => given.toLowerCase()

/**
 * Slugs for the platform's own hosts, for mail and infrastructure, and names that visitors would take for the operator.
 */
const reserved = new Set(
  `about abuse account accounts admin administrator aggios alertmanager api app apps assets auth autoconfig autodiscover
  backend billing blog careers cdn console contact dashboard db demo dev dns docs download email example files ftp git
  grafana graphql health help host hostmaster imap info internal intranet jaeger jobs kibana legal live localhost login
  logout loki mail mailer master media metrics minio minio-console mobile monitor monitoring mta-sts mx news noc ns ns1
  ns2 ns3 oauth ops owner pgadmin pop pop3 portal postgres postmaster preview privacy prod production prometheus proxy
  public redis register root s3 secure security sentry server signin signup smtp sso staging static stats status storage
  store superuser support sys sysadmin system test testing tempo traefik upload uploads usenet vault vpn web webmail
  webmaster wpad ws www www1 www2 xn--`.split(/\s+/)
)

/** Whether a slug can't be registered. All punycode labels are reserved, because they can look like any other name. */
export function isReservedSlug(slug: string): boolean {
  return reserved.has(slug) || slug.startsWith('xn--')
}

/** Throws `slug_taken` for a reserved slug. */
export function requireUnreserved(slug: string): void {
  if (isReservedSlug(slug)) throw slugTaken({ detail: 'this slug is reserved: no agency can have it' })
}
