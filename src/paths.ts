/** Whether the percent signs of a path stand for UTF-8 (RFC 3986, 2.1). */
export function isDecodable(path: string): boolean {
  if (!path.includes('%')) return true
  try {
    decodeURIComponent(path)
    return true
  } catch {
    return false
  }
}
