import type { Rate } from '../config/value-readers.ts'
import { type Problem, rateLimited } from '../http/problems.ts'
import type { Verdict } from './leased-quotas.ts'

/** A request that was counted against a limit of this name, and what came of it. */
export type Counted = { name: string; rate: Rate; verdict: Verdict }

/** The last policy of each limit, because most requests have the same one. */
const policies = new Map<string, { max: number; window_ms: number; text: string }>()

function policyOf(name: string, { max, window_ms }: Rate): string {
  const last = policies.get(name)
  if (last?.max === max && last.window_ms === window_ms) return last.text
  const text = `"${name}";q=${max};w=${window_ms / 1000}`
  policies.set(name, { max, window_ms, text })
  return text
}

/** The values of `RateLimit-Policy` and `RateLimit`, as structured fields (draft-ietf-httpapi-ratelimit-headers). */
export function rateHeaders(counted: readonly Counted[]): { policy: string; state: string } {
  let policy = ''
  let state = ''
  for (const one of counted) {
    const separator = policy === '' ? '' : ', '
    policy += separator + policyOf(one.name, one.rate)
    state += `${separator}"${one.name}";r=${Math.max(0, one.verdict.remaining)};t=${secondsUntilReset(one)}`
  }
  return { policy, state }
}

/** `rate_limited`, with a Retry-After of the limit that takes longest. Undefined where no limit is exceeded. */
export function findExceeded(counted: readonly Counted[], detail?: string): Problem | undefined {
  if (counted.every(({ verdict }) => verdict.allowed)) return undefined
  const exceeded = counted.filter(({ verdict }) => !verdict.allowed)
  const seconds = Math.max(1, ...exceeded.map(secondsUntilReset))
  return detail === undefined ? exceededFor(seconds) : rateLimited({ detail, headers: retryAfter(seconds) })
}

/** The last problem without a detail: the requests of a flood get the same one for a second. */
let last: { seconds: number; problem: Problem } | undefined

function exceededFor(seconds: number): Problem {
  if (last?.seconds !== seconds) last = { seconds, problem: rateLimited({ headers: retryAfter(seconds) }) }
  return last.problem
}

const retryAfter = (seconds: number) => ({ 'retry-after': String(seconds) })

const secondsUntilReset = ({ verdict }: Counted) => Math.ceil(verdict.ends_in_ms / 1000)
