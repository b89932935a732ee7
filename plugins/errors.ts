import type { FastifyError, FastifyReply, FastifyRequest } from 'fastify'
import fp from 'fastify-plugin'
import { classifyFailure } from '../db/failures.ts'
import * as problems from '../src/errors.ts'
import { type FieldError, Problem, problemDocument } from '../src/errors.ts'
import { StoreFailure } from '../src/objects/store.ts'
import { isDecodable } from '../src/paths.ts'

const byFastifyCode: Record<string, typeof problems.internalError> = {
  FST_ERR_CTP_BODY_TOO_LARGE: problems.payloadTooLarge,
  FST_ERR_CTP_INVALID_MEDIA_TYPE: problems.unsupportedMediaType,
  FST_ERR_CTP_INVALID_JSON_BODY: problems.malformedJson,
  FST_ERR_CTP_EMPTY_JSON_BODY: problems.malformedJson,
  FST_ERR_CTP_INVALID_CONTENT_LENGTH: problems.malformedRequest,
  FST_ERR_BAD_URL: problems.malformedRequest,
  FST_PARTS_LIMIT: problems.payloadTooLarge,
  FST_FILES_LIMIT: problems.payloadTooLarge,
  FST_FIELDS_LIMIT: problems.payloadTooLarge,
  FST_INVALID_MULTIPART_CONTENT_TYPE: problems.unsupportedMediaType
}

/** More than this many complaints about one request help nobody. */
export const maxFieldErrors = 100

/**
 * The only writer of problem documents: whatever a hook, a parser, a validator, a handler or the router throws ends here.
 */
export default fp(
  async (app) => {
    const methodsByRoute = new Map<RegExp, Set<string>>()

    app.addHook('onRoute', ({ method, url }) => {
      if (url.includes('*')) return
      const pattern = `^${url.replaceAll(/[.+?^$()[\]{}|\\]/g, '\\$&').replaceAll(/:[A-Za-z_]+/g, '[^/]+')}$`
      const known = [...methodsByRoute.keys()].find((each) => each.source === new RegExp(pattern).source)
      const methods = known && methodsByRoute.get(known)
      if (methods) for (const each of [method].flat()) methods.add(each)
      else methodsByRoute.set(new RegExp(pattern), new Set([method].flat()))
    })

    app.setErrorHandler((err, request, reply) =>
      sendProblem(maskSuspended(toProblem(err), request, reply), err, request, reply)
    )

    /** A suspended tenant's host must look like one that is not there, whatever else is wrong with the request. */
    function maskSuspended(problem: Problem, request: FastifyRequest, reply: FastifyReply): Problem {
      const { code, status } = problem.kind
      const suspended = request.tenant?.status === 'suspended' && request.routeOptions.config?.host !== 'any'
      if (!suspended || status >= 500 || code === 'tenant_suspended' || problem === request.refused) return problem
      app.limits.showGeneral(request, reply)
      return app.refuseSuspended(request)
    }

    // reached by unknown paths, unknown methods, and preflights that no CORS rule answered
    app.setNotFoundHandler((request, reply) => {
      if (request.refused) throw request.refused
      if (request.hostProblem) throw request.hostProblem
      if (request.tenant?.status === 'suspended') throw app.refuseSuspended(request)
      if (!isDecodable(request.originalUrl)) throw problems.malformedRequest()
      const path = request.url.split('?', 1)[0] as string
      const methods = [...methodsByRoute].flatMap(([pattern, known]) => (pattern.test(path) ? [...known] : []))
      if (methods.length === 0) throw problems.routeNotFound()
      const allow = [...new Set([...methods, 'OPTIONS'])].sort().join(', ')
      if (request.method === 'OPTIONS') return reply.code(204).header('allow', allow).send()
      throw problems.methodNotAllowed({ headers: { allow } })
    })
  },
  { name: 'errors', dependencies: ['config'] }
)

function toProblem(err: unknown): Problem {
  if (err instanceof Problem) return err
  const { code, validation, validationContext, statusCode } = err as Partial<FastifyError>
  if (validation) return invalidInput(validation, validationContext ?? 'body')
  if (code !== undefined && byFastifyCode[code]) return byFastifyCode[code]({ cause: err })
  // secure-json-parse: a body with __proto__ or constructor in it
  if (err instanceof SyntaxError && statusCode === 400) return problems.malformedJson({ cause: err })

  const retry = { headers: { 'retry-after': '1' }, cause: err }
  if (err instanceof StoreFailure) {
    const later = { headers: { 'retry-after': '5' }, cause: err }
    return err.kind === 'full' ? problems.storageFull(later) : problems.unavailable(later)
  }
  switch (classifyFailure(err)) {
    case 'connection':
    case 'timeout':
      return problems.unavailable(retry)
    case 'crowded':
    case 'conflict':
      return problems.overloaded(retry)
    case 'invalid_text':
      return problems.validationFailed({
        detail: 'a text contains a character or a time that cannot be stored',
        cause: err
      })
  }
  // whatever else of the framework blames the client for
  if (statusCode !== undefined && statusCode >= 400 && statusCode < 500)
    return problems.malformedRequest({ cause: err })
  return problems.internalError({ cause: err })
}

type Validation = NonNullable<FastifyError['validation']>

function invalidInput(validation: Validation, context: string): Problem {
  const root = context === 'querystring' ? '/query' : `/${context}`
  const errors: FieldError[] = validation.slice(0, maxFieldErrors).map(({ instancePath, params, message }) => {
    const member = params.missingProperty ?? params.additionalProperty
    const path = root + instancePath + (typeof member === 'string' ? `/${escapePointer(member)}` : '')
    return { path, message: typeof params.missingProperty === 'string' ? 'is required' : (message ?? 'is not valid') }
  })
  const [first] = errors
  return problems.validationFailed({ errors, ...(first && { detail: `${first.path.slice(1)} ${first.message}` }) })
}

/** RFC 6901. */
const escapePointer = (member: string) => member.replaceAll('~', '~0').replaceAll('/', '~1').slice(0, 100)

function sendProblem(problem: Problem, err: unknown, request: FastifyRequest, reply: FastifyReply) {
  const { kind, options } = problem
  if (kind.status >= 500) {
    const level = kind.status === 500 ? 'error' : 'warn'
    request.log[level]({ err: options.cause ?? err, code: kind.code }, kind.title)
  }
  reply
    .code(kind.status)
    .headers(options.headers ?? {})
    .header('cache-control', 'no-store')
  if (kind.status === 401 || kind.code === 'forbidden') reply.header('www-authenticate', challenge(kind.code))
  return reply
    .type('application/problem+json; charset=utf-8')
    .serializer(JSON.stringify)
    .send(problemDocument(problem, request.id))
}

/** RFC 6750, 3: no error code for somebody who sent no token. */
function challenge(code: string): string {
  switch (code) {
    case 'invalid_token':
    case 'token_expired':
    case 'session_revoked':
      return `Bearer realm="aggios", error="invalid_token", error_description="${code}"`
    case 'forbidden':
      return 'Bearer realm="aggios", error="insufficient_scope"'
    default:
      return 'Bearer realm="aggios"'
  }
}
