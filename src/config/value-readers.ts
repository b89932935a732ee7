import { isIP } from 'node:net'
import { isRange } from '../http/addresses.ts'

/*
 * Readers of settings: each turns the text of an environment variable into a value. A reader throws InvalidValue for a
 * text that it does not accept.
 */

/** Says what is wrong with the text of a setting. The message never repeats the text of a secret. */
export class InvalidValue extends Error {}

/** At most `max` events in `window_ms`, written as `10/1m`. `max` 0 switches the limit off. */
export type Rate = { max: number; window_ms: number }

export const text = (value: string) => value
export const list = (value: string) => value.split(',').flatMap((item) => item.trim() || [])

export function oneOf<const T extends string>(...values: T[]) {
  return (value: string): T => {
    const found = values.find((candidate) => candidate === value)
    if (!found) throw new InvalidValue(`must be one of ${values.join(', ')}`)
    return found
  }
}

export function integer(min: number, max: number) {
  return (value: string): number => {
    const number = /^\d{1,15}$/.test(value) ? Number(value) : Number.NaN
    if (!(number >= min && number <= max)) throw new InvalidValue(`must be a whole number from ${min} to ${max}`)
    return number
  }
}

export function domain(value: string): string {
  const lower = value.toLowerCase()
  const label = '[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?'
  if (!new RegExp(`^${label}(?:\\.${label})*$`).test(lower) || isIP(lower)) {
    throw new InvalidValue('must be a domain name such as aggios.app')
  }
  return lower
}

/** Host names and addresses as a Host header spells them. `*.local` means every name under `local`. */
export function hostNames(value: string): string[] {
  return list(value.toLowerCase()).map((name) => {
    const bare = name.replace(/^\[(.*)\]$/, '$1')
    if (isIP(bare)) return isIP(bare) === 6 ? `[${bare}]` : bare
    try {
      domain(name.replace(/^\*\./, ''))
    } catch {
      throw new InvalidValue(`"${name}" is no host such as 127.0.0.1, host.docker.internal or *.local, without a port`)
    }
    return name
  })
}

export function postgresUrl(value: string): string {
  if (!URL.canParse(value) || !/^postgres(ql)?:$/.test(new URL(value).protocol)) {
    throw new InvalidValue('must be a URL that begins with postgres://')
  }
  return value
}

export function smtpUrl(value: string): string {
  if (!URL.canParse(value) || !/^smtps?:$/.test(new URL(value).protocol)) {
    throw new InvalidValue('must be a URL that begins with smtp:// or smtps://')
  }
  return value
}

/** The origin of the links in mails. `{slug}` stands for the slug of the tenant. */
export function appUrl(value: string): string {
  const example = value.replaceAll('{slug}', 'acme')
  if (!/^https?:\/\//.test(example) || !URL.canParse(example) || new URL(example).search || new URL(example).hash) {
    throw new InvalidValue('must be a URL such as https://{slug}.example.com')
  }
  refuseCredentials(new URL(example))
  return value.replace(/\/+$/, '')
}

/** An issuer of OpenID Connect (OpenID Connect Discovery 1.0, 3): a URL without a query and a fragment. */
export function issuer(value: string): string {
  if (!isIssuer(value)) throw new InvalidValue('must be an issuer such as https://accounts.google.com')
  return value
}

/** Tells whether a text is an issuer, spelled as a URL parser spells it. A slash at the end is part of it. */
export function isIssuer(value: string): boolean {
  if (value.length > 255 || !/^https?:\/\/[^\s?#@\\{}]+$/.test(value) || !URL.canParse(value)) return false
  const { href } = new URL(value)
  return href === value || href === `${value}/`
}

/**
 * Exact addresses of mobile apps to which a sign-in may lead: of a scheme of the app's own (RFC 8252, 7.1), which has a
 * dot, such as `com.example.app:/signed-in`, or universal links.
 */
export function appRedirects(value: string): string[] {
  for (const target of list(value)) {
    const known = /^(?:https:\/\/[^/]+\/|[a-z][a-z0-9-]*(?:\.[a-z0-9-]+)+:\/)/.test(target)
    if (!known || !/^[!-~]{1,512}$/.test(target) || /[\\#@*]/.test(target) || !URL.canParse(target)) {
      throw new InvalidValue(`"${target}" is no address of an app such as com.example.app:/signed-in`)
    }
  }
  return list(value)
}

export function networks(value: string): string[] {
  for (const range of list(value)) {
    if (!isRange(range)) {
      throw new InvalidValue(
        `must be a list of addresses or CIDR ranges; "${range}" is neither, or would trust everybody`
      )
    }
  }
  return list(value)
}

/** Exact web origins, spelled as a browser sends them. `*` is accepted here; production.ts refuses it. */
export function origins(value: string): string[] {
  for (const origin of list(value)) {
    if (origin === '*') continue
    if (!isOrigin(origin)) throw new InvalidValue(`"${origin}" is not an origin such as https://app.example.com`)
  }
  return list(value)
}

/** The origins of web views: Capacitor, Ionic and Tauri serve an app's pages under their own scheme, without a port. */
const appOrigin = /^(?:capacitor|ionic|tauri):\/\/[a-z0-9](?:[a-z0-9.-]{0,251}[a-z0-9])?$/

/**
 * Tells whether a text is an origin as a browser or an app's web view sends it: no path, no default port, lower case.
 */
export function isOrigin(value: string): boolean {
  if (appOrigin.test(value)) return true
  return /^https?:\/\/[^*]+$/.test(value) && URL.canParse(value) && new URL(value).origin === value
}

/** The host of a web origin, as a browser spells origins. Undefined for everything else. */
export const originHost = (value: string): string | undefined =>
  /^https?:/.test(value) && isOrigin(value) ? new URL(value).hostname : undefined

/** Whether the host of a web origin is the domain or a name below it. */
export function isBelow(origin: string, domain: string): boolean {
  const host = originHost(origin)
  return host !== undefined && (host === domain || host.endsWith(`.${domain}`))
}

/** An Android app signs with the SHA-256 of its certificate, in base64url, for an origin. */
const androidOrigin = /^android:apk-key-hash:[A-Za-z0-9_-]{43}$/

/** Exact origins of native apps, as their platforms write them into the client data of a passkey. */
export function passkeyOrigins(value: string): string[] {
  for (const origin of list(value)) {
    if (androidOrigin.test(origin) || (origin.startsWith('https://') && isOrigin(origin))) continue
    throw new InvalidValue(
      `"${origin}" is neither android:apk-key-hash: with 43 characters nor an origin such as https://example.com`
    )
  }
  return list(value)
}

const unitMs: Record<string, number> = { s: 1000, m: 60_000, h: 3_600_000 }

/** Reads `10/1m`; `0` means no limit. */
export function rate(value: string): Rate {
  if (value === '0') return { max: 0, window_ms: unitMs.m as number }
  const match = /^([1-9]\d{0,8})\/([1-9]\d{0,3})([smh])$/.exec(value)
  if (!match) throw new InvalidValue('must be a count and a time such as 10/1m, or 0 for no limit')
  return { max: Number(match[1]), window_ms: Number(match[2]) * (unitMs[match[3] as string] as number) }
}

const unitBytes: Record<string, number> = { '': 1, KiB: 2 ** 10, MiB: 2 ** 20, GiB: 2 ** 30, TiB: 2 ** 40 }

/** Reads a number of bytes: `100MiB`, `10GiB`, or digits alone. */
export function size(value: string): number {
  const [, count, unit = ''] = /^([1-9]\d{0,14})(|[KMGT]iB)$/.exec(value) ?? []
  const bytes = Number(count) * (unitBytes[unit] as number)
  if (!(bytes <= 2 ** 50)) throw new InvalidValue('must be a size such as 100MiB or 10GiB')
  return bytes
}

export function redisUrl(value: string): string {
  if (!URL.canParse(value) || !/^rediss?:$/.test(new URL(value).protocol) || new URL(value).hostname === '') {
    throw new InvalidValue('must be a URL that begins with redis:// or rediss://')
  }
  return value
}

/**
 * Refuses a URL with a name or a password before its host. A request to such a URL always fails, with an error that has the
 * whole URL in its text.
 */
function refuseCredentials(url: URL): void {
  if (url.username !== '' || url.password !== '') throw new InvalidValue('must have no user name and no password')
}

export function httpUrl(value: string): string {
  if (!URL.canParse(value) || !/^https?:$/.test(new URL(value).protocol) || new URL(value).pathname !== '/') {
    throw new InvalidValue('must be a URL such as https://storage.example.com, without a path')
  }
  refuseCredentials(new URL(value))
  return value.replace(/\/$/, '')
}

/** A URL without a slash at its end, to which a path is appended. */
export function baseUrl(value: string): string {
  const url = URL.canParse(value) ? new URL(value) : undefined
  if (!url || !/^https?:$/.test(url.protocol) || url.username !== '' || url.search !== '' || url.hash !== '') {
    throw new InvalidValue('must be a URL such as https://collector.example.com:4318')
  }
  return value.replace(/\/$/, '')
}

/** Headers of HTTP, as OpenTelemetry writes them: `name=value,name=value`, percent-encoded. */
export function headers(value: string): Record<string, string> {
  const pairs = list(value).map((pair) => /^([\w-]+)=(.+)$/.exec(pair))
  if (pairs.length === 0 || pairs.some((pair) => !pair || !/^(?:[^%]|%[0-9a-fA-F]{2})*$/.test(pair[2] as string))) {
    throw new InvalidValue('must be headers such as api-key=secret,x-team=backend')
  }
  return Object.fromEntries(pairs.map((pair) => [pair?.[1] ?? '', decodeURIComponent(pair?.[2] ?? '')]))
}

/** Reads the address that Sentry shows for a project, and makes of it where Sentry takes OTLP. */
export function sentryDsn(value: string): {
  /** Where traces go, by OTLP. */
  endpoint: string
  headers: Record<string, string>
  /** Where errors go, by the envelope protocol, with the value of `x-sentry-auth`. */
  envelopes: string
  auth: string
} {
  const { protocol, username, host, pathname } = URL.canParse(value) ? new URL(value) : new URL('none:')
  const [, prefix = '', project] = /^(.*)\/(\d+)$/.exec(pathname) ?? []
  if (!/^https?:$/.test(protocol) || username === '' || project === undefined) {
    throw new InvalidValue('must be the DSN of a project, such as https://key@o1.ingest.sentry.io/42')
  }
  const base = `${protocol}//${host}${prefix}/api/${project}`
  return {
    endpoint: `${base}/integration/otlp`,
    headers: { 'x-sentry-auth': `sentry sentry_key=${username}` },
    envelopes: `${base}/envelope/`,
    auth: `Sentry sentry_version=7, sentry_client=aggios-api/1, sentry_key=${username}`
  }
}

/** A share, from 0 to 1. */
export function share(value: string): number {
  const number = /^(?:0|1|[01]?\.\d{1,6})$/.test(value) ? Number(value) : Number.NaN
  if (!(number >= 0 && number <= 1)) throw new InvalidValue('must be a number from 0 to 1, such as 0.1')
  return number
}

/** A URL that something is appended to. */
export function prefixUrl(value: string): string {
  const url = URL.canParse(value) ? new URL(value) : undefined
  if (!url || !/^https?:$/.test(url.protocol) || !value.endsWith('/') || url.search !== '' || url.hash !== '') {
    throw new InvalidValue('must be a URL that ends with a slash, such as https://api.pwnedpasswords.com/range/')
  }
  refuseCredentials(url)
  return value
}

/** Name servers: addresses, each with a port if it is not 53. */
export function nameServers(value: string): string[] {
  return list(value).map((server) => {
    const [, address = '', port] = /^(\[[^\]]*\]|[^:]*)(?::(\d{1,5}))?$/.exec(server) ?? []
    const valid =
      isIP(address.replace(/^\[(.*)\]$/, '$1')) !== 0 && Number(port ?? 53) > 0 && Number(port ?? 53) < 65_536
    if (!valid)
      throw new InvalidValue(`"${server}" is no name server such as 192.0.2.53, 192.0.2.53:5353 or [2001:db8::53]:53`)
    return server
  })
}

export function bucketName(value: string): string {
  if (!/^[a-z0-9][a-z0-9.-]{1,61}[a-z0-9]$/.test(value)) throw new InvalidValue('must be the name of a bucket')
  return value
}
