import { createHash } from 'node:crypto'
import type { Rate } from '../config/value-readers.ts'
import type { Grant, QuotaStore } from './leased-quotas.ts'

/** The part of a Redis client that shared quotas need. */
export type ScriptRunner = {
  evalsha(sha: string, keyCount: number, ...keysAndValues: (string | number)[]): Promise<unknown>
  script(command: 'LOAD', script: string): Promise<unknown>
}

/*
 * Keeps one counter a key, which expires with its window; the first request of a window sets the expiry. `prefetch` is
 * granted up to an eighth of what is left. The server builds KEYS from digests and ids, so the script never contains a
 * client's text.
 */
const take = `
local max, window, needed, prefetch = tonumber(ARGV[1]), tonumber(ARGV[2]), tonumber(ARGV[3]), tonumber(ARGV[4])
local used = tonumber(redis.call('get', KEYS[1]) or '0')
local ends = redis.call('pttl', KEYS[1])
if ends < 0 then
  used, ends = 0, window
end
local left = math.max(0, max - used)
local granted = math.min(left, needed + math.min(prefetch, math.floor(left / 8)))
if granted > 0 then
  redis.call('set', KEYS[1], used + granted, 'px', math.max(1, ends))
end
return { granted, left - granted, ends }
`
const sha = createHash('sha1').update(take).digest('hex')

/**
 * A store of quotas in Redis. One script reads and counts in one atomic step, so that concurrent processes are never
 * granted more than the quota.
 */
export function createRedisQuotaStore(
  redis: ScriptRunner,
  { prefix, attempt }: { prefix: string; attempt: <T>(work: () => Promise<T>) => Promise<T> }
): QuotaStore {
  async function run(args: (string | number)[]): Promise<unknown> {
    try {
      return await redis.evalsha(sha, 1, ...args)
    } catch (err) {
      if (!(err instanceof Error && err.message.startsWith('NOSCRIPT'))) throw err
      await redis.script('LOAD', take)
      return redis.evalsha(sha, 1, ...args)
    }
  }

  return {
    async take(key: string, { max, window_ms }: Rate, needed: number, prefetch: number): Promise<Grant> {
      // a digest, because keys contain addresses and e-mails, and everybody who reaches Redis may list its keys
      const digest = createHash('sha256').update(key).digest('base64url').slice(0, 22)
      const name = `${prefix}${digest}:${window_ms}`
      const reply = await attempt(() => run([name, max, window_ms, needed, prefetch]))
      const [granted, remaining, ends_in_ms] = reply as [number, number, number]
      return { granted, remaining, ends_in_ms }
    }
  }
}
