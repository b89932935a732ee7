import { availableParallelism } from 'node:os'
import { dictionary } from '@zxcvbn-ts/language-common'
import { invalidMembers } from '../http/field-errors.ts'
import { overloaded } from '../http/problems.ts'
import type { KeyRing } from '../keys.ts'
import { createBoundedQueue, QueueFull } from '../limits/bounded-queue.ts'
import { argon2 } from './argon2.ts'
import type { Hasher } from './hasher.ts'

/** The second of OWASP's recommended settings for argon2id: 19 MiB, two passes, one lane. */
export const parameters = { memoryCost: 19_456, timeCost: 2, parallelism: 1 } as const

const maxLength = 128

/** A stored password: the PHC string (parameters, salt, hash), and the id of the pepper that was used. */
export type PasswordHash = { password_hash: string; pepper_id: string }

/** Returns the stored password of a row, or undefined for a person without one, who signs in in other ways only. */
export function storedHash(row: { password_hash: string | null; pepper_id: string | null }): PasswordHash | undefined {
  const { password_hash, pepper_id } = row
  return password_hash !== null && pepper_id !== null ? { password_hash, pepper_id } : undefined
}

export type Passwords = {
  /** Throws `overloaded` when too many hashes wait. Waiting hashes are served round robin by `fairnessKey`. */
  hash(password: string, fairnessKey?: string): Promise<PasswordHash>
  /**
   * Whether the password matches the hash. When nothing is stored, a decoy is verified and the answer is false, so that
   * an unknown address takes as long as a wrong password.
   */
  verify(password: string, stored: PasswordHash | undefined, fairnessKey?: string): Promise<boolean>
  /** Whether the hash was made with other parameters or another pepper than the current ones. */
  needsRehash(stored: PasswordHash): boolean
  /** Prepares other peppers. They are used once the result is called. Passwords that are being hashed keep theirs. */
  prepare(peppers: KeyRing): Promise<() => void>
  stats(): { running: number; waiting: number; refused: number }
}

/** Shorter than clients and proxies wait for a reply. */
export const waitTimeoutMs = 15_000

/**
 * Hashes passwords with argon2id and a pepper, at most `concurrency` at once: one a core, since more would only make
 * each hash slower. Waiting hashes are served round robin by agency. When `depth` hashes wait already, a further one
 * fails with 503 `overloaded`. So does one that has waited for `timeoutMs`.
 */
export async function createPasswords(
  given: KeyRing,
  hasher: Hasher = argon2,
  concurrency = availableParallelism(),
  depth = 64,
  timeoutMs = waitTimeoutMs
): Promise<Passwords> {
  const queue = createBoundedQueue(concurrency, depth, timeoutMs)
  let inForce = await withDecoy(given)

  async function queued<T>(job: () => Promise<T>, fairnessKey: string | undefined): Promise<T> {
    try {
      return await queue.run(job, fairnessKey)
    } catch (err) {
      if (err instanceof QueueFull) throw overloaded({ headers: { 'retry-after': '1' }, cause: err })
      throw err
    }
  }

  return {
    async hash(password, fairnessKey) {
      const { first, options } = inForce
      return {
        password_hash: await queued(() => hasher.hash(password.normalize('NFKC'), options), fairnessKey),
        pepper_id: first.id
      }
    },
    async verify(password, known, fairnessKey) {
      const { byId, decoy } = inForce
      const stored = known ?? decoy
      const key = byId.get(stored.pepper_id)
      // can't happen: the pepper of a stored password is configured at the start, and stays when peppers change
      if (!key) throw new Error('a stored password needs a pepper that is not configured')
      const secret = Buffer.from(key.secret)
      const normalized = password.normalize('NFKC')
      const matches = await queued(() => hasher.verify(stored.password_hash, normalized, { secret }), fairnessKey)
      return matches && stored !== decoy
    },
    needsRehash: (stored) =>
      stored.pepper_id !== inForce.first.id || argon2.needsRehash(stored.password_hash, parameters),
    async prepare(peppers) {
      const next = await withDecoy(peppers)
      return () => {
        inForce = next
      }
    },
    stats: queue.stats
  }
}

/** The peppers, with the options of a new hash, and a hash that no password matches. */
async function withDecoy(peppers: KeyRing) {
  const options = { ...parameters, secret: Buffer.from(peppers.first.secret) }
  // in this process: one hash is no reason to start the subprocess of the hasher
  const decoy = { password_hash: await argon2.hash('nobody has this password', options), pepper_id: peppers.first.id }
  return { ...peppers, options, decoy }
}

const commonest = new Set(
  (dictionary['passwords-common'] as string[]).filter((word) => word.length >= 8).map((word) => word.toLowerCase())
)

/**
 * Returns what is wrong with a new password, or undefined. The password must be neither too short nor too long after
 * NFKC, not one of the commonest passwords, and not the person's own address or name. There are no composition rules
 * (NIST SP 800-63B, 3.1.1.2).
 */
export function passwordFault(password: string, minLength: number, own: readonly string[]): string | undefined {
  const normalized = password.normalize('NFKC')
  const length = [...normalized].length
  if (length < minLength) return `must have at least ${minLength} characters`
  if (length > maxLength) return `must have at most ${maxLength} characters`
  const folded = normalized.toLowerCase()
  if (commonest.has(folded)) return 'is one of the commonest passwords'
  if (own.some((word) => word.toLowerCase() === folded)) return 'must not be your own e-mail or name'
  return undefined
}

/** Throws `validation_failed` at `path` for a new password that is not acceptable. */
export function requireAcceptablePassword(
  password: string,
  path: string,
  minLength: number,
  own: readonly string[]
): void {
  const fault = passwordFault(password, minLength, own)
  if (fault) throw invalidMembers([{ path, message: fault }])
}
