export type RedirectRules = {
  /** Origins of web pages, without `*`. */
  origins: readonly string[]
  /** Exact addresses of mobile apps. */
  appRedirects: readonly string[]
  /** Whether pages of this machine may be reached by http. */
  development: boolean
}

const maxLength = 1024
const loopback = /^http:\/\/(?:(?:[a-z0-9-]+\.)?localhost|127\.0\.0\.1|\[::1\])(?::\d{1,5})?$/

/**
 * Tells whether a sign-in may lead back to an address. An open redirect would hand codes to others (RFC 9700, 4.11).
 *
 * A page must have an origin that is listed, spelled as a browser spells it. So there is no user name, other
 * backslash, encoded host or missing slash that one parser could read in another way than the next one.
 */
export function isAllowedRedirect(target: string, { origins, appRedirects, development }: RedirectRules): boolean {
  if (appRedirects.includes(target)) return true
  if (target.length > maxLength || !/^https?:\/\/[!-~]+$/.test(target) || /[\\#@]/.test(target)) return false
  if (!URL.canParse(target)) return false
  const { origin, protocol } = new URL(target)
  if (protocol === 'http:' && !(development && loopback.test(origin))) return false
  const rest = target.slice(origin.length)
  const isSpelledSo = target.startsWith(origin) && (rest === '' || /^[/?]/.test(rest))
  return isSpelledSo && !rest.split('?', 1)[0]?.includes('//') && origins.includes(origin)
}
