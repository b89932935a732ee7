/*
 * Argon2id by the fastest package that this machine can load. All of them make and read the same PHC strings, so a
 * database may have hashes of each, and the packages may change at any time.
 */

/** The cost of a hash. `memoryCost` is in KiB. */
export type Parameters = { memoryCost: number; timeCost: number; parallelism: number }
/** The secret (pepper) is hashed with the password, and is not in the PHC string. */
export type HashOptions = Parameters & { secret: Buffer }
export type VerifyOptions = { secret: Buffer }

export type Argon2 = {
  /** A short name of the package. */
  name: string
  /** Resolves to a PHC string with a random salt. */
  hash(password: string, options: HashOptions): Promise<string>
  /** Whether the password has this PHC string. Rejects when `stored` is none. */
  verify(stored: string, password: string, options: VerifyOptions): Promise<boolean>
  /** Whether the PHC string was made with other parameters. */
  needsRehash(stored: string, parameters: Parameters): boolean
}

/** Each package, fastest first. `@node-rs/argon2` is optional: it has no build for some platforms. */
export const packages: readonly (() => Promise<Argon2>)[] = [loadRust, loadC]

/** Chooses AVX2 at run time, where the processor has it. */
async function loadRust(): Promise<Argon2> {
  const { hash, verify, parseOptions } = await import('@node-rs/argon2')
  return {
    name: 'node-rs',
    // as bytes, so that all packages hash the same ones
    hash: (password, options) => hash(Buffer.from(password), options),
    verify: (stored, password, options) => verify(stored, Buffer.from(password), options),
    needsRehash(stored, parameters) {
      const found = parseOptions(stored)
      return (
        // the numbers of the package: argon2id, and version 0x13
        found.algorithm !== 2 ||
        found.version !== 1 ||
        found.memoryCost !== parameters.memoryCost ||
        found.timeCost !== parameters.timeCost ||
        found.parallelism !== parameters.parallelism
      )
    }
  }
}

async function loadC(): Promise<Argon2> {
  const { argon2id, hash, verify, needsRehash } = await import('argon2')
  return {
    name: 'argon2',
    hash: (password, options) => hash(password, { ...options, type: argon2id }),
    verify,
    needsRehash: (stored, parameters) => !stored.startsWith('$argon2id$') || needsRehash(stored, parameters)
  }
}

/**
 * Loads the first package that can be loaded, with the errors of those before it. Throws when none can.
 */
export async function loadArgon2(candidates = packages): Promise<{ argon2: Argon2; failures: unknown[] }> {
  const failures: unknown[] = []
  for (const load of candidates) {
    try {
      return { argon2: await load(), failures }
    } catch (err) {
      failures.push(err)
    }
  }
  throw new AggregateError(failures, 'no package for argon2 can be loaded')
}

/** The package that hashes passwords in this process, and why it is not a faster one. */
export const { argon2, failures } = await loadArgon2()
