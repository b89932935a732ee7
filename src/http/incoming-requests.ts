import type { IncomingMessage } from 'node:http'
import { v4 as randomUuid } from 'uuid'
import { isDecodable } from './paths.ts'

/** The paths without a version that the first clients use. They stay aliases of the canonical paths for ever. */
const aliases = new Map([
  ['/api/auth/login', '/api/v1/auth/login'],
  ['/api/auth/refresh', '/api/v1/auth/refresh'],
  ['/api/logout', '/api/v1/auth/logout'],
  ['/api/users/me', '/api/v1/users/me'],
  ['/api/health', '/api/v1/health']
])

const uploadContent = /^\/api\/v1\/files\/resumable\/[^/?]+\/content(?:\?|$)/

const requestIdPattern = /^[A-Za-z0-9._-]{1,128}$/

/** The request id: the client's own, when it is harmless in log lines and headers, or else a new one. */
export function requestId({ headers }: { headers: IncomingMessage['headers'] }): string {
  const given = headers['x-request-id']
  return typeof given === 'string' && requestIdPattern.test(given) ? given : randomUuid()
}

/** Reads what a request asks for: replaces an overridden method, and returns the canonical URL. */
export function readRequestLine(request: IncomingMessage): string {
  overrideMethod(request)
  return canonicalUrl(request)
}

/**
 * Replaces the method of a POST by its X-HTTP-Method-Override, for tus clients behind proxies that refuse PATCH (tus
 * 1.0). Only for the content of resumable uploads, and only for POST, so that no request becomes more than a proxy took
 * it for.
 */
function overrideMethod(request: IncomingMessage): void {
  const override = request.headers['x-http-method-override']
  if (typeof override !== 'string' || request.method !== 'POST' || !uploadContent.test(request.url ?? '')) return
  if (/^(?:patch|delete|head)$/i.test(override)) request.method = override.toUpperCase()
}

function canonicalUrl({ url = '/' }: IncomingMessage): string {
  const end = url.indexOf('?')
  const path = end === -1 ? url : url.slice(0, end)
  // a path without a route: unlike the router's own refusal, its reply passes all hooks
  if (!isDecodable(url)) return '/'
  const canonical = aliases.get(path)
  return canonical === undefined ? url : canonical + url.slice(path.length)
}
