import type { FastifyRequest } from 'fastify'
import fp from 'fastify-plugin'
import { acceptedTypes } from '../../src/http/media-types.ts'
import { type Problem, unsupportedMediaType } from '../../src/http/problems.ts'

/**
 * Refuses a body whose media type or content coding its route does not accept, before it is read. The reply names the
 * accepted ones.
 */
export default fp(
  async (app) => {
    app.addHook('onRoute', (route) => {
      const types = acceptedTypes(route)
      if (!types) return
      const needsType = route.config?.receives !== undefined
      const require = (request: FastifyRequest, _reply: unknown, _payload: unknown, done: (err?: Error) => void) =>
        done(codingFault(request) ?? typeFault(request, types, needsType))
      route.preParsing = [require, ...[route.preParsing ?? []].flat()]
    })
  },
  { name: 'media-types' }
)

function codingFault({ headers }: FastifyRequest): Problem | undefined {
  const coding = headers['content-encoding']?.toLowerCase()
  if (coding === undefined || coding === '' || coding === 'identity') return undefined
  return unsupportedMediaType({
    detail: 'a body is sent as it is, without a Content-Encoding',
    headers: { 'accept-encoding': 'identity' }
  })
}

function typeFault(request: FastifyRequest, types: string[], needsType: boolean): Problem | undefined {
  const { headers, mediaType, method } = request
  if (types.includes('*/*') || types.includes(mediaType ?? '')) return undefined
  const hasBody = Number(headers['content-length'] ?? 0) > 0 || headers['transfer-encoding'] !== undefined
  if (headers['content-type'] === undefined && !hasBody && !needsType) return undefined
  const accept = types.join(', ')
  const ofMethod = { POST: 'accept-post', PATCH: 'accept-patch' }[method]
  return unsupportedMediaType({
    detail: `the Content-Type of this body must be ${types.join(' or ')}`,
    headers: { accept, ...(ofMethod && { [ofMethod]: accept }) }
  })
}
