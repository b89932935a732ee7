/** Tells whether the percent-encoding of a URL decodes to UTF-8 (RFC 3986, 2.1). */
export function isDecodable(url: string): boolean {
  if (!url.includes('%')) return true
  try {
    decodeURIComponent(url)
    return true
  } catch {
    return false
  }
}
