import type { Problem } from './schema.js'

/** The codes of problem documents. `unexpected_reply` stands for other errors, such as a proxy's page or a redirect. */
export type ProblemCode = Problem['code'] | 'unexpected_reply'

/** The failure of a call. Switch on `code`; the wording may change. */
export class ProblemError extends Error {
  override readonly name = 'ProblemError'
  readonly code: ProblemCode
  readonly status: number
  /** The validation errors, each with a JSON pointer. Empty unless the code is `validation_failed`. */
  readonly errors: NonNullable<Problem['errors']>
  /** The id of the request, for a report to the operator. */
  readonly request_id: string | undefined
  /** Completes the sign-in with a code. Undefined unless the code is `mfa_required`, and where a token alone is not enough. */
  readonly mfa_token: string | undefined
  /** What completes the sign-in: a code of an app, a passkey, or either. Empty unless the code is `mfa_required`. */
  readonly factors: NonNullable<Problem['factors']>
  /** Whether the person has to set a second factor up first. */
  readonly enroll: boolean
  /** The provider by which the person comes in, for `startProviderSignIn`. Undefined unless the code is `provider_required`. */
  readonly provider: string | undefined
  /** What DNS has answered, with `domain_not_proven`. `another_key` with `invalid_dpop_proof`: the session has another key. */
  readonly reason: Problem['reason']
  /** The seconds of Retry-After in the last reply, after the client's own retries. */
  readonly retryAfter: number | undefined

  constructor(response: Response, body: unknown) {
    const problem = isProblem(body) ? body : undefined
    super(problem?.detail ?? problem?.title ?? `The server answered ${response.status}`)
    this.code = problem?.code ?? 'unexpected_reply'
    this.status = response.status
    this.errors = problem?.errors ?? []
    this.request_id = problem?.request_id ?? response.headers.get('x-request-id') ?? undefined
    this.mfa_token = problem?.mfa_token
    this.factors = problem?.factors ?? []
    this.enroll = problem?.enroll ?? false
    this.provider = problem?.provider
    this.reason = problem?.reason
    this.retryAfter = retryAfter(response)
  }
}

/**
 * Returns the data of a call, or throws a `ProblemError`.
 *
 * Do not use it for conditional requests: a 304 has no data and is thrown as well.
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

/** Reads the code of an error reply. The body stays readable. */
export async function codeOf(response: Response): Promise<ProblemCode> {
  const body: unknown = await response
    .clone()
    .json()
    .catch(() => undefined)
  return isProblem(body) ? body.code : 'unexpected_reply'
}

/** Reads Retry-After in seconds. Proxies may send it as a date. */
export function retryAfter(response: Response): number | undefined {
  const text = response.headers.get('retry-after')
  if (text === null) return undefined
  const seconds = /^\d+$/.test(text) ? Number(text) : (Date.parse(text) - Date.now()) / 1000
  return Number.isNaN(seconds) ? undefined : Math.max(0, seconds)
}

function isProblem(body: unknown): body is Problem {
  return typeof body === 'object' && body !== null && typeof (body as Partial<Problem>).code === 'string'
}
