import type { FastifyError, FastifyReply, FastifyRequest } from 'fastify'
import fp from 'fastify-plugin'
import { classifyFailure } from '../../db/gate/failures.ts'
import { StoreFailure } from '../../src/files/store/object-store.ts'
import { fieldErrors, invalidMembers } from '../../src/http/field-errors.ts'
import * as problems from '../../src/http/problems.ts'
import { Problem, problemDocument } from '../../src/http/problems.ts'

const byFastifyCode: Record<string, typeof problems.internalError> = {
  FST_ERR_CTP_BODY_TOO_LARGE: problems.payloadTooLarge,
  FST_ERR_CTP_INVALID_JSON_BODY: problems.malformedJson,
  FST_ERR_CTP_EMPTY_JSON_BODY: problems.malformedJson,
  FST_ERR_CTP_INVALID_CONTENT_LENGTH: problems.malformedRequest,
  FST_ERR_BAD_URL: problems.malformedRequest
}

/**
 * The only writer of problem documents: whatever a hook, a parser, a validator, a handler or the router throws ends here.
 */
export default fp(
  async (app) => {
    app.setErrorHandler((err, request, reply) => {
      const problem = toProblem(err, request)
      // a suspended tenant's host must look like one that is not there, whatever else is wrong with the request; only a handler
      // that has seen a token of the tenant says `tenant_suspended`
      const { status, code } = problem.kind
      const shown = status < 500 && code !== 'tenant_suspended' ? (request.disguise ?? problem) : problem
      return sendProblem(shown, err, request, reply)
    })
  },
  { name: 'errors', dependencies: ['config'] }
)

function toProblem(err: unknown, request: FastifyRequest): Problem {
  if (err instanceof Problem) return err
  const { code, validation, validationContext, statusCode } = err as Partial<FastifyError>
  if (validation) return invalidMembers(fieldErrors(validation, validationContext ?? 'body'))
  // where a body is read the plugin of media types has said more
  if (code === 'FST_ERR_CTP_INVALID_MEDIA_TYPE') {
    return problems.unsupportedMediaType({ detail: 'this operation takes no body', cause: err })
  }
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
    case 'overloaded':
    case 'conflict':
      return problems.overloaded(retry)
    case 'invalid_text':
      // PostgreSQL does not say of which value
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
  // whatever else of the framework blames the client for
  if (statusCode !== undefined && statusCode >= 400 && statusCode < 500)
    return problems.malformedRequest({ cause: err })
  return problems.internalError({ cause: err })
}

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
