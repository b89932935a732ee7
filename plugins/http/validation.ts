import { Type } from '@sinclair/typebox'
import { Ajv, type FuncKeywordDefinition, type Options, type SchemaValidateFunction } from 'ajv'
import addFormats from 'ajv-formats'
import fp from 'fastify-plugin'
import { passwordFault } from '../../src/auth/passwords.ts'
import type { Config } from '../../src/config/config.ts'
import { isOrigin } from '../../src/config/value-readers.ts'
import { messageKeyword, notOneLine } from '../../src/http/field-errors.ts'
import { hasDuplicateMembers, hasUnpairedSurrogates } from '../../src/http/json.ts'
import { mergePatch } from '../../src/http/media-types.ts'
import { malformedJson, unsupportedMediaType } from '../../src/http/problems.ts'
import { trimName } from '../../src/names.ts'
import { isUtf8, readUtf8 } from '../../src/text.ts'

const shared: Options = {
  allErrors: true,
  // the schema of what failed, for its own words
  verbose: true,
  removeAdditional: false,
  useDefaults: true,
  strict: true,
  strictTypes: false,
  // OpenAPI's words, which say nothing to a validator
  keywords: ['example', 'x-enum-varnames', messageKeyword]
}

const noQuery = Type.Object({}, { additionalProperties: false })

/** Strict bodies, query strings whose numbers may be text, and no parameter that a route does not name. */
export default fp(
  async (app) => {
    const forBodies = withOurs(new Ajv({ ...shared, coerceTypes: false }), app.config)
    // strictNumbers would let Infinity pass by the limits that it is over
    const forText = withOurs(new Ajv({ ...shared, coerceTypes: true, strictNumbers: false }), app.config)

    app.setValidatorCompiler(({ schema, httpPart }) =>
      (httpPart === 'body' ? forBodies : forText).compile(schema as object)
    )

    app.addHook('onRoute', (route) => {
      // the assets of the docs page and the preflight route are not ours to be strict about
      if (route.schema?.hide || route.config?.access === undefined) return
      route.schema = { querystring: noQuery, ...route.schema }
    })

    // a bearer alone is enough for some routes, and clients send their JSON header with nothing all the same; a schema that
    // wants a body still refuses its absence
    const parseJson = app.getDefaultJsonParser('error', 'error')
    app.removeContentTypeParser('application/json')
    app.addContentTypeParser(['application/json', mergePatch], { parseAs: 'buffer' }, (request, body, done) => {
      if (!isUtf8(request.headers['content-type'] ?? '')) {
        return done(unsupportedMediaType({ detail: 'the charset of a body is UTF-8' }))
      }
      if (body.length === 0) return done(null, undefined)
      const text = readUtf8(body as Buffer)
      if (text === undefined) return done(malformedJson({ detail: 'the body is not UTF-8' }))
      parseJson(request, text, (err, value) => {
        if (err) done(err, value)
        else if (hasDuplicateMembers(text, value)) done(malformedJson({ detail: 'a member appears twice' }))
        else if (hasUnpairedSurrogates(text, value)) {
          done(malformedJson({ detail: 'half of a surrogate pair is escaped, which is no character' }))
        } else done(null, value)
      })
    })
    app.removeContentTypeParser('text/plain')
  },
  { name: 'validation' }
)

/** Takes from a text's ends what does not show, before the other keywords look at it. */
const trimmed: FuncKeywordDefinition = {
  keyword: 'x-trimmed',
  type: 'string',
  schemaType: 'boolean',
  before: 'maxLength',
  modifying: true,
  errors: false,
  validate: (
    _: true,
    text: string,
    __: unknown,
    at?: { parentData: Record<string, unknown>; parentDataProperty: string | number }
  ) => {
    if (at) at.parentData[at.parentDataProperty] = trimName(text)
    return true
  }
}

/** What the pattern of a line can't say in every language: control characters beyond ASCII, and halves of surrogate pairs. */
const oneLine: FuncKeywordDefinition = complains('x-one-line', 'boolean', (_: true, text) =>
  /[\u0080-\u009f\p{Cs}]/u.test(text) ? notOneLine : undefined
)

const maxBytes: FuncKeywordDefinition = complains('x-max-bytes', 'number', (most: number, text) =>
  Buffer.byteLength(text) > most ? `must have at most ${most} bytes` : undefined
)

/** A password that somebody chooses, who is named beside it. */
const newPassword = ({ passwordMinLength }: Config) =>
  complains('x-new-password', 'boolean', (_: true, password, { email, name, tenant }) =>
    passwordFault(
      password,
      passwordMinLength,
      [email, name, tenant?.name].filter((each) => typeof each === 'string')
    )
  )

type Beside = { email?: unknown; name?: unknown; tenant?: { name?: unknown } }

/** A keyword for texts, whose failures have words of their own. */
function complains<T>(
  keyword: string,
  schemaType: 'number' | 'boolean',
  faultOf: (value: T, text: string, beside: Beside) => string | undefined
): FuncKeywordDefinition {
  const validate: SchemaValidateFunction = (value: T, text: string, _: unknown, at?: { parentData: unknown }) => {
    const message = faultOf(value, text, (at?.parentData ?? {}) as Beside)
    validate.errors = message === undefined ? [] : [{ keyword, message, params: {} }]
    return message === undefined
  }
  return { keyword, type: 'string', schemaType, validate }
}

/** Ajv's own export of formats is a CommonJS one. */
function withOurs(ajv: Ajv, config: Config): Ajv {
  ajv.addKeyword(trimmed).addKeyword(oneLine).addKeyword(maxBytes).addKeyword(newPassword(config))
  const production = config.nodeEnv === 'production'
  ajv.addFormat('web-origin', (text) => isOrigin(text) && !(production && text.startsWith('http://')))
  addFormats.default(ajv, ['email', 'uuid', 'date-time', 'uri', 'int64'])
  return ajv
}
