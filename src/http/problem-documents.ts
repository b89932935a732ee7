import { ExpectedError } from '../expected-error.ts'

/*
 * What a problem is (RFC 9457): its kind, the error that is thrown, and the document that a client gets.
 */

export type FieldError = { path: string; message: string }

/** Additions to the wording of the catalogue. `extensions` become members of the document. */
export type ProblemOptions = {
  detail?: string
  errors?: FieldError[]
  headers?: Record<string, string>
  extensions?: Record<string, unknown>
  cause?: unknown
}

/** `isOAuth`: OAuth clients read the code from `error` (RFC 6749, 5.2). */
export type ProblemKind = { code: string; status: number; title: string; remedy: string; isOAuth: boolean }

export class Problem extends ExpectedError {
  readonly kind: ProblemKind
  readonly options: ProblemOptions
  constructor(kind: ProblemKind, options: ProblemOptions) {
    super(options.detail ?? kind.title, { cause: options.cause })
    this.kind = kind
    this.options = options
  }
}

/** All kinds by their codes. `problems.ts` adds them. */
export const catalogue = new Map<string, ProblemKind>()

type ProblemMaker = (options?: ProblemOptions) => Problem

/**
 * Adds a kind to the catalogue. The problem without options is made once: under a flood of refusals an error for each of
 * them would cost more than its reply.
 */
export function problem(code: string, status: number, title: string, remedy: string): ProblemMaker {
  return makerOf({ code, status, title, remedy, isOAuth: false })
}

/** As `problem`, for the token endpoint: OAuth clients expect `application/json` with a member `error`. */
export function oauthProblem(code: string, status: number, title: string, remedy: string): ProblemMaker {
  return makerOf({ code, status, title, remedy, isOAuth: true })
}

/** The media type of a problem document. */
export const mediaTypeOf = ({ isOAuth }: ProblemKind) => (isOAuth ? 'application/json' : 'application/problem+json')

function makerOf(kind: ProblemKind): ProblemMaker {
  catalogue.set(kind.code, kind)
  const plain = new Problem(kind, {})
  return (options) => (options === undefined ? plain : new Problem(kind, options))
}

/** The members of a document that are the same for each problem of a kind, as JSON. */
type Constants = { head: string; code: string }
const constants = new WeakMap<ProblemKind, Constants>()

function constantsOf(kind: ProblemKind): Constants {
  const known = constants.get(kind)
  if (known) return known
  const { code, status, title, isOAuth } = kind
  const head = JSON.stringify({ type: `/api/v1/problems/${code}`, title, status }).slice(0, -1)
  const text = JSON.stringify(code)
  const made = { head, code: isOAuth ? `,"code":${text},"error":${text}` : `,"code":${text}` }
  constants.set(kind, made)
  return made
}

/**
 * Makes the body of a problem document. It never contains `cause`, and a 5xx contains no `detail`.
 *
 * `requestId` is absent only when there was no HTTP request, on a connection that sent something else.
 */
export function problemText({ kind, options }: Problem, requestId?: string): string {
  const { head, code } = constantsOf(kind)
  const { detail, errors, extensions } = options
  let text = head
  if (detail !== undefined && kind.status < 500) text += `,"detail":${JSON.stringify(detail)}`
  text += code
  if (requestId !== undefined) text += `,"request_id":${JSON.stringify(requestId)}`
  if (errors) text += `,"errors":${JSON.stringify(errors)}`
  for (const [name, value] of Object.entries(extensions ?? {})) {
    if (value !== undefined) text += `,${JSON.stringify(name)}:${JSON.stringify(value)}`
  }
  return `${text}}`
}
