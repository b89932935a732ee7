/** The clock skew between processes that is accepted: a token's `iat` may be so far in the future. */
export const clockToleranceSeconds = 60

/**
 * The lifetime of a revocation in seconds. It covers a token that was issued just before the revocation by a process
 * whose clock is ahead.
 */
export const revocationSeconds = ({ accessTokenTtl }: { accessTokenTtl: number }): number =>
  accessTokenTtl + clockToleranceSeconds
