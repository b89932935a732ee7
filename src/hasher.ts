import { fork } from 'node:child_process'
import { join } from 'node:path'
import argon2, { type HashOptions, type VerifyOptions } from 'argon2'

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

/** What the process says: that it can begin, and then how each job went. */
export type Answer = 'ready' | { id: number; result: Result } | { id: number; error: string }

export const compute = (job: Job): Promise<Result> =>
  job.stored === undefined
    ? argon2.hash(job.password, job.options)
    : argon2.verify(job.stored, job.password, job.options)

type Options = { width: number; log: { warn(details: object, message: string): void }; program?: string }

/** A start, or a hash, on a machine that is busy with everything else. A process that takes longer is taken for stuck. */
const answerMs = 10_000
/** After one has ended none is started for so long: one that can't live would cost a start for each hash. */
const restMs = 5000

/** Its process is gone, and the job is still to be done. */
class Lost extends Error {}

/**
 * Hashes in a process of lower priority, so that reads don't share the cores evenly with sign-ins. Keep to `width` jobs at once.
 *
 * It is started at the first hash. Until it can begin, and where it can't be started, has ended or is stuck, this process hashes
 * itself, so nobody waits for it and what it was doing is done again.
 */
export function createHasher({ width, log, program = join(import.meta.dirname, 'hasher-process.ts') }: Options) {
  let other: ReturnType<typeof startProcess> | undefined
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
      other = startProcess(program, width, ended)
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

/** Calls `onEnd` once, when it has ended or was ended. It never outlives this process, nor keeps it from ending. */
function startProcess(program: string, width: number, onEnd: (reason: object, wasReady: boolean) => void) {
  const child = fork(program, [], {
    serialization: 'advanced',
    // nothing of this process's environment: there are secrets in it. As many threads as jobs; Node's own number is 4
    env: { UV_THREADPOOL_SIZE: String(width) },
    execArgv: [],
    stdio: ['ignore', 'ignore', 'inherit', 'ipc'],
    // a session of its own: see hasher-process.ts
    detached: true
  })
  const pending = new Map<number, { settle(answer: Exclude<Answer, 'ready'>): void; lose(): void }>()
  let asked = 0
  let ready = false
  let over = false
  const stuck = () => end({ reason: `it gave no answer for ${answerMs} ms` })
  const starting = setTimeout(stuck, answerMs).unref()
  letGo()

  function end(reason: object): void {
    if (over) return
    over = true
    clearTimeout(starting)
    // it has nothing to put in order, and does not listen to less
    child.kill('SIGKILL')
    letGo()
    onEnd({ ...reason, pid: child.pid }, ready)
    for (const { lose } of pending.values()) lose()
  }

  child.on('error', (err) => end({ err }))
  child.on('exit', (code, signal) => end({ code, signal }))
  child.on('message', (answer: Answer) => {
    if (answer !== 'ready') return pending.get(answer.id)?.settle(answer)
    ready = true
    clearTimeout(starting)
  })

  function hold(): void {
    child.ref()
    child.channel?.ref()
  }
  function letGo(): void {
    child.unref()
    child.channel?.unref()
  }

  async function run(job: Job): Promise<Result> {
    const id = ++asked
    const late = setTimeout(stuck, answerMs)
    hold()
    try {
      return await new Promise((done, fail) => {
        pending.set(id, {
          settle: (answer) => ('error' in answer ? fail(new Error(answer.error)) : done(answer.result)),
          lose: () => fail(new Lost())
        })
        // one that is just dying can't be told; its exit says so
        child.send({ id, job }, () => {})
      })
    } finally {
      clearTimeout(late)
      pending.delete(id)
      if (pending.size === 0) letGo()
    }
  }

  return { run, end, isReady: () => ready }
}
