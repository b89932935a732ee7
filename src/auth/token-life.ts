/** How far ahead of this process's clock a token may say that it was issued. */
export const clockToleranceSeconds = 60

/**
 * For how many seconds a revocation is remembered: as long as a token that was issued at the last moment, by a process whose
 * clock is ahead, can be shown.
 */
export const revocationSeconds = ({ accessTokenTtl }: { accessTokenTtl: number }): number =>
  accessTokenTtl + clockToleranceSeconds
