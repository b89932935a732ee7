import { join } from 'node:path'
import { type Subprocess, SubprocessEnded, startSubprocess } from '../subprocesses/subprocess.ts'
import { type Argon2, argon2, type HashOptions, type VerifyOptions } from './argon2.ts'

/** Computes hashes: in this process, or in a subprocess. */
export type Hasher = Pick<Argon2, 'hash' | 'verify'>

/** A password to hash or, with `stored`, to compare with a stored hash. */
export type Job = { password: string } & (
  | { stored?: never; options: HashOptions }
  | { stored: string; options: VerifyOptions }
)
export type Result = string | boolean

export const compute = (job: Job): Promise<Result> =>
  job.stored === undefined
    ? argon2.hash(job.password, job.options)
    : argon2.verify(job.stored, job.password, job.options)

type Options = { concurrency: number; log: { warn(details: object, message: string): void }; program?: string }

/**
 * The timeout of the subprocess's start and of one hash, on a machine that is fully busy. A slower subprocess counts as
 * stuck.
 */
export const answerTimeoutMs = 10_000
/**
 * The pause between the end of a subprocess and the next start. Without it, a subprocess that can't run would be
 * started for each hash.
 */
export const restartDelayMs = 5000

/**
 * Hashes in a subprocess of lower priority, so that sign-ins don't get as much of the cores as reads do. The caller
 * passes at most `concurrency` jobs at once.
 *
 * The subprocess is started with the first hash. This process computes a hash itself while the subprocess is not ready,
 * and repeats here what a subprocess that ended or got stuck was computing. So no request fails because of the
 * subprocess.
 */
export function createHasher({ concurrency, log, program = join(import.meta.dirname, 'hasher-process.ts') }: Options) {
  let subprocess: Subprocess<Job, Result> | undefined
  let restartAt = 0
  let warned = false
  let closed = false

  function ended(reason: object, wasReady: boolean): void {
    subprocess = undefined
    restartAt = performance.now() + restartDelayMs
    if (closed) return
    if (wasReady) log.warn(reason, 'the process that hashes passwords ended and is replaced')
    else if (!warned)
      log.warn(reason, 'no process to hash passwords could be started, so this one hashes: reads are slower')
    warned = !wasReady
  }

  function start(): void {
    if (subprocess || closed || performance.now() < restartAt) return
    try {
      // one thread for each concurrent job; Node's default is 4
      const env = { UV_THREADPOOL_SIZE: String(concurrency) }
      subprocess = startSubprocess({ program, env, answerTimeoutMs, onEnd: ended })
    } catch (err) {
      ended({ err }, false)
    }
  }

  async function run(job: Job): Promise<Result> {
    start()
    if (!subprocess?.isReady()) return compute(job)
    try {
      return await subprocess.run(job)
    } catch (err) {
      if (err instanceof SubprocessEnded) return compute(job)
      throw err
    }
  }

  return {
    hash: (password, options) => run({ password, options }) as Promise<string>,
    verify: (stored, password, options) => run({ password, stored, options }) as Promise<boolean>,
    /** Ends the subprocess. Later hashes are computed by this process. */
    close(): void {
      closed = true
      subprocess?.end({})
    }
  } satisfies Hasher & { close(): void }
}
