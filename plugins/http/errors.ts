import type { FastifyError, FastifyReply, FastifyRequest } from 'fastify'
import fp from 'fastify-plugin'
import { classifyFailure } from '../../db/gate/failures.ts'
import { proofAlgorithm } from '../../src/auth/dpop/proofs.ts'
import { StoreFailure } from '../../src/files/store/object-store.ts'
import { fieldErrors, invalidMembers } from '../../src/http/field-errors.ts'
import * as problems from '../../src/http/problems.ts'
import { Problem, problemText } from '../../src/http/problems.ts'

const byFastifyCode: Record<string, typeof problems.internalError> = {
  FST_ERR_CTP_BODY_TOO_LARGE: problems.payloadTooLarge,
  FST_ERR_CTP_INVALID_JSON_BODY: problems.malformedJson,
  FST_ERR_CTP_EMPTY_JSON_BODY: problems.malformedJson,
  FST_ERR_CTP_INVALID_CONTENT_LENGTH: problems.malformedRequest,
  FST_ERR_BAD_URL: problems.malformedRequest
}

declare module 'fastify' {
  interface FastifyRequest {
    /** The code of the problem document that the request was answered with. */
    problemCode: string | undefined
    /** What was thrown, where it is a fault of the product: 500 `internal_error`. */
    fault: unknown
  }
}

/** Writes all problem documents. Exceptions of hooks, parsers, validators, handlers and the router end here. */
export default fp(
  async (app) => {
    const counts = new Map<string, number>()
    app.metrics.counter('aggios_problems_total', 'Requests that were answered with a problem document, by code', () =>
      [...counts].map(([code, value]) => ({ labels: { code }, value }))
    )
    app.decorateRequest('problemCode', undefined)
    app.decorateRequest('fault', undefined)
    app.setErrorHandler((err, request, reply) => {
      const problem = toProblem(err, request)
      // every refusal on a suspended tenant's host looks like the one on an unknown host. `tenant_suspended` is shown
      // only after a token of that tenant was verified
      const { status, code } = problem.kind
      const shown = status < 500 && code !== 'tenant_suspended' ? (request.disguise ?? problem) : problem
      request.problemCode = shown.kind.code
      counts.set(shown.kind.code, (counts.get(shown.kind.code) ?? 0) + 1)
      return sendProblem(shown, err, request, reply)
    })
  },
  { name: 'errors', dependencies: ['config', 'metrics'] }
)

function toProblem(err: unknown, request: FastifyRequest): Problem {
  if (err instanceof Problem) return err
  const { code, validation, validationContext, statusCode } = err as Partial<FastifyError>
  if (validation) return invalidMembers(fieldErrors(validation, validationContext ?? 'body'))
  // for operations with a body, plugins/http/media-types.ts has refused earlier, with the accepted types
  if (code === 'FST_ERR_CTP_INVALID_MEDIA_TYPE') {
    return problems.unsupportedMediaType({ detail: 'this operation takes no body', cause: err })
  }
  if (code !== undefined && byFastifyCode[code]) return byFastifyCode[code]({ cause: err })
  // from secure-json-parse, for a body with __proto__ or constructor in it
  if (err instanceof SyntaxError && statusCode === 400) return problems.malformedJson({ cause: err })

  // triggers of the database, which hold for every change, whichever operation makes it: db/migrations/0022_enforcement.ts
  if (code === 'AG001') return problems.lastBreakGlassOwner({ cause: err })
  if (code === 'AG002') return problems.conflict({ detail: 'this provider is demanded: end that first', cause: err })
  // a refresh at the moment at which the agency begins to demand its provider
  if (code === 'AG003') return problems.sessionRevoked({ cause: err })

  const retry = { headers: { 'retry-after': '1' }, cause: err }
  if (err instanceof StoreFailure) {
    const later = { headers: { 'retry-after': '5' }, cause: err }
    return err.kind === 'full' ? problems.storageFull(later) : problems.unavailable(later)
  }
  switch (classifyFailure(err)) {
    case 'connection':
    case 'timeout':
      return problems.unavailable(retry)
    case 'overloaded':
    case 'conflict':
      return problems.overloaded(retry)
    case 'invalid_text':
      // PostgreSQL does not name the value
      return invalidMembers(
        [
          {
            path: request.body === undefined ? '/query' : '/body',
            message: 'has a character or a time that cannot be stored'
          }
        ],
        err
      )
  }
  // another error of the framework that the client has caused
  if (statusCode !== undefined && statusCode >= 400 && statusCode < 500)
    return problems.malformedRequest({ cause: err })
  return problems.internalError({ cause: err })
}

function sendProblem(problem: Problem, err: unknown, request: FastifyRequest, reply: FastifyReply) {
  const { kind, options } = problem
  if (kind.status >= 500) {
    const level = kind.status === 500 ? 'error' : 'warn'
    request.log[level]({ err: options.cause ?? err, code: kind.code }, kind.title)
    if (kind.status === 500) request.fault = options.cause ?? err
  }
  reply.code(kind.status)
  if (options.headers) reply.headers(options.headers)
  reply.header('cache-control', 'no-store')
  if (kind.status === 401 || kind.code === 'forbidden') reply.header('www-authenticate', challenges(kind.code, request))
  return reply
    .type(`${problems.mediaTypeOf(kind)}; charset=utf-8`)
    .serializer(asItIs)
    .send(problemText(problem, request.id))
}

/** Takes the place of a serializer that the handler has set. */
const asItIs = (text: string) => text

/**
 * The WWW-Authenticate header (RFC 6750, 3, and RFC 9449, 7.1): both ways to present a token, first the one that the client
 * has to take. There is no error code when no token was sent.
 *
 * A client that has tried HTTP Basic at the token endpoint is asked for that (RFC 6749, 5.2). No other is: a browser that reads
 * the word asks its user for a password.
 */
function challenges(code: string, { bearer, keyThumbprint, headers }: FastifyRequest): string {
  if (code === 'invalid_client' && /^basic /i.test(headers.authorization ?? '')) return 'Basic realm="aggios"'
  const error = challengeError(code)
  const proof = `DPoP realm="aggios"${error}, algs="${proofAlgorithm}"`
  const isBound = keyThumbprint !== null || bearer?.claims?.cnf !== undefined || proofCodes.has(code)
  if (isBound) return proof
  return `Bearer realm="aggios"${error}, DPoP algs="${proofAlgorithm}"`
}

/** The codes that are about a proof (RFC 9449, 12.2). */
const proofCodes: ReadonlySet<string> = new Set(['invalid_dpop_proof', 'use_dpop_nonce'])

function challengeError(code: string): string {
  switch (code) {
    case 'invalid_token':
    case 'token_expired':
    case 'session_revoked':
      return `, error="invalid_token", error_description="${code}"`
    case 'invalid_dpop_proof':
    case 'use_dpop_nonce':
      return `, error="${code}"`
    case 'forbidden':
      return ', error="insufficient_scope"'
    default:
      return ''
  }
}
