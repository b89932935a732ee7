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

export type ProblemKind = { code: string; status: number; title: string; remedy: string }

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

/** Adds a kind to the catalogue. */
export function problem(code: string, status: number, title: string, remedy: string): ProblemMaker {
  const kind = { code, status, title, remedy }
  catalogue.set(code, kind)
  return (options = {}) => new Problem(kind, options)
}

/**
 * Makes the body of a problem document. It never contains `cause`, and a 5xx contains no `detail`.
 *
 * `request_id` is absent only when there was no HTTP request, on a connection that sent something else.
 */
export function problemDocument(problem: Problem, requestId?: string) {
  const { kind, options } = problem
  return {
    type: `/api/v1/problems/${kind.code}`,
    title: kind.title,
    status: kind.status,
    ...(kind.status < 500 && options.detail !== undefined && { detail: options.detail }),
    code: kind.code,
    ...(requestId !== undefined && { request_id: requestId }),
    ...(options.errors && { errors: options.errors }),
    ...options.extensions
  }
}
