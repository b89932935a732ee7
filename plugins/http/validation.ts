import { Type } from '@sinclair/typebox'
import {
  Ajv,
  type ErrorObject,
  type FuncKeywordDefinition,
  type Options,
  type SchemaValidateFunction,
  type ValidateFunction
} from 'ajv'
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
  // puts the failed schema into the error, because a schema may have a message of its own
  verbose: true,
  removeAdditional: false,
  useDefaults: true,
  strict: true,
  strictTypes: false,
  // test/openapi.test.ts checks every schema, which at each start would cost as much as all other work on them
  validateSchema: false,
  // keywords of OpenAPI, which the validator ignores
  keywords: ['example', 'x-enum-varnames', messageKeyword]
}

const noQuery = Type.Object({}, { additionalProperties: false })

/**
 * Validates bodies without type coercion, and parameters with it. A parameter that the route does not declare is
 * refused.
 */
export default fp(
  async (app) => {
    const forBodies = addKeywords(new Ajv({ ...shared, coerceTypes: false }), app.config)
    // with strictNumbers, Infinity would pass the `maximum` of a schema
    const forText = addKeywords(new Ajv({ ...shared, coerceTypes: true, strictNumbers: false }), app.config)

    app.setValidatorCompiler(({ schema, httpPart }) =>
      compileAtFirstUse(httpPart === 'body' ? forBodies : forText, schema as object)
    )

    app.addHook('onRoute', (route) => {
      // the assets of the docs page and the route for preflights come from packages
      if (route.schema?.hide || route.config?.access === undefined) return
      route.schema = { querystring: noQuery, ...route.schema }
    })

    // clients send the content type of JSON also without a body. So an empty body counts as none, and a schema that
    // requires a body refuses it
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

/**
 * Compiles a schema at the first request that needs it, in a few milliseconds. All schemas together were a third of the
 * CPU time of a start.
 */
function compileAtFirstUse(ajv: Ajv, schema: object): { (value: unknown): boolean; errors: ErrorObject[] | null } {
  let compiled: ValidateFunction | undefined
  const validate = (value: unknown): boolean => {
    compiled ??= ajv.compile(schema)
    const valid = compiled(value) as boolean
    validate.errors = compiled.errors ?? null
    return valid
  }
  validate.errors = null as ErrorObject[] | null
  return validate
}

/** Removes invisible characters from both ends of a text, before the other keywords check it. */
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

/**
 * Refuses control characters beyond ASCII, and halves of surrogate pairs. Not every language of a generated client can
 * express this as a pattern.
 */
const oneLine: FuncKeywordDefinition = textKeyword('x-one-line', 'boolean', (_: true, text) =>
  /[\u0080-\u009f\p{Cs}]/u.test(text) ? notOneLine : undefined
)

const maxBytes: FuncKeywordDefinition = textKeyword('x-max-bytes', 'number', (most: number, text) =>
  Buffer.byteLength(text) > most ? `must have at most ${most} bytes` : undefined
)

/** Checks a new password, which must not contain the names that are beside it in the body. */
const newPassword = ({ passwordMinLength }: Config) =>
  textKeyword('x-new-password', 'boolean', (_: true, password, { email, name, tenant }) =>
    passwordFault(
      password,
      passwordMinLength,
      [email, name, tenant?.name].filter((each) => typeof each === 'string')
    )
  )

type Beside = { email?: unknown; name?: unknown; tenant?: { name?: unknown } }

/** Makes a keyword for texts with messages of its own. `faultOf` returns the message, or undefined for a valid text. */
function textKeyword<T>(
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

/** Adds the keywords and formats of this product. `addFormats.default`, because the package is a CommonJS module. */
function addKeywords(ajv: Ajv, config: Config): Ajv {
  ajv.addKeyword(trimmed).addKeyword(oneLine).addKeyword(maxBytes).addKeyword(newPassword(config))
  const production = config.nodeEnv === 'production'
  ajv.addFormat('web-origin', (text) => isOrigin(text) && !(production && text.startsWith('http://')))
  addFormats.default(ajv, ['email', 'uuid', 'date-time', 'uri', 'int64'])
  return ajv
}
