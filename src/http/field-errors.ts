import type { ErrorObject } from 'ajv'
import { type FieldError, type Problem, validationFailed } from './problems.ts'

/** The schema keyword with the message for a failed pattern or format. The message follows the name of the member. */
export const messageKeyword = 'x-message'

export const notOneLine = 'must be one line of text, without control characters'

/** The most validation errors that one reply lists. */
export const maxFieldErrors = 100

const types: Record<string, string> = {
  string: 'a string',
  integer: 'a whole number',
  number: 'a number',
  boolean: 'true or false',
  array: 'a list',
  object: 'an object',
  null: 'null'
}

const formats: Record<string, string> = {
  email: 'must be an e-mail address',
  uuid: 'must be a UUID',
  'date-time': 'must be a time such as 2026-11-22T10:30:00Z',
  'web-origin': 'must be an origin such as https://app.example.com; only in development it may be of http'
}

/** Makes a `validation_failed` problem from field errors. The first error is also the `detail`. */
export function invalidMembers(errors: FieldError[], cause?: unknown): Problem {
  const [first] = errors
  return validationFailed({ errors, ...(first && { detail: `${first.path.slice(1)} ${first.message}` }), cause })
}

/**
 * Converts a validator's errors about one part of a request (`body`, `params`, `querystring`, `headers`), without
 * duplicates.
 */
export function fieldErrors(found: readonly Partial<ErrorObject>[], part: string): FieldError[] {
  const root = part === 'querystring' ? '/query' : `/${part}`
  const errors = found.slice(0, maxFieldErrors).map((error): FieldError => {
    const member = error.params?.missingProperty ?? error.params?.additionalProperty
    const end = typeof member === 'string' ? `/${escapePointer(member)}` : ''
    return { path: `${root}${error.instancePath ?? ''}${end}`, message: errorMessage(error) }
  })
  return [...new Map(errors.map((error) => [`${error.path} ${error.message}`, error])).values()]
}

/** The message for a validation error, in words that need no knowledge of JSON Schema. */
export function errorMessage({ keyword, params = {}, parentSchema, message }: Partial<ErrorObject>): string {
  const { limit } = params
  switch (keyword) {
    case 'required':
      return 'is required'
    case 'additionalProperties':
      return 'is not known here'
    case 'type':
      return `must be ${[params.type]
        .flat()
        .map((type) => types[type] ?? type)
        .join(' or ')}`
    case 'enum':
      return `must be one of ${params.allowedValues.map(String).join(', ')}`
    case 'minLength':
      return limit === 1 ? 'must not be empty' : `must have at least ${limit} characters`
    case 'maxLength':
      return `must have at most ${limit} characters`
    case 'minimum':
      return `must be at least ${limit}`
    case 'maximum':
      return `must be at most ${limit}`
    case 'minItems':
      return `must have at least ${limit} items`
    case 'maxItems':
      return `must have at most ${limit} items`
    case 'uniqueItems':
      return 'must not have an item twice'
    case 'pattern':
    case 'format':
      return parentSchema?.[messageKeyword] ?? formats[params.format] ?? 'is not written as it should be'
    default:
      return message ?? 'is not valid'
  }
}

/** Escapes a member's name for a JSON pointer (RFC 6901). */
const escapePointer = (member: string) => member.replaceAll('~', '~0').replaceAll('/', '~1').slice(0, 100)
