import { join } from 'node:path'
import argon2, { type HashOptions, type VerifyOptions } from 'argon2'
import { type HelperProcess, Lost, startHelper } from '../subprocesses/subprocess.ts'

/** What hashes: the package itself, or a process that is asked to. */
export type Hasher = {
  hash(password: string, options: HashOptions): Promise<string>
  verify(stored: string, password: string, options: VerifyOptions): Promise<boolean>
}

/** A password to hash, or to compare with what is stored. */
export type Job = { password: string } & (
  | { stored?: never; options: HashOptions }
  | { stored: string; options: VerifyOptions }
)
export type Result = string | boolean

export const compute = (job: Job): Promise<Result> =>
  job.stored === undefined
    ? argon2.hash(job.password, job.options)
    : argon2.verify(job.stored, job.password, job.options)

type Options = { width: number; log: { warn(details: object, message: string): void }; program?: string }

/** A start, or a hash, on a machine that is busy with everything else. A process that takes longer is taken for stuck. */
export const answerMs = 10_000
/** After one has ended none is started for so long: one that can't live would cost a start for each hash. */
export const restMs = 5000

/**
 * Hashes in a process of lower priority, so that reads don't share the cores evenly with sign-ins. Keep to `width` jobs at once.
 *
 * It is started at the first hash. Until it can begin, and where it can't be started, has ended or is stuck, this process hashes
 * itself, so nobody waits for it and what it was doing is done again.
 */
export function createHasher({ width, log, program = join(import.meta.dirname, 'hasher-process.ts') }: Options) {
  let other: HelperProcess<Job, Result> | undefined
  let restsUntil = 0
  let warned = false
  let closed = false

  function ended(reason: object, wasReady: boolean): void {
    other = undefined
    restsUntil = performance.now() + restMs
    if (closed) return
    if (wasReady) log.warn(reason, 'the process that hashes passwords ended and is replaced')
    else if (!warned)
      log.warn(reason, 'no process to hash passwords could be started, so this one hashes: reads are slower')
    warned = !wasReady
  }

  function start(): void {
    if (other || closed || performance.now() < restsUntil) return
    try {
      // as many threads as jobs; Node's own number is 4
      other = startHelper({ program, env: { UV_THREADPOOL_SIZE: String(width) }, answerMs, onEnd: ended })
    } catch (err) {
      ended({ err }, false)
    }
  }

  async function run(job: Job): Promise<Result> {
    start()
    if (!other?.isReady()) return compute(job)
    try {
      return await other.run(job)
    } catch (err) {
      if (err instanceof Lost) return compute(job)
      throw err
    }
  }

  return {
    hash: (password, options) => run({ password, options }) as Promise<string>,
    verify: (stored, password, options) => run({ password, stored, options }) as Promise<boolean>,
    /** What is hashed from now on is hashed here. */
    close(): void {
      closed = true
      other?.end({})
    }
  } satisfies Hasher & { close(): void }
}
