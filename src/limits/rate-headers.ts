import type { Rate } from '../config/value-readers.ts'
import { type Problem, rateLimited } from '../http/problems.ts'
import type { Verdict } from './leased-quotas.ts'

/** A request that was counted against a limit of this name, and what came of it. */
export type Counted = { name: string; rate: Rate; verdict: Verdict }

/** The values of `RateLimit-Policy` and `RateLimit`, as structured fields (draft-ietf-httpapi-ratelimit-headers). */
export function rateHeaders(counted: readonly Counted[]): { policy: string; state: string } {
  return {
    policy: counted.map(({ name, rate }) => `"${name}";q=${rate.max};w=${rate.window_ms / 1000}`).join(', '),
    state: counted
      .map((one) => `"${one.name}";r=${Math.max(0, one.verdict.remaining)};t=${secondsUntilReset(one)}`)
      .join(', ')
  }
}

/** `rate_limited`, with a Retry-After of the limit that takes longest. Undefined where no limit is exceeded. */
export function findExceeded(counted: readonly Counted[], detail?: string): Problem | undefined {
  const exceeded = counted.filter(({ verdict }) => !verdict.allowed)
  if (exceeded.length === 0) return undefined
  const headers = { 'retry-after': String(Math.max(1, ...exceeded.map(secondsUntilReset))) }
  return rateLimited(detail === undefined ? { headers } : { detail, headers })
}

const secondsUntilReset = ({ verdict }: Counted) => Math.ceil(verdict.ends_in_ms / 1000)
