import type { Problem } from './schema.js'

/** Every code that the server knows, and one for what did not come from it: a proxy's page, an unexpected redirect. */
export type ProblemCode = Problem['code'] | 'unexpected_reply'

/** Why a call failed. Switch on `code`; the wording may change. */
export class ProblemError extends Error {
  override readonly name = 'ProblemError'
  readonly code: ProblemCode
  readonly status: number
  /** Every failure of validation, with a JSON pointer each. Empty unless the code is `validation_failed`. */
  readonly errors: NonNullable<Problem['errors']>
  /** What to quote to the operator. */
  readonly request_id: string | undefined
  /** How many seconds the server asks to wait, after the waits that the client has done already. */
  readonly retryAfter: number | undefined

  constructor(response: Response, body: unknown) {
    const problem = isProblem(body) ? body : undefined
    super(problem?.detail ?? problem?.title ?? `The server answered ${response.status}`)
    this.code = problem?.code ?? 'unexpected_reply'
    this.status = response.status
    this.errors = problem?.errors ?? []
    this.request_id = problem?.request_id ?? response.headers.get('x-request-id') ?? undefined
    this.retryAfter = retryAfter(response)
  }
}

/**
 * What a call gave, or a `ProblemError`.
 *
 * Not for conditional requests: their 304 has nothing to unwrap and is thrown too.
 *
 * @example
 * const me = await unwrap(client.GET('/api/v1/users/me'))
 */
export async function unwrap<T>(call: Reply<T> | Promise<Reply<T>>): Promise<T> {
  const { data, error, response } = await call
  if (!response.ok) throw new ProblemError(response, error)
  return data as T
}

type Reply<T> = { data?: T; error?: unknown; response: Response }

/** The code of a refusal, whose body stays readable. */
export async function codeOf(response: Response): Promise<ProblemCode> {
  const body: unknown = await response
    .clone()
    .json()
    .catch(() => undefined)
  return isProblem(body) ? body.code : 'unexpected_reply'
}

/** The seconds in Retry-After, which proxies may also write as a date. */
export function retryAfter(response: Response): number | undefined {
  const text = response.headers.get('retry-after')
  if (text === null) return undefined
  const seconds = /^\d+$/.test(text) ? Number(text) : (Date.parse(text) - Date.now()) / 1000
  return Number.isNaN(seconds) ? undefined : Math.max(0, seconds)
}

function isProblem(body: unknown): body is Problem {
  return typeof body === 'object' && body !== null && typeof (body as Partial<Problem>).code === 'string'
}
