import { availableParallelism } from 'node:os'
import { dictionary } from '@zxcvbn-ts/language-common'
import argon2 from 'argon2'
import { invalidMembers } from '../http/field-errors.ts'
import { overloaded } from '../http/problems.ts'
import { createBoundedQueue, QueueFull } from '../limits/bounded-queue.ts'
import type { Hasher } from './hasher.ts'
import type { KeyRing } from './keys.ts'

/** OWASP's second row for argon2id: 19 MiB, two passes, one lane. */
export const parameters = { type: argon2.argon2id, memoryCost: 19_456, timeCost: 2, parallelism: 1 } as const

const maxLength = 128

/** What is stored: the PHC string (parameters, salt, hash) and which pepper went into it. */
export type PasswordHash = { password_hash: string; pepper_id: string }

/** What is stored for somebody; nothing for one who signs in in other ways only. */
export function storedHash(row: { password_hash: string | null; pepper_id: string | null }): PasswordHash | undefined {
  const { password_hash, pepper_id } = row
  return password_hash !== null && pepper_id !== null ? { password_hash, pepper_id } : undefined
}

export type Passwords = {
  /** `party`: who takes turns with others where many wait. */
  hash(password: string, party?: string): Promise<PasswordHash>
  /**
   * Whether the password belongs to the hash. With nothing stored the same work is done and the answer is no, so that an
   * unknown address takes as long as a wrong password.
   */
  verify(password: string, stored: PasswordHash | undefined, party?: string): Promise<boolean>
  /** Whether parameters or pepper have moved on since this hash was made. */
  needsRehash(stored: PasswordHash): boolean
  stats(): { running: number; waiting: number; refused: number }
}

/**
 * Hashes with argon2id and a pepper, `width` at once (one a core; more would only make each of them slower). Agencies take
 * turns, and when `depth` wait already: 503 `overloaded`.
 */
export async function createPasswords(
  peppers: KeyRing,
  hasher: Hasher = argon2,
  width = availableParallelism(),
  depth = 64
): Promise<Passwords> {
  const queue = createBoundedQueue(width, depth)
  const pepper = (id: string) => {
    const key = peppers.byId.get(id)
    return key && Buffer.from(key.secret)
  }
  const options = { ...parameters, secret: Buffer.from(peppers.first.secret) }
  // here: one hash is no reason to start a process
  const decoy = { password_hash: await argon2.hash('nobody has this password', options), pepper_id: peppers.first.id }

  async function queued<T>(job: () => Promise<T>, party: string | undefined): Promise<T> {
    try {
      return await queue.run(job, party)
    } catch (err) {
      if (err instanceof QueueFull) throw overloaded({ headers: { 'retry-after': '1' }, cause: err })
      throw err
    }
  }

  return {
    hash: async (password, party) => ({
      password_hash: await queued(() => hasher.hash(password.normalize('NFKC'), options), party),
      pepper_id: peppers.first.id
    }),
    verify: async (password, stored = decoy, party) => {
      const secret = pepper(stored.pepper_id)
      // start refuses a database whose peppers are not all configured
      if (!secret) throw new Error('a stored password needs a pepper that is not configured')
      const normalized = password.normalize('NFKC')
      const matches = await queued(() => hasher.verify(stored.password_hash, normalized, { secret }), party)
      return matches && stored !== decoy
    },
    needsRehash: (stored) =>
      stored.pepper_id !== peppers.first.id || argon2.needsRehash(stored.password_hash, parameters),
    stats: queue.stats
  }
}

const commonest = new Set(
  (dictionary['passwords-common'] as string[]).filter((word) => word.length >= 8).map((word) => word.toLowerCase())
)

/**
 * What is wrong with a new password, or undefined. No composition rules (NIST SP 800-63B, 3.1.1.2): length after NFKC, not
 * among the commonest, and not the person's own address or names.
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
